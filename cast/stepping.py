"""Models run piece by piece: rows of tokens that grow at their ends, and single blocks on given states.

Both know no family: masks, rotary tables and position biases come from the model's own decoder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from cast.activations import captured
from cast.errors import RequestError
from cast.models import LanguageModel
from cast.transcript import common_prefix

LOG_PROBS_KEPT = 6
"""Tokens of a row whose next-token distributions are kept; over a large vocabulary each is a megabyte."""


@contextmanager
def locked(*models: LanguageModel) -> Iterator[None]:
    """Hold the locks of several models, always in one order, so that no two runners wait for each other."""
    with ExitStack() as stack:
        for lm in sorted(models, key=id):
            stack.enter_context(lm.lock)
        yield


class RaggedCache(DynamicCache):
    """Keys and values of B rows of unequal lengths, each standing against the right edge before a pass.

    A pass appends the same number of columns to every row, of which each row may own fewer; so before the
    next one the rows are moved right again. No gap is ever left inside a row, and every layer keeps all
    columns (sliding windows are left to the mask), so a row can be cut at any place and goes on exactly.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.columns = 0
        self._lengths = [0] * rows
        self._stops = [0] * rows

    def clear(self) -> None:
        """Forget everything, also what a pass that was cut short has left in some layers."""
        self.layers.clear()
        self.columns = 0
        self._lengths = [0] * len(self._lengths)
        self._stops = [0] * len(self._stops)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the current forward pass, also for layers that were never run."""
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a query of the current forward pass may see, and the first of them."""
        return self.columns + query_length, 0

    def keep(self, row: int, length: int) -> None:
        """Forget what a row holds after its first `length` tokens."""
        cut = max(self._lengths[row] - length, 0)
        self._lengths[row] -= cut
        self._stops[row] -= cut

    def pack(self) -> None:
        """Move every row to the right edge, and free columns that none needs; due before each pass."""
        width = max(self._lengths, default=0)
        if self.columns == width and min(self._stops, default=width) == width:
            return
        index = (torch.tensor(self._stops)[:, None] - width + torch.arange(width)).clamp(min=0)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (_columns(held, index) for held in (layer.keys, layer.values))
        self.columns = width
        self._stops = [width] * len(self._stops)

    def mask_with(self, valid: Tensor) -> Tensor:
        """The attention mask [B, columns + q] of a pass over q new columns, [B, q] bool of which are real."""
        edge = self.columns - torch.tensor(self._lengths)
        return torch.cat([torch.arange(self.columns) >= edge[:, None], valid.cpu()], dim=1).long()

    def grow(self, valid: Tensor) -> None:
        """Record, after a pass, how many of the q new columns each row owns; they are its first ones."""
        counts = valid.sum(1).tolist()
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        self._stops = [self.columns + count for count in counts]
        self.columns += valid.shape[1]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        self._lengths, self._stops = ([held[row] for row in rows] for held in (self._lengths, self._stops))
        self.batch_select_indices(torch.tensor(rows, dtype=torch.long))
        self.pack()


def _columns(held: Tensor, index: Tensor) -> Tensor:
    """Columns [B, w] of keys or values [B, heads, columns, d]."""
    shape = (held.shape[0], held.shape[1], index.shape[1], held.shape[3])
    return held.gather(2, index.to(held.device)[:, None, :, None].expand(shape))


@dataclass(frozen=True)
class Step:
    """What one forward pass of a `TokenStream` runs.

    Attributes:
        starts: for each row, how many of its tokens the cache already holds.
        tokens: for each row, the new tokens.
        valid: [B, q] bool, which columns of the pass hold a token.
    """

    starts: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    valid: Tensor


