"""What a compiled translation is fitted towards, and how far held-out text says that it has come."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from cast.activations import residuals_by_length
from cast.alignment import NO_PAIRS
from cast.carrying import NO_EFFECT, CarriedBatch, Carrier, Loss, Objective
from cast.corpus import Passage
from cast.errors import AdapterError, CorpusError
from cast.models import TokenBatch
from cast.recipes import Quality, TranslationConfig
from cast.word_teacher import Told, WordTeacher

Run = Callable[[TokenBatch, Sequence[int]], dict[int, Tensor]]
"""Runs the adapted target on a batch: depths → states [B, n, d_t]."""


@dataclass(frozen=True)
class Outcome:
    """What held-out text says of the kernels as they stand."""

    total: float
    """What the fit lowers; 1 or more for the bare target."""
    missing: float
    """Nats a position."""
    said: float | None = None
    """Share of the held-out answers that are said, of those that end; None for draws and where none ends."""


@dataclass(frozen=True)
class Lesson:
    """The goal on some passages, which a fit may read several times."""

    tokens: int
    """Of the target."""
    loss: Callable[[Run], Tensor]


class Goal(Protocol):
    """What a fit lowers; 1 or more for the bare target."""

    def on(self, passages: Sequence[Passage]) -> Lesson:
        """The goal on passages."""

    def measure(self, run: Run) -> Outcome:
        """The goal on held-out text."""

    def quality(self, run: Run) -> Quality:
        """All that held-out text says, for the record."""


class GoalOn(Protocol):
    """Makes a goal that is measured on batches of text which are not fitted on.

    Raises:
        CorpusError: no tokens end together in the text.
        AdapterError: the adapter has no effect on it.
    """

    def __call__(self, held: Sequence[Sequence[Passage]], /) -> Goal:
        """The goal."""


class StatesGoal:
    """The goal that the target's states change as the carried ones do; see `cast.carrying`.

    Args:
        carrier: the two models, the source adapter and the heads.
        held: batches of text that are not fitted on.
        config: weights of the terms, seed.
        strength: factor on the carried change.

    Raises:
        CorpusError: no tokens end together in the text.
        AdapterError: the adapter has no effect on it.
    """

    def __init__(
        self, carrier: Carrier, held: Sequence[Sequence[Passage]], config: TranslationConfig, strength: float
    ) -> None:
        self.depths = carrier.depths
        self._carrier, self._config, self._strength = carrier, config, strength
        carried = (carrier.carry([passage.text for passage in chunk], strength) for chunk in held)
        self._held_out = [batch for batch in carried if len(batch.pairs)]
        if not self._held_out:
            raise CorpusError(NO_PAIRS)
        self._objective = Objective(carrier.target, self._held_out, config.seed)

    def on(self, passages: Sequence[Passage]) -> Lesson:
        """What a step lowers; states are large, so the change is carried anew each time."""
        texts, carrier = [passage.text for passage in passages], self._carrier

        def loss(run: Run) -> Tensor:
            batch = carrier.carry(texts, self._strength)
            return self._objective.total(self._objective(batch, run(batch.tokens, self.depths)), self._config)

        return Lesson(_count(carrier.target.encode(texts, max_length=carrier.max_length)), loss)

    def measure(self, run: Run) -> Outcome:
        """The objective on held-out batches, each pair counting alike."""
        total = missing = 0.0
        for share, _, _, loss in self._losses(run):
            total += share * float(self._objective.total(loss, self._config))
            missing += share * float(loss.missing)
        return Outcome(total, missing)

    def _losses(self, run: Run) -> Iterator[tuple[float, CarriedBatch, dict[int, Tensor], Loss]]:
        """Each held-out batch with its share of all pairs, the target's states on it, and its loss."""
        count = sum(len(batch.pairs) for batch in self._held_out)
        for batch in self._held_out:
            states = run(batch.tokens, self.depths)
            yield len(batch.pairs) / count, batch, states, self._objective(batch, states)

    @torch.no_grad()
    def quality(self, run: Run) -> Quality:
        """What is missing of the states by depth, and of the distribution."""
        missing, fvu = 0.0, dict.fromkeys(self.depths, 0.0)
        moved, size = dict.fromkeys(self.depths, 0.0), dict.fromkeys(self.depths, 0.0)
        for share, batch, states, loss in self._losses(run):
            missing += share * float(loss.missing)
            for depth in self.depths:
                fvu[depth] += share * float(loss.fvu_by_depth[depth])
                adapted = states[depth][batch.pairs.row, batch.pairs.target_position].float()
                moved[depth] += float((adapted - batch.base[depth]).square().sum())
                size[depth] += float(batch.base[depth].square().sum())
        return Quality(
            fvu=sum(fvu.values()) / len(fvu),
            fvu_by_depth={str(depth): value for depth, value in fvu.items()},
            effect_by_depth={str(depth): math.sqrt(moved[depth] / size[depth]) for depth in self.depths},
            kl_carried_base=self._objective.effect,
            kl_carried_adapted=missing,
        )


