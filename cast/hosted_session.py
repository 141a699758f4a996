"""The hosted runner at work on texts that grow token by token, with caches on both sides."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cast.boundaries import Tokens
from cast.source_reader import SourceReader
from cast.stepping import RaggedCache, TokenStream, locked
from cast.transcript import common_prefix

if TYPE_CHECKING:
    from cast.hosting import HostedRunner


class HostedBatch:
    """B texts that grow together, each with its own caches of the target and of the source.

    A text's end counts as shared once it is settled (see `cast.boundaries`). Source caches hold up to the
    longest prefix that retokenizing the text leaves as it was. Where it changes which earlier ends are
    shared, the target runs again from there if hosted blocks act inside it; the whole stack acts on the last
    residual only.

    Attributes:
        target: the target's stream.
        reader: the source on its own tokens.
    """

    def __init__(self, runner: "HostedRunner", rows: int) -> None:
        self._runner = runner
        self._shared: list[list[int]] = [[] for _ in range(rows)]
        self._cache = RaggedCache(2 * rows)
        self.target = TokenStream(runner.lm, rows)
        # Hosted blocks read the target's states; the source's own reading only tells which ends are settled.
        whole = runner.segments is None
        self.reader = SourceReader(runner.source, runner.lora, runner.gauge, runner.lm, rows, both=whole)

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] (float32) after each of B rows of ids, the full ids so far with BOS."""
        runner = self._runner
        with locked(runner.source, runner.lm):
            if not runner.strength:
                self.target.advance(rows)
                hidden = self._last_states()
            else:
                own = self.reader.read(rows)
                ends = [transcript.ends for transcript in self.reader.transcripts]
                shared = [_shared_positions(*pair) for pair in zip(ends, own, strict=True)]
                if runner.segments is None:
                    hidden = self._whole(rows, own, shared)
                else:
                    hidden = self._by_segment(rows, shared)
        return runner.lm.architecture.logits(hidden).float()

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        self._cache.select([*rows, *(row + len(self._shared) for row in rows)])
        self._shared = [self._shared[row] for row in rows]
        for held in (self.target, self.reader):
            held.select(rows)

    def _last_states(self) -> Tensor:
        return torch.stack([states[-1] for states in self.target.states])

    def _whole(
        self, rows: Sequence[Sequence[int]], own: Sequence[Tokens], shared: Sequence[list[int]]
    ) -> Tensor:
        self.target.advance(rows)
        hidden = self._last_states()
        acting = [row for row, positions in enumerate(shared) if positions[-1] > 0]
        if not acting:
            return hidden
        self.reader.advance([now if at[-1] > 0 else None for now, at in zip(own, shared, strict=True)])
        states = [
            torch.stack([read[row][shared[row][-1]] for row in acting])
            for read in (self.reader.adapted, self.reader.plain)
        ]
        hidden[acting] += self._runner.carried(self._runner.lm.depth, *states)
        return hidden

    def _by_segment(self, rows: Sequence[Sequence[int]], shared: list[list[int]]) -> Tensor:
        for row, (before, now) in enumerate(zip(self._shared, shared, strict=True)):
            self.target.keep(row, common_prefix(before, now))
        step = self.target.plan(rows)
        entries = []
        for row, (start, now) in enumerate(zip(step.starts, shared, strict=True)):
            for way in (row, row + len(rows)):
                self._cache.keep(way, sum(position >= 0 for position in now[:start]))
            entries.append(
                [(column, position) for column, position in enumerate(now[start:]) if position >= 0]
            )
        self._cache.pack()
        with self._runner.hosting(entries, self._cache) if any(entries) else nullcontext():
            self.target.run(step)
        self._shared = shared
        return self._last_states()


def _shared_positions(ends: Sequence[int], own: Tokens) -> list[int]:
    """For each target id the source position that ends at the same character; 0 for the BOS, -1 for none."""
    position = {end: index for index, end in enumerate(own.ends) if end > 0}
    return [0, *(position.get(end, -1) for end in ends[1:])]
