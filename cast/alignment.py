"""Which positions of two tokenizations belong together, and which depths of two models.

Two tokenizers cut one text at different places. Where a token of each ends at the same character, both models
have read exactly the same text, so their residual states there are a pair. Elsewhere there is no pair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cast.errors import RequestError

if TYPE_CHECKING:
    from cast.models import TokenBatch

NO_PAIRS = "The text has no position where both tokenizers end a token; give longer text."


@dataclass(frozen=True)
class AlignedPairs:
    """N positions of a source and a target batch at the same character ends, by row and then by end.

    Attributes:
        row: [N] int64, the text in the batch.
        source_position: [N] int64, the token in the source's row.
        target_position: [N] int64, the token in the target's row.
    """

    row: Tensor
    source_position: Tensor
    target_position: Tensor

    def __len__(self) -> int:
        """Number of pairs N."""
        return self.row.numel()

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, source position and target position."""
        return self.row, self.source_position, self.target_position


def positions_by_end(ends: Tensor, size: int) -> Tensor:
    """Turn "where does each token end" into "which token ends here".

    Args:
        ends: [B, n] int64, the character end of each token; values below 1 (BOS, specials, padding, tokens
            before the first character) are passed over.
        size: number of columns of the result, more than the largest end.

    Returns:
        [B, size] int64: the *last* position whose end is the column, -1 where no token ends there. The last,
        because only then the bytes of a character that was split over several tokens are complete.
    """
    rows, width = ends.shape
    table = torch.full((rows, size), -1, dtype=torch.int64, device=ends.device)
    position = torch.arange(width, device=ends.device).expand(rows, width)
    position = position.masked_fill(ends < 1, -1)
    return table.scatter_reduce_(1, ends.clamp(min=0).long(), position, reduce="amax")


def align(source: "TokenBatch", target: "TokenBatch") -> AlignedPairs:
    """Pair the positions of two tokenizations of the same texts whose character ends coincide.

    Args:
        source: B texts as the source's tokens.
        target: the same texts as the target's tokens, possibly cut shorter.

    Returns:
        All pairs; none for an empty text. The BOS positions are never paired.

    Raises:
        RequestError: the batches do not hold the same texts.
    """
    if source.texts != target.texts:
        raise RequestError("The two token batches hold different texts; only the same texts can be aligned.")
    size = 1 + max([0, *(int(ends.max()) for ends in (source.ends, target.ends) if ends.numel())])
    at_source = positions_by_end(source.ends, size)
    at_target = positions_by_end(target.ends.to(at_source.device), size)
    row, end = torch.nonzero((at_source >= 0) & (at_target >= 0), as_tuple=True)
    return AlignedPairs(row, at_source[row, end], at_target[row, end])


@dataclass(frozen=True)
class LayerMap:
    """The monotone map m from target depths 0 … L_t to source depths, m(0) = 0 and m(L_t) = L_s.

    Target block l hosts the source blocks m(l-1)+1 … m(l), if any, so each source block acts once.

    Attributes:
        table: m(0), …, m(L_t).

    Raises:
        RequestError: the table is too short, does not start at 0, ends at 0, or falls.
    """

    table: tuple[int, ...]

    def __post_init__(self) -> None:
        """Hold the conditions above."""
        if len(self.table) < 2 or self.table[0] != 0 or self.table[-1] < 1:
            raise RequestError(f"A layer map must run from 0 to the source's depth, but is {self.table}.")
        if any(after < before for before, after in zip(self.table, self.table[1:], strict=False)):
            raise RequestError(f"A layer map must not fall from one depth to the next, but is {self.table}.")

    @classmethod
    def by_relative_depth(cls, source_depth: int, target_depth: int) -> "LayerMap":
        """Map each target depth to the nearest source depth of the same share of the stack (halves go up).

        Raises:
            RequestError: a depth is below 1.
        """
        if min(source_depth, target_depth) < 1:
            raise RequestError(f"Both models need a block, but they have {source_depth} and {target_depth}.")
        doubled = 2 * target_depth
        return cls(
            tuple((2 * depth * source_depth + target_depth) // doubled for depth in range(target_depth + 1))
        )

    @classmethod
    def by_likeness(cls, alike: Sequence[Sequence[float]]) -> "LayerMap":
        """The monotone map with the largest sum of alike[m(l)][l] over l, by dynamic programming.

        Args:
            alike: how alike each source depth 0 … L_s is to each target depth 0 … L_t. The two ends of each
                stack belong together whatever it says. Of equal sums the map that stays lower wins.

        Raises:
            RequestError: a model without a block.
        """
        source_depth, target_depth = len(alike) - 1, len(alike[0]) - 1
        if min(source_depth, target_depth) < 1:
            raise RequestError(f"Both models need a block, but they have {source_depth} and {target_depth}.")
        total = [0.0, *[-math.inf] * source_depth]
        came_from: list[list[int]] = []
        for depth in range(1, target_depth + 1):
            # The best source depth at or below each, from which the map may go on to it.
            origins = list(accumulate(range(source_depth + 1), partial(_better, total)))
            came_from.append(origins)
            total = [total[place] + alike[at][depth] for at, place in enumerate(origins)]
        table = [source_depth]
        for origins in reversed(came_from):
            table.append(origins[table[-1]])
        return cls(tuple(reversed(table)))

    @property
    def source_depth(self) -> int:
        """L_s."""
        return self.table[-1]

    @property
    def target_depth(self) -> int:
        """L_t."""
        return len(self.table) - 1

    def __getitem__(self, depth: int) -> int:
        """m(depth) for a target depth 0 … L_t."""
        if not 0 <= depth <= self.target_depth:
            raise IndexError(f"target depth {depth} is outside 0 … {self.target_depth}")
        return self.table[depth]

    def hosted_by(self, block: int) -> range:
        """Source blocks (1-based) that target block 1 … L_t hosts; empty where it hosts none."""
        return range(self[block - 1] + 1, self[block] + 1)

    def host_of(self, block: int) -> int:
        """The target block (1-based) that hosts source block 1 … L_s."""
        if not 1 <= block <= self.source_depth:
            raise IndexError(f"source block {block} is outside 1 … {self.source_depth}")
        return next(depth for depth, mapped in enumerate(self.table) if mapped >= block)


def below(depth: int, reads: int) -> range:
    """The last `reads` depths up to and with a depth; fewer where the stack begins."""
    return range(max(0, depth + 1 - reads), depth + 1)


def _better(total: Sequence[float], lower: int, higher: int) -> int:
    return higher if total[higher] > total[lower] else lower