class WordsGoal:
    """The goal that the target says what the hosted source says.

    Args:
        teacher: of the source's words.
        held: batches of text that are not fitted on.
        watched: the goal of the states on the same text, for the record, where there are heads.

    Raises:
        AdapterError: the adapter has no effect on the text.
    """

    def __init__(
        self, teacher: WordTeacher, held: Sequence[Sequence[Passage]], watched: StatesGoal | None = None
    ) -> None:
        self.depths = (teacher.target.depth,)
        self._teacher, self._watched = teacher, watched
        self._held_out = [teacher.tell(chunk) for chunk in held]
        self._effect = self._measured(partial(residuals_by_length, teacher.target))[0]
        if self._effect <= 0:
            raise AdapterError(NO_EFFECT)

    def on(self, passages: Sequence[Passage]) -> Lesson:
        """What a step lowers; what shall be said is worked out once, here."""
        told = [self._teacher.tell(group) for group in _by_length(passages)]
        tokens = sum(_count(each.tokens) for each in told)

        def loss(run: Run) -> Tensor:
            losses = [self._teacher.missing(each, self._last(each, run)) for each in told]
            return _mean(told, losses) / self._effect

        return Lesson(tokens, loss)

    def measure(self, run: Run) -> Outcome:
        """What is missing of the words, and which answers are said."""
        missing, said = self._measured(run)
        return Outcome(missing / self._effect, missing, sum(said) / len(said) if said else None)

    def quality(self, run: Run) -> Quality:
        """What is missing of the words, with the states' FVU beside it where that can be told."""
        watched = self._watched.quality(run) if self._watched else Quality()
        outcome = self.measure(run)
        return replace(
            watched, kl_carried_base=self._effect, kl_carried_adapted=outcome.missing, said=outcome.said
        )

    @torch.no_grad()
    def _measured(self, run: Run) -> tuple[float, list[bool]]:
        """Nats a position that are missing on held-out text, and for each answer whether it is said."""
        losses, said = [], []
        for each in self._held_out:
            last = self._last(each, run)
            losses.append(self._teacher.missing(each, last))
            said += self._teacher.answers_said(each, last)
        return float(_mean(self._held_out, losses)), said

    def _last(self, told: Told, run: Run) -> Tensor:
        return run(told.tokens, self.depths)[self.depths[0]]


def _mean(told: Sequence[Told], losses: Sequence[Tensor]) -> Tensor:
    """Nats a position over several batches, from those of each."""
    positions = torch.stack([each.weights.sum() for each in told])
    return torch.stack(list(losses)) @ positions / positions.sum()


def _by_length(passages: Sequence[Passage]) -> list[Sequence[Passage]]:
    """One group; or a short and a long one where padding all to the longest would cost half as much again.

    Where short prompts are answered and passages are long, each has its own places and weights then; of one
    group, as large, less of the effect is learnt (`docs/experiments.md`).
    """
    ordered = sorted(passages, key=lambda passage: len(passage.text))
    lengths = [len(passage.text) for passage in ordered]

    def cost(place: int) -> int:
        return place * lengths[place - 1] + (len(ordered) - place) * lengths[-1]

    best = min(range(1, len(ordered) + 1), key=cost)
    return [ordered[:best], ordered[best:]] if 1.5 * cost(best) < cost(len(ordered)) else [passages]


def _count(tokens: TokenBatch) -> int:
    return int(tokens.attention_mask.sum())
