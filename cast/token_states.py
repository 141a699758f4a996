"""What two models hold at the same places of a text: residual states, with and without an adapter.

The places are chosen from the tokens alone, before a model runs: only their rows are kept, so memory depends
on the places and the depths that are asked for, never on the text.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cast.activations import captured, residuals
from cast.adapters import Lora, applied
from cast.alignment import AlignedPairs, align
from cast.errors import CorpusError
from cast.models import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore
from cast.runners import Runner

Kind = Literal["word", "capitalised word", "rest of a word", "number", "punctuation", "space"]
Turns = Callable[[], AbstractContextManager[object]]

# Fewer places have no neighbourhoods to speak of.
FEWEST_PLACES = 10
_CONTEXT = 32
_MAX_LENGTH = 256
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+|\n+")


@dataclass(frozen=True)
class TokenPlace:
    """One token of the target where a token of the source ends as well, in its text."""

    token: str
    """As it stands in the text."""
    context: str
    """The text up to and with the token, shortened from the left."""
    after: str
    """The text behind it, shortened from the right."""
    text: int
    """Which text it is of."""
    sentence: int
    """Which sentence it is of, counted through all texts."""
    position: int
    """Its place in the target's row, BOS being 0."""
    kind: Kind


@dataclass(frozen=True, eq=False)
class TokenStates:
    """Residual states of both models at N places; row i of every tensor belongs to place i."""

    places: tuple[TokenPlace, ...]
    source: Mapping[int, Tensor]
    """Source depth → [N, d_s] float32 on the CPU."""
    target: Mapping[int, Tensor]
    """Target depth → [N, d_t]."""
    adapted: Mapping[int, Tensor] | None
    """The source with its adapter; None without one."""
    translated: Mapping[int, Tensor] | None
    """The target with the translation; None without one."""


@dataclass(frozen=True)
class _Chunk:
    """A batch of texts as both models' tokens, and which of its pairs were chosen."""

    source: TokenBatch
    target: TokenBatch
    pairs: AlignedPairs

    def take(self, rows: Tensor) -> "_Chunk":
        return _Chunk(
            self.source, self.target, AlignedPairs(*(column[rows] for column in self.pairs.columns()))
        )


@torch.no_grad()
def read_states(
    source: LanguageModel,
    target: LanguageModel,
    texts: Iterable[str],
    *,
    points: int,
    source_depths: Iterable[int],
    target_depths: Iterable[int],
    lora: Lora | None = None,
    translated: Runner | None = None,
    seed: int = 0,
    batch_size: int = 16,
    turns: Turns = nullcontext,
    on_progress: OnProgress = ignore,
) -> TokenStates:
    """Read the states of both models at places drawn at random from held-out text.

    Args:
        source: the source model.
        target: the target model.
        texts: only as much is read as is needed: twice as many tokens as are kept, so that they come from
            many texts.
        points: N, the places to keep; fewer where the texts hold fewer.
        source_depths: which h^S_l.
        target_depths: which h^T_l.
        lora: adapter of the source, to read the source with it as well.
        translated: the target with the translated adapter, to read the target with it as well.
        seed: of the choice of places.
        batch_size: texts at once.
        turns: makes a context that is held during each pass over a batch, and let go between two.
        on_progress: gets the stage `activations`.

    Raises:
        CorpusError: the texts hold too few aligned tokens.
        RequestError: a model has no such depth.
    """
    at_source, at_target = sorted(set(source_depths)), sorted(set(target_depths))
    chunks = _chosen(source, target, texts, points, seed, batch_size)
    wanted, done = sum(len(chunk.pairs) for chunk in chunks), 0
    read: list[tuple[dict[int, Tensor] | None, ...]] = []
    for chunk in chunks:
        on_progress(Progress("activations", done, wanted))
        row, source_position, target_position = chunk.pairs.columns()

        def picked(states: Mapping[int, Tensor], row: Tensor, position: Tensor) -> dict[int, Tensor]:
            return {depth: held[row, position].float().cpu() for depth, held in states.items()}

        with turns():
            plain = picked(residuals(source, chunk.source, at_source), row, source_position)
            own = picked(residuals(target, chunk.target, at_target), row, target_position)
            adapted = moved = None
            if lora is not None:
                with applied(source, lora):
                    adapted = picked(residuals(source, chunk.source, at_source), row, source_position)
            if translated is not None:
                with captured(target, at_target, chunk.target.input_ids.shape) as states:
                    translated.logits(chunk.target, row[:1], target_position[:1])
                moved = picked(states, row, target_position)
        read.append((plain, own, adapted, moved))
        done += len(chunk.pairs)
    on_progress(Progress("activations", done, wanted))
    joined = [_joined(side) for side in zip(*read, strict=True)]
    return TokenStates(_places(target, chunks), joined[0] or {}, joined[1] or {}, joined[2], joined[3])


