"""Residual streams of two models on the same text: captured, paired, and summed up batch by batch."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cast.alignment import AlignedPairs, LayerMap, align, below
from cast.errors import RequestError

if TYPE_CHECKING:
    from cast.models import LanguageModel, TokenBatch

# What a pass of a model of a few million parameters costs beside its tokens, in tokens; of others it is less.
_A_PASS = 100


@contextmanager
def captured(
    lm: "LanguageModel", depths: Collection[int], shape: tuple[int, ...] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Capture h_l of every forward pass inside the block.

    Args:
        lm: the model.
        depths: which l of 0 … depth to keep.
        shape: [B, n] of the passes to keep; None for all. A runner may run the final norm once more on the
            places that it was asked for.

    Yields:
        A dictionary l → [B, n, d] in the model's own dtype, filled anew by each forward pass, gradients kept.
        h_l is read as the *input* of block l+1 (of the final norm for the last), so that what a hook adds to
        the output of block l is seen, whichever of the two was registered first.

    Raises:
        RequestError: a depth is outside the model.
    """
    architecture = lm.architecture
    if outside := sorted(set(depths) - set(range(architecture.depth + 1))):
        raise RequestError(f"{lm.name} has depths 0 to {architecture.depth}; there is no depth {outside[0]}.")
    states: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for depth in sorted(set(depths)):
            reader = architecture.blocks[depth] if depth < architecture.depth else architecture.final_norm
            if reader is not None:
                hook = reader.register_forward_pre_hook(
                    partial(_keep_input, states, depth, shape), with_kwargs=True
                )
            else:  # Without a final norm nothing after the last block always sees all positions.
                hook = architecture.blocks[-1].register_forward_hook(partial(_keep_output, states, depth))
            stack.callback(hook.remove)
        yield states


