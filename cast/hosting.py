"""Mode `hosted`: the kernels run inside their own frozen source blocks, and the target takes on their change.

With a and b the last states of the hosted source blocks with and without the LoRA, the target's residual
stream gains strength · (D(a) - D(b)), at shared character ends only. The *whole stack* reads the source's
own tokens and acts on the target's last residual; *block by block*, the hosted blocks read z = E(h) of the
target's own states.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from cast.activations import residuals
from cast.adapters import Lora, applied
from cast.alignment import AlignedPairs, LayerMap, align
from cast.boundaries import TokenGauge
from cast.errors import RequestError
from cast.heads import HeadSet
from cast.hosted_session import HostedBatch
from cast.models import LanguageModel, TokenBatch
from cast.stepping import (
    BlockRunner,
    Call,
    RaggedCache,
    SingleSession,
    first_output,
    locked,
    ragged,
    replace_output,
)


@dataclass(frozen=True)
class Segment:
    """Target blocks start+1 … stop, which share one encode at `start` and one decode at `stop`.

    Attributes:
        start, stop: target depths.
        source_start: m(start), the source depth of what is encoded.
        blocks: the hosted source blocks m(start)+1 … m(stop).
    """

    start: int
    stop: int
    source_start: int
    blocks: range


def segments(layer_map: LayerMap, size: int, adapted: Sequence[int]) -> tuple[Segment, ...]:
    """Cut the target into segments of equal size; keep those that host an adapted block.

    Args:
        layer_map: m.
        size: target blocks in a segment, at least 1; the last segment may be shorter.
        adapted: source blocks (counted from 1) that carry a kernel.

    Raises:
        RequestError: size is below 1.
    """
    if size < 1:
        raise RequestError(f"A segment needs at least 1 block, but has {size}; choose 1 or more, or `all`.")
    depth = layer_map.target_depth
    bounds = ((start, min(start + size, depth)) for start in range(0, depth, size))
    cut = (Segment(i, j, layer_map[i], range(layer_map[i] + 1, layer_map[j] + 1)) for i, j in bounds)
    return tuple(segment for segment in cut if not set(adapted).isdisjoint(segment.blocks))


@dataclass(frozen=True)
class Places:
    """Where the hosted blocks read and write in one pass of the target over n columns.

    Attributes:
        column: [B, q] int64, the column of the pass; 0 where nothing is real.
        position: [B, q] int64, the source's own token position there; 0 is the BOS, which is read and not
            written.
        valid: [B, q] bool, which entries are real.
    """

    column: Tensor
    position: Tensor
    valid: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[int, int]]]) -> "Places":
        """From each row's (column, source position) entries."""
        valid = ragged([len(row) for row in rows])
        filled = torch.zeros(*valid.shape, 2, dtype=torch.long)
        flat = [entry for row in rows for entry in row]
        filled[valid] = torch.tensor(flat, dtype=torch.long).reshape(-1, 2)
        return cls(filled[..., 0], filled[..., 1], valid)