class TokenStream:
    """A model that reads B rows of tokens again and again, and runs only what differs from the last time.

    Args:
        lm: the model.
        rows: B.
        acting: gives the context in which every pass runs, such as one that applies a LoRA.

    Attributes:
        states: for each row and token, the last residual h_L [d].
        passed: tokens that have run through the model so far, padding not counted.
    """

    def __init__(
        self, lm: LanguageModel, rows: int, acting: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self.lm = lm
        self._acting = acting
        self._cache = RaggedCache(rows)
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self.states: list[list[Tensor]] = [[] for _ in range(rows)]
        self._log_probs: list[dict[int, Tensor]] = [{} for _ in range(rows)]
        self.passed = 0

    def keep(self, row: int, length: int) -> None:
        """Forget what a row holds after its first `length` tokens."""
        self._cache.keep(row, length)
        del self._ids[row][length:], self.states[row][length:]
        for index in [index for index in self._log_probs[row] if index >= length]:
            del self._log_probs[row][index]

    def plan(self, rows: Sequence[Sequence[int] | None]) -> Step:
        """Cut every row to the longest prefix that it shares with the given ids; the rest is the step to run.

        A row given as None is left as it is.

        Raises:
            RequestError: a row is empty, or longer than the model's context.
        """
        starts, tokens = [], []
        for row, ids in enumerate(rows):
            wanted = self._ids[row] if ids is None else self._checked(ids)
            start = common_prefix(self._ids[row], wanted)
            tokens.append(tuple(wanted[start:]))
            starts.append(start)
            self.keep(row, start)
        self._cache.pack()
        return Step(tuple(starts), tuple(tokens), ragged([len(new) for new in tokens]))

    def _checked(self, ids: Sequence[int]) -> Sequence[int]:
        if not ids:
            raise RequestError("There is no token to go on from; begin with the BOS token.")
        limit = self.lm.context_length
        if limit is not None and len(ids) > limit:
            raise RequestError(
                f"{self.lm.name} reads {limit} tokens and the text has {len(ids)}; shorten it."
            )
        return ids

    @torch.no_grad()
    def run(self, step: Step) -> None:
        """Run a planned step; hooks that others have set on the model act."""
        if not step.valid.numel():
            return
        lm, (rows, width) = self.lm, step.valid.shape
        ids = torch.full((rows, width), lm.bos_id)
        ids[step.valid] = torch.tensor([token for new in step.tokens for token in new])
        positions = torch.tensor(step.starts)[:, None] + torch.arange(width)
        with self._whole_or_nothing(), self._acting(), captured(lm, [lm.depth]) as states:
            _decode(
                lm, self._cache, step.valid, positions.where(step.valid, torch.zeros(())).long(),
                input_ids=ids.to(lm.device),
            )  # fmt: skip
        self._cache.grow(step.valid)
        for row, new in enumerate(step.tokens):
            self._ids[row].extend(new)
            self.states[row].extend(states[lm.depth][row, : len(new)])
        self.passed += sum(map(len, step.tokens))

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """Forget every row if a pass is cut short: some layers hold its columns by then, and some do not."""
        try:
            yield
        except BaseException:
            self._cache.clear()
            self._ids, self.states = [[] for _ in self._ids], [[] for _ in self._ids]
            self._log_probs = [{} for _ in self._ids]
            raise

    def advance(self, rows: Sequence[Sequence[int] | None]) -> None:
        """Read rows of ids: plan and run."""
        self.run(self.plan(rows))

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        self._cache.select(rows)
        self._ids, self.states = [self._ids[row] for row in rows], [self.states[row] for row in rows]
        self._log_probs = [self._log_probs[row] for row in rows]

    @torch.no_grad()
    def log_probs(self, places: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Next-token log-probabilities [V] (float32) behind chosen (row, token) places.

        The last few of each row are kept, and what is new is worked out together, for a large head takes as
        long as many blocks, for one state nearly as long as for several.
        """
        new = [place for place in dict.fromkeys(places) if place[1] not in self._log_probs[place[0]]]
        if new:
            states = torch.stack([self.states[row][index] for row, index in new])
            found = torch.log_softmax(self.lm.architecture.logits(states).float(), -1)
            for (row, index), behind in zip(new, found, strict=True):
                # Not a view: the rows beside it may be forgotten sooner.
                self._log_probs[row][index] = behind.clone() if len(new) > 1 else behind
        result = [self._log_probs[row][index] for row, index in places]
        for row, _ in new:
            for index in sorted(self._log_probs[row])[:-LOG_PROBS_KEPT]:
                del self._log_probs[row][index]
        return result


class BatchSession(Protocol):
    """Several texts that are stepped together; a runner that can do so has `batch_session(rows)`."""

    def next_logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] (float32) after each of B rows of ids, the full ids so far with BOS."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""


class SingleSession:
    """One growing text, stepped as a batch of one; see `cast.runners.Session`."""

    def __init__(self, batch: BatchSession) -> None:
        self.batch = batch

    def next_logits(self, token_ids: Sequence[int]) -> Tensor:
        """See `Session.next_logits`."""
        return self.batch.next_logits([token_ids])[0]


class StreamSession:
    """The batch session of a model in a context; see `BatchSession`."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self.select = stream.select

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """See `BatchSession.next_logits`."""
        with self._stream.lm.lock:
            self._stream.advance(rows)
        last = torch.stack([states[-1] for states in self._stream.states])
        return self._stream.lm.architecture.logits(last).float()


def ragged(counts: Sequence[int]) -> Tensor:
    """[B, max(counts)] bool, true in the first counts[b] columns of row b."""
    return torch.arange(max(counts, default=0)) < torch.tensor(counts, dtype=torch.long)[:, None]


Call = tuple[tuple[Any, ...], dict[str, Any]]


class BlockRunner:
    """Runs chosen blocks of a model on given states.

    The arguments of each block (mask, rotary table, cache, …) are those that the model's own decoder hands
    out: it is run once with every block replaced by a recorder that passes its input on.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._returns_tuple: tuple[bool, ...] | None = None

    @torch.no_grad()
    def arguments(self, positions: Tensor, valid: Tensor, cache: RaggedCache | None = None) -> list[Call]:
        """The arguments of each block, its hidden states left out, for a pass over q columns.

        Args:
            positions: [B, q] int64, the position of each column as the model counts them.
            valid: [B, q] bool, which columns are real; the first real column of a row must come before its
                others.
            cache: what earlier passes left; `grow` it once the blocks were run.
        """
        calls: list[Call] = []
        embedding = self.lm.model.get_input_embeddings()
        blank = torch.zeros(
            *positions.shape, embedding.weight.shape[1], dtype=self.lm.dtype, device=self.lm.device
        )
        with ExitStack() as stack:
            for block, as_tuple in zip(self.lm.architecture.blocks, self._block_returns_tuple(), strict=True):
                stack.enter_context(_replaced_forward(block, partial(_record, calls, as_tuple)))
            _decode(self.lm, cache, valid, positions, inputs_embeds=blank)
        return calls

    def run(self, states: Tensor, calls: Sequence[Call], blocks: range) -> Tensor:
        """Run the blocks (counted from 1) on states [B, q, d]; gives [B, q, d].

        Only what is inside the blocks sees it: hooks on the blocks themselves are passed by, so that a model
        may host its own blocks.
        """
        for number in blocks:
            args, kwargs = calls[number - 1]
            states = first_output(self.lm.architecture.blocks[number - 1].forward(states, *args, **kwargs))
        return states

    @torch.no_grad()
    def _block_returns_tuple(self) -> tuple[bool, ...]:
        if self._returns_tuple is None:
            outputs: list[Any] = []
            with ExitStack() as stack:
                for block in self.lm.architecture.blocks:
                    hook = block.register_forward_hook(lambda module, args, output: outputs.append(output))
                    stack.callback(hook.remove)
                self.lm.architecture.decoder(
                    input_ids=torch.tensor([[self.lm.bos_id]], device=self.lm.device), use_cache=False
                )
            self._returns_tuple = tuple(isinstance(output, tuple) for output in outputs)
        return self._returns_tuple


@contextmanager
def _replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let an attribute of the instance hide the method of its class, or what already hides it."""
    before = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if before is None:
            del block.forward
        else:
            block.forward = before


def first_output(output: Any) -> Tensor:
    """The hidden states among what a block returns: the bare tensor, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def replace_output(output: Any, states: Tensor) -> Any:
    """What a block returns, with other hidden states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _record(calls: list[Call], as_tuple: bool, *args: Any, **kwargs: Any) -> Any:
    states, *others = (kwargs.pop("hidden_states"),) if "hidden_states" in kwargs else args
    calls.append((tuple(others), kwargs))
    return (states,) if as_tuple else states


def _decode(
    lm: LanguageModel, cache: RaggedCache | None, valid: Tensor, positions: Tensor, **inputs: Tensor
) -> None:
    """Run the decoder on new columns that follow those in the cache."""
    architecture, device = lm.architecture, lm.device
    mask = valid.long() if cache is None else cache.mask_with(valid)
    if architecture.takes_positions:
        inputs["position_ids"] = positions.to(device)
    architecture.decoder(
        attention_mask=mask.to(device), past_key_values=cache, use_cache=cache is not None, **inputs
    )