def _chosen(
    source: LanguageModel,
    target: LanguageModel,
    texts: Iterable[str],
    points: int,
    seed: int,
    batch_size: int,
) -> list[_Chunk]:
    """Batches of text with the places that were drawn in each; batches without any are left out."""
    iterator, found = iter(texts), 0
    chunks: list[_Chunk] = []
    while found < 2 * points and (taken := tuple(islice(iterator, batch_size))):
        first, second = (lm.encode(taken, max_length=_MAX_LENGTH) for lm in (source, target))
        chunks.append(_Chunk(first, second, align(first, second)))
        found += len(chunks[-1].pairs)
    if found < FEWEST_PLACES:
        raise CorpusError(f"The texts hold {found} aligned tokens; {FEWEST_PLACES} are needed at least.")
    drawn = np.sort(np.random.default_rng(seed).choice(found, size=min(points, found), replace=False))
    kept, start = [], 0
    for chunk in chunks:
        stop = start + len(chunk.pairs)
        here = drawn[(drawn >= start) & (drawn < stop)] - start
        if len(here):
            kept.append(chunk.take(torch.from_numpy(here)))
        start = stop
    return kept


def _joined(batches: Sequence[dict[int, Tensor] | None]) -> dict[int, Tensor] | None:
    known = [batch for batch in batches if batch is not None]
    return {depth: torch.cat([batch[depth] for batch in known]) for depth in known[0]} if known else None


def _places(lm: LanguageModel, chunks: Sequence[_Chunk]) -> tuple[TokenPlace, ...]:
    """Every chosen place in its text."""
    places: list[TokenPlace] = []
    texts = sentences = 0
    for chunk in chunks:
        starts = [[0, *(end.end() for end in _SENTENCE_END.finditer(text))] for text in chunk.target.texts]
        before = [sentences + sum(map(len, starts[:row])) for row in range(len(starts))]
        ends = chunk.target.ends.tolist()
        for row, position in zip(chunk.pairs.row.tolist(), chunk.pairs.target_position.tolist(), strict=True):
            text, end = chunk.target.texts[row], ends[row][position]
            # Tokens that share a character share their end: the token's own text starts at the end before.
            start = max(0, max((other for other in ends[row][:position] if other < end), default=0))
            places.append(
                TokenPlace(
                    token=text[start:end],
                    context=("…" if end > _CONTEXT else "") + text[max(0, end - _CONTEXT) : end],
                    after=text[end : end + _CONTEXT] + ("…" if end + _CONTEXT < len(text) else ""),
                    text=texts + row,
                    # A token may begin with the blank that ends the sentence before it.
                    sentence=before[row] + bisect_right(starts[row], end - 1) - 1,
                    position=position,
                    kind=kind_of(text, start, end),
                )
            )
        texts += len(chunk.target.texts)
        sentences += sum(map(len, starts))
    return tuple(places)


def kind_of(text: str, start: int, end: int) -> Kind:
    """What kind of token text[start:end] is, whatever its tokenizer."""
    token = text[start:end].strip()
    if not token:
        return "space"
    if not any(character.isalnum() for character in token):
        return "punctuation"
    if any(character.isdigit() for character in token):
        return "number"
    if text[start].isalnum() and start > 0 and text[start - 1].isalnum():
        return "rest of a word"
    first = next(character for character in token if character.isalnum())
    return "capitalised word" if first.isupper() else "word"