class HostedRunner:
    """The target with a source adapter hosted beside it; see `cast.runners.Runner`.

    Args:
        source: the adapter's model.
        lora: the adapter.
        target: the model that takes on its change.
        heads: fitted for this pair.
        segment: target blocks that share one encode and one decode; None for the whole source stack on its
            own tokens.
        strength: factor on the change; at 0 the runner is exactly the target.

    Raises:
        HeadsError: the heads belong to another pair, or lack a depth that is needed.
        RequestError: the segment is below 1.
    """

    def __init__(
        self,
        source: LanguageModel,
        lora: Lora,
        target: LanguageModel,
        heads: HeadSet,
        segment: int | None,
        strength: float = 1.0,
    ) -> None:
        heads.check(source, target)
        self.source, self.lora, self.lm = source, lora, target
        self.heads, self.strength = heads.to(target.device), strength
        self.segments = None if segment is None else segments(heads.layer_map, segment, lora.layers)
        for depth in self._depths():
            heads.at(depth)
        self._blocks = BlockRunner(source)

    def _depths(self) -> set[int]:
        if self.segments is None:
            return {self.lm.depth}
        return {depth for segment in self.segments for depth in (segment.start, segment.stop)}

    def _read_depths(self) -> set[int]:
        starts = (segment.start for segment in self.segments or ())
        return {depth for start in starts for depth in self.heads.read_by_encode(start)}

    @torch.no_grad()
    def logits(
        self, batch: TokenBatch, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """See `Runner.logits`; the texts count as finished, so every shared end of theirs is settled."""
        with locked(self.source, self.lm):
            hidden = self._last_residual(batch)
        if rows is not None and positions is not None:
            hidden = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return self.lm.architecture.logits(hidden).float()

    def session(self) -> SingleSession:
        """A fresh session."""
        return SingleSession(self.batch_session(1))

    def batch_session(self, rows: int) -> "HostedBatch":
        """A session of several texts that are stepped together."""
        return HostedBatch(self, rows)

    def _last_residual(self, batch: TokenBatch) -> Tensor:
        """h_L [B, n, d_t] of the target with the change in it."""
        if not self.strength:
            return residuals(self.lm, batch, [self.lm.depth])[self.lm.depth]
        own = self.source.encode(batch.texts)
        pairs = align(own, batch)
        if self.segments is None:
            acting = self._adding(pairs, self._whole_change(own, pairs))
        else:
            acting = self.hosting(_entries(pairs, len(batch.texts)))
        with acting:
            return residuals(self.lm, batch, [self.lm.depth])[self.lm.depth]

    @contextmanager
    def _adding(self, pairs: AlignedPairs, change: Tensor) -> Iterator[None]:
        """Add a change [N, d_t] to what the target's last block gives at N pairs."""

        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = first_output(output)
            at = pairs.row.to(hidden.device), pairs.target_position.to(hidden.device)
            return replace_output(output, hidden.index_put(at, change, accumulate=True))

        hook = self.lm.architecture.blocks[-1].register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()

    def _whole_change(self, own: TokenBatch, pairs: AlignedPairs) -> Tensor:
        """The carried change [N, d_t] at aligned pairs, the source reading its own tokens."""
        depth = self.source.depth
        at = pairs.row, pairs.source_position
        without = residuals(self.source, own, [depth])[depth][at]
        with applied(self.source, self.lora):
            adapted = residuals(self.source, own, [depth])[depth][at]
        return self.carried(self.lm.depth, adapted, without)

    def carried(self, depth: int, adapted: Tensor, without: Tensor) -> Tensor:
        """The change strength · (D(a) - D(b)) at a target depth: [..., d_s] and [..., d_s] to [..., d_t]."""
        decode = self.heads.at(depth).decode
        a, b = (states.to(self.lm.device) for states in (adapted, without))
        return (self.strength * (decode(a) - decode(b))).to(self.lm.dtype)

    @contextmanager
    def hosting(
        self,
        entries: Sequence[Sequence[tuple[int, int]]],
        cache: RaggedCache | None = None,
    ) -> Iterator[None]:
        """Let the hosted blocks act on one pass of the target.

        Args:
            entries: for each row the shared ends of the pass as (column of the pass, the source's own token
                position); position 0 is the BOS, which is read and not written, and comes first.
            cache: of the hosted blocks, each row with the LoRA and then each without; grown when the pass is
                over, emptied if it was cut short.
        """
        places, both = Places.of(entries), Places.of([*entries, *entries])
        bos = self._bos_states  # Before any hook is set, for the source may be the target itself.
        calls = self._blocks.arguments(both.position, both.valid, cache)
        states: dict[int, Tensor] = {}
        with ExitStack() as stack:
            blocks = self.lm.architecture.blocks
            for depth in self._read_depths():
                keep = partial(_keep_input, states, depth)
                stack.callback(blocks[depth].register_forward_pre_hook(keep, with_kwargs=True).remove)
            for segment in self.segments or ():
                act = partial(self._act, segment, states, places, bos, calls)
                stack.callback(blocks[segment.stop - 1].register_forward_hook(act).remove)
            stack.enter_context(_grown(cache, both.valid))
            yield

    def _act(
        self,
        segment: Segment,
        states: dict[int, Tensor],
        places: Places,
        bos: tuple[list[Tensor], list[Tensor]],
        calls: Sequence[Call],
        module: nn.Module,
        args: Any,
        output: Any,
    ) -> Any:
        """Forward hook on a segment's last target block."""
        hidden = first_output(output)
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        column = places.column.to(hidden.device)
        read = [states[depth][row, column] for depth in self.heads.read_by_encode(segment.start)]
        encode = self.heads.at(segment.start).encode
        encoded = encode(torch.cat(read, dim=-1)).to(self.source.device, self.source.dtype)
        first = (places.position == 0).to(encoded.device)[..., None]
        # The weights are read once for both: the rows with the LoRA, then the same without.
        z = torch.cat([torch.where(first, own[segment.source_start], encoded) for own in bos])
        with applied(self.source, self.lora, first_half=True):
            adapted, without = self._blocks.run(z, calls, segment.blocks).chunk(2)
        written = (places.valid & (places.position > 0)).to(hidden.device)[..., None]
        change = self.carried(segment.stop, adapted, without) * written
        return replace_output(output, hidden.index_put((row, column), change, accumulate=True))

    @cached_property
    def _bos_states(self) -> tuple[list[Tensor], list[Tensor]]:
        """The source's h_l [d_s] at its BOS, l = 0 … L_s, with and without the LoRA; it sees nothing else."""
        return self._read_bos(1.0), self._read_bos(0.0)

    def _read_bos(self, strength: float) -> list[Tensor]:
        depths = range(self.source.depth + 1)
        with applied(self.source, self.lora, strength):
            states = residuals(self.source, self.source.encode([""]), depths)
        return [states[depth][0, 0] for depth in depths]

    @cached_property
    def gauge(self) -> TokenGauge:
        """What the source's tokens say."""
        return TokenGauge(self.source)


@contextmanager
def _grown(cache: RaggedCache | None, valid: Tensor) -> Iterator[None]:
    """Enter the columns of a pass in the cache that it filled."""
    if cache is None:
        yield
        return
    try:
        yield
    except BaseException:
        cache.clear()
        raise
    cache.grow(valid)


def _keep_input(states: dict[int, Tensor], depth: int, module: nn.Module, args: Any, kwargs: Any) -> None:
    states[depth] = args[0] if args else kwargs["hidden_states"]


def _entries(pairs: AlignedPairs, rows: int) -> list[list[tuple[int, int]]]:
    """The BOS of each of B rows, and its aligned pairs."""
    entries = [[(0, 0)] for _ in range(rows)]
    columns = (pairs.row.tolist(), pairs.target_position.tolist(), pairs.source_position.tolist())
    for row, column, position in zip(*columns, strict=True):
        entries[row].append((column, position))
    return entries