def _keep_input(
    states: dict[int, Tensor],
    depth: int,
    shape: tuple[int, ...] | None,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    given: Tensor = args[0] if args else kwargs["hidden_states"]
    if shape is None or given.shape[:-1] == shape:
        states[depth] = given


def _keep_output(
    states: dict[int, Tensor], depth: int, module: nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    states[depth] = output if isinstance(output, Tensor) else output[0]


def residuals(lm: "LanguageModel", batch: "TokenBatch", depths: Collection[int]) -> dict[int, Tensor]:
    """Run the model without its LM head, which is the dearest part where the vocabulary is large.

    Returns:
        l → [B, n, d] in the model's own dtype.
    """
    with captured(lm, depths) as states:
        lm.architecture.decoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
    return states


def residuals_by_length(
    lm: "LanguageModel", batch: "TokenBatch", depths: Collection[int]
) -> dict[int, Tensor]:
    """As `residuals`, short rows apart from long ones, so that little of the work is padding.

    Only for what acts on each row alone: hooks see some rows at a time, in another order.

    Returns:
        l → [B, n, d] in the model's own dtype, gradients kept; what stands at padding means nothing.
    """
    # An accelerator reads a batch about as fast as its longest row.
    if batch.input_ids.device.type != "cpu":
        return residuals(lm, batch, depths)
    passes = _of_like_length(batch.attention_mask.sum(1).tolist())
    if len(passes) <= 1:
        return residuals(lm, batch, depths)
    parts = [residuals(lm, batch.take(rows), depths) for rows in passes]
    order = torch.tensor([row for rows in passes for row in rows]).argsort()

    def whole(depth: int) -> Tensor:
        # What was read is let go depth by depth.
        sides = [part.pop(depth) for part in parts]
        longest = batch.input_ids.shape[1]
        return torch.cat([pad(side, (0, 0, 0, longest - side.shape[1])) for side in sides])[order]

    return {depth: whole(depth) for depth in list(parts[0])}


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of so many tokens, in the passes that cost least: of sorted rows, the cheapest cuts."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # Behind each number of the shortest rows: the least that they cost, and where their last pass begins.
    least = [(0, 0)]
    for end, row in enumerate(order, start=1):
        least.append(
            min((least[start][0] + _A_PASS + (end - start) * lengths[row], start) for start in range(end))
        )
    passes, end = [], len(order)
    while end:
        start = least[end][1]
        passes.append(order[start:end])
        end = start
    return passes


@dataclass(frozen=True)
class PairedBatch:
    """Activations of both models at N aligned pairs, BOS left out.

    Attributes:
        source: target depth l → h^S_{m(l)}, [N, d_s] float32, on the CPU wherever the model is: many batches
            are kept, and an accelerator's memory is for models.
        target: target depth l → h^T_l, [N, d_t], likewise.
        pairs: where in the batch the rows come from.
    """

    source: Mapping[int, Tensor]
    target: Mapping[int, Tensor]
    pairs: AlignedPairs

    def __len__(self) -> int:
        """Number of aligned pairs N."""
        return len(self.pairs)

    def below(self, depth: int, reads: int) -> Tensor:
        """What an encode head reads: the target's states at a depth and at those before it."""
        return torch.cat([self.target[place] for place in below(depth, reads)], dim=-1)

    def take(self, rows: Tensor) -> "PairedBatch":
        """The pairs of the given indices [K], in their order."""
        picked = AlignedPairs(*(index[rows] for index in self.pairs.columns()))
        source, target = (
            {depth: states[rows] for depth, states in side.items()} for side in (self.source, self.target)
        )
        return PairedBatch(source, target, picked)

    @staticmethod
    def joined(batches: Sequence["PairedBatch"]) -> "PairedBatch":
        """One batch of at least one batch of the same depths, in order; texts are numbered on."""
        first = accumulate((int(batch.pairs.row.max()) + 1 for batch in batches), initial=0)
        columns = zip(*(batch.pairs.columns() for batch in batches), strict=True)
        rows, *positions = (list(column) for column in columns)
        rows = [row + offset for row, offset in zip(rows, first, strict=False)]
        return PairedBatch(
            {depth: torch.cat([batch.source[depth] for batch in batches]) for depth in batches[0].source},
            {depth: torch.cat([batch.target[depth] for batch in batches]) for depth in batches[0].target},
            AlignedPairs(torch.cat(rows), *(torch.cat(position) for position in positions)),
        )


def paired_batches(
    source: "LanguageModel",
    target: "LanguageModel",
    texts: Iterable[str],
    layer_map: LayerMap,
    *,
    batch_size: int,
    depths: Collection[int] | None = None,
    max_length: int = 256,
) -> Iterator[PairedBatch]:
    """Stream the paired activations of both models over texts, without gradients.

    Args:
        source: the source model.
        target: the target model.
        texts: general text; each is cut at `max_length` tokens in either model.
        layer_map: m, which source depth belongs to which target depth.
        batch_size: texts in one batch; memory depends on this, never on the number of texts.
        depths: target depths to capture; None for all.
        max_length: longest row in tokens.

    Yields:
        One `PairedBatch` for each batch of texts that has an aligned pair.
    """
    wanted = range(layer_map.target_depth + 1) if depths is None else sorted(set(depths))
    iterator = iter(texts)
    while chunk := tuple(islice(iterator, batch_size)):
        batch = paired_batch(source, target, chunk, layer_map, depths=wanted, max_length=max_length)
        if len(batch):
            yield batch


@torch.no_grad()
def paired_batch(
    source: "LanguageModel",
    target: "LanguageModel",
    texts: tuple[str, ...],
    layer_map: LayerMap,
    *,
    depths: Collection[int],
    max_length: int = 256,
) -> PairedBatch:
    """The paired activations of one batch of texts; see `paired_batches`."""
    source_tokens, target_tokens = (lm.encode(texts, max_length=max_length) for lm in (source, target))
    pairs = align(source_tokens, target_tokens)
    at_source = residuals_by_length(source, source_tokens, {layer_map[depth] for depth in depths})
    at_target = residuals_by_length(target, target_tokens, depths)
    rows = {
        depth: states[pairs.row, pairs.source_position].float().cpu() for depth, states in at_source.items()
    }
    target_rows = {
        depth: states[pairs.row, pairs.target_position].float().cpu() for depth, states in at_target.items()
    }
    return PairedBatch(
        source={depth: rows[layer_map[depth]] for depth in depths},
        target={depth: target_rows[depth] for depth in depths},
        pairs=pairs,
    )


class Moments:
    """Means and centred second moments of rows x [N, dim_x] and y [N, dim_y], streamed in float64.

    Each batch is centred on its own mean and merged (Chan, Golub & LeVeque 1983), so that a large mean, as
    massive dimensions have, does not cancel the digits of the variance.

    Attributes:
        count: rows so far.
        mean_x, mean_y: [dim_x] and [dim_y].
        xx, xy, yy: sums of centred products, [dim_x, dim_x], [dim_x, dim_y] and [dim_y, dim_y].
    """

    def __init__(self, dim_x: int, dim_y: int) -> None:
        self.count = 0
        self.mean_x = torch.zeros(dim_x, dtype=torch.float64)
        self.mean_y = torch.zeros(dim_y, dtype=torch.float64)
        self.xx = torch.zeros(dim_x, dim_x, dtype=torch.float64)
        self.xy = torch.zeros(dim_x, dim_y, dtype=torch.float64)
        self.yy = torch.zeros(dim_y, dim_y, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add paired rows x [N, dim_x] and y [N, dim_y] of any float dtype."""
        added = len(x)
        if not added:
            return
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        total = self.count + added
        step_x, step_y = mean_x - self.mean_x, mean_y - self.mean_y
        weight = self.count * added / total
        self.xx += x.T @ x + weight * torch.outer(step_x, step_x)
        self.xy += x.T @ y + weight * torch.outer(step_x, step_y)
        self.yy += y.T @ y + weight * torch.outer(step_y, step_y)
        self.mean_x += step_x * (added / total)
        self.mean_y += step_y * (added / total)
        self.count = total

    def swapped(self) -> "Moments":
        """The same moments with x and y exchanged; nothing is copied."""
        other = Moments.__new__(Moments)
        other.count = self.count
        other.mean_x, other.mean_y = self.mean_y, self.mean_x
        other.xx, other.xy, other.yy = self.yy, self.xy.T, self.xx
        return other

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; `load_state` takes it back."""
        names = ("mean_x", "mean_y", "xx", "xy", "yy")
        return {"count": torch.tensor(self.count)} | {name: getattr(self, name) for name in names}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        self.count = int(state["count"])
        for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
            getattr(self, name).copy_(state[name])
