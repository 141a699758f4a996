"""Fits a plain LoRA of the target whose effect is the source adapter's, carried over, on text without labels.

What is lowered is in `cast.goals`; here are the kernels to start from and the optimiser's loop.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from cast.activations import residuals_by_length
from cast.adapters import Kernel, Lora, applied
from cast.corpus import Passage
from cast.errors import CorpusError
from cast.exciting import evenly
from cast.goals import Goal, GoalOn, Lesson, Outcome
from cast.models import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore
from cast.recipes import Quality, TranslationConfig

HELD_OUT_BATCHES = 2
"""Batches that nothing is fitted on: the first of general text, and of answers where there are enough."""
_TEST_EVERY = 25
_PATIENCE = 4
# The end of a schedule that is run whatever came before: what high rates leave unsettled, low ones settle.
_SETTLING = 0.25
# Share by which a result must be lower to count.
_BETTER = 1e-3
# What tells that a skill is learnt: the share of the held-out answers that are said, or, where long ones may
# differ in a word, the share of the held-out effect that is still missing.
_ENOUGH_SAID, _LITTLE_MISSING = 0.95, 0.15
_WARMUP = 20
_CLIP = 1.0
# Batches whose texts are sorted by length together.
_SORTED_BATCHES = 4
# Muon learns in a round what takes AdamW three on models of a few million parameters, and less than AdamW on
# those of hundreds of millions, at any rate that was tried (`docs/experiments.md`).
_SMALL_RATE, _LARGE_RATE = 0.02, 1e-3
_MOMENTUM, _BETAS = 0.9, (0.9, 0.99)


def starting_kernels(target: LanguageModel, rank: int, seed: int) -> tuple[Kernel, ...]:
    """Kernels to start the fit from, on every linear site of the target whose role is known, as PEFT starts.

    A is uniform and small, B zero. A start from what the source's kernels listen to, carried over by site
    maps, teaches no more (`docs/experiments.md`).

    Args:
        target: the model that shall have the LoRA.
        rank: of the kernels.
        seed: of A.
    """
    random = torch.Generator().manual_seed(seed)
    kernels, sites = [], target.architecture.sites
    for site in [site for site in sites if site.role != "other"] or sites:
        a = (torch.rand(rank, site.in_features, generator=random) * 2 - 1) / math.sqrt(site.in_features)
        b = torch.zeros(site.out_features, rank)
        kernels.append(Kernel(site, a.to(target.device), b.to(target.device), 1.0))
    return tuple(kernels)


@dataclass(frozen=True)
class Compiled:
    """A fitted LoRA, still as bare kernels, with what was measured on held-out text."""

    kernels: tuple[Kernel, ...]
    quality: Quality
    tokens: int
    """Target tokens that were fitted on."""
    steps: int
    """Steps until the best held-out result."""


class _TextPool:
    """Batches without end: general text in shuffled passes, with a share of answered prompts mixed in.

    Texts of like length stand together, which saves a third of the padding.
    """

    def __init__(
        self, texts: Sequence[Passage], answers: Sequence[Passage], config: TranslationConfig
    ) -> None:
        self._random = torch.Generator().manual_seed(config.seed)
        self._mixed_in = config.answers_a_batch if answers else 0
        self._size = config.batch_size - self._mixed_in
        self._texts, self._answers = self._passes(texts), answers
        self._weights = torch.tensor(evenly(answers))
        self._due: list[list[Passage]] = []

    def _passes(self, texts: Sequence[Passage]) -> Iterator[Passage]:
        while True:
            for index in torch.randperm(len(texts), generator=self._random).tolist():
                yield texts[index]

    def batch(self) -> list[Passage]:
        """The next batch."""
        if not self._due:
            drawn = islice(self._texts, _SORTED_BATCHES * self._size)
            ordered = sorted(drawn, key=lambda passage: len(passage.text))
            order = torch.randperm(_SORTED_BATCHES, generator=self._random).tolist()
            self._due = [ordered[place * self._size : (place + 1) * self._size] for place in order]
        return [*self._mixed(), *self._due.pop()]

    def _mixed(self) -> list[Passage]:
        if not self._mixed_in:
            return []
        twice = len(self._answers) < self._mixed_in
        drawn = torch.multinomial(self._weights, self._mixed_in, twice, generator=self._random)
        return [self._answers[index] for index in drawn.tolist()]


class _Lessons:
    """A pool's batches as a fit reads them: those of a round as they come, then all so far in new orders."""

    def __init__(self, goal: Goal, pool: _TextPool, config: TranslationConfig) -> None:
        self._goal, self._pool = goal, pool
        self._a_round, self._wanted = config.lessons, 0
        self._random = torch.Generator().manual_seed(config.seed)
        self._known: list[Lesson] = []
        self._due: list[Lesson] = []

    @property
    def tokens(self) -> int:
        """Different tokens of the target that were read."""
        return sum(lesson.tokens for lesson in self._known)

    def more(self) -> None:
        """Let as many new lessons follow as a round reads."""
        self._wanted += self._a_round

    def next(self) -> Lesson:
        """The next lesson."""
        if len(self._known) < self._wanted:
            self._known.append(self._goal.on(self._pool.batch()))
            return self._known[-1]
        if not self._due:
            order = torch.randperm(len(self._known), generator=self._random).tolist()
            self._due = [self._known[place] for place in order]
        return self._due.pop()


def compile_lora(
    target: LanguageModel,
    goal_on: GoalOn,
    start: Sequence[Kernel],
    texts: Sequence[str],
    config: TranslationConfig,
    *,
    answers: Sequence[Passage] = (),
    on_progress: OnProgress = ignore,
) -> Compiled:
    """Fit the kernels of a plain LoRA so that the target changes as the source does.

    Muon, or AdamW for large targets, in float32 whatever the models' number type, rounds of a cosine
    schedule, and the kernels of the best held-out result. Once that result no longer improves, a round goes
    on with the end of its schedule. Another follows while held-out answers are not yet said, more than a
    little of the effect is missing and the last one lowered the result, up to the number configured.

    Args:
        target: the model that shall have the LoRA.
        goal_on: makes the goal, from batches of text that are held out.
        start: the kernels to start from; they are not changed.
        texts: general text. The first two batches are held out.
        config: steps, batch, weights of the terms.
        answers: prompts with the adapted source's answers, to mix in; of these as well two batches are held
            out, or what is a quarter of them.
        on_progress: gets stage `compile`, in later rounds `compile 2` and so on, with `missing` (1 for the
            bare target) and `kl` of held-out text.

    Raises:
        CorpusError: there are fewer than three batches of text.
        AdapterError: the adapter has no effect on the text.
    """
    held, passages, answers = _split([Passage(text) for text in texts], answers, config)
    goal = goal_on(held)
    fit = _Fit(target, goal, start, config)
    lessons = _Lessons(goal, _TextPool(passages, answers, config), config)
    best, done = _Best(fit.measure(), 0, fit.kernels()), 0
    for turn in range(1, config.rounds + 1):
        before = best
        stage = "compile" if turn == 1 else f"compile {turn}"
        best, done = _round(fit, lessons, best, done, stage, on_progress)
        said, missing = best.outcome.said, best.outcome.total
        if best is before or said is None or said >= _ENOUGH_SAID or missing <= _LITTLE_MISSING:
            break
    return Compiled(best.kernels, goal.quality(fit.run), lessons.tokens, best.step)


@dataclass(frozen=True)
class _Best:
    """The kernels with the best held-out result so far."""

    outcome: Outcome
    step: int
    kernels: tuple[Kernel, ...]


def _round(
    fit: "_Fit",
    lessons: _Lessons,
    best: _Best,
    done: int,
    stage: str,
    on_progress: OnProgress,
) -> tuple[_Best, int]:
    """One schedule of steps behind `done` others; the fit is left with its best kernels.

    Warm restarts (Loshchilov and Hutter, 2017): each round begins anew at the peak rate, which makes the
    result worse at first; so whether it still improves is told by the round's own results.
    """
    fit.begin()
    lessons.more()
    lowest, lowered, place, steps = math.inf, 0, 0, fit.config.steps_a_round
    settling = round((1 - _SETTLING) * steps)
    while place < steps:
        fit.step(lessons.next())
        place, done = place + 1, done + 1
        if place % _TEST_EVERY == 0 or place == steps:
            result = fit.measure()
            if result.total < lowest * (1 - _BETTER):
                lowest, lowered = result.total, place
            if result.total < best.outcome.total * (1 - _BETTER):
                best = _Best(result, done, fit.kernels())
        metrics = {"missing": best.outcome.total, "kl": best.outcome.missing}
        on_progress(Progress(stage, place, steps, metrics))
        if place < settling and place - lowered >= _PATIENCE * _TEST_EVERY:
            fit.skip(settling - place)
            place = settling
    fit.restore(best.kernels)
    return best, done


def _split(
    texts: Sequence[Passage], answers: Sequence[Passage], config: TranslationConfig
) -> tuple[list[Sequence[Passage]], Sequence[Passage], Sequence[Passage]]:
    """Held-out batches, and the texts and answers that are left."""
    size = config.batch_size
    if len(texts) <= HELD_OUT_BATCHES * size:
        raise CorpusError(
            f"There are {len(texts)} texts, and a compiled translation needs more than "
            f"{HELD_OUT_BATCHES * size}; give more general text, or a smaller batch size."
        )
    held = [texts[start * size : (start + 1) * size] for start in range(HELD_OUT_BATCHES)]
    # No more than a quarter of them.
    spared = min(HELD_OUT_BATCHES, len(answers) // (4 * size)) if config.prompt_share else 0
    # They come in an order of their own: the given ones first, or the surest, or form by form.
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(config.seed)).tolist()
    mixed = [answers[place] for place in order]
    held += [mixed[start * size : (start + 1) * size] for start in range(spared)]
    return held, texts[HELD_OUT_BATCHES * size :], mixed[spared * size :]


class _Fit:
    """Trainable kernels on the target, with their optimiser."""

    def __init__(
        self,
        target: LanguageModel,
        goal: Goal,
        start: Sequence[Kernel],
        config: TranslationConfig,
    ) -> None:
        self._target, self._goal = target, goal
        self._sites = [kernel.site for kernel in start]
        self._sides = [(_parameter(kernel.a), _parameter(kernel.scaling * kernel.b)) for kernel in start]
        self._parameters = [side for sides in self._sides for side in sides]
        self.config = config

    def begin(self) -> None:
        """Start the schedule, from the kernels as they stand.

        A step of Muon (Jordan, 2024) moves all directions of a matrix alike, those too in which gradients are
        small.
        """
        config, rate = self.config, learning_rate(self._target, self.config)
        self._optimizer: torch.optim.Optimizer
        if self._target.is_small:
            self._optimizer = torch.optim.Muon(
                self._parameters, lr=rate, momentum=_MOMENTUM, weight_decay=0.0
            )
        else:
            self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, betas=_BETAS, weight_decay=0.0)
        self._schedule = get_cosine_schedule_with_warmup(
            self._optimizer, min(_WARMUP, config.steps_a_round // 4), config.steps_a_round
        )

    def skip(self, steps: int) -> None:
        """Go on with the rate of so many steps later."""
        for _ in range(steps):
            self._schedule.step()

    def kernels(self) -> tuple[Kernel, ...]:
        """A copy of the kernels as they stand."""
        return tuple(
            Kernel(site, a.detach().cpu().clone(), b.detach().cpu().clone(), 1.0)
            for site, (a, b) in zip(self._sites, self._sides, strict=True)
        )

    def restore(self, kernels: Sequence[Kernel]) -> None:
        """Put back kernels as they once stood."""
        with torch.no_grad():
            for kernel, (a, b) in zip(kernels, self._sides, strict=True):
                a.copy_(kernel.a)
                b.copy_(kernel.b)

    def run(self, tokens: TokenBatch, depths: Sequence[int]) -> dict[int, Tensor]:
        """The target's states with the kernels as they stand; gradients reach these.

        Products are taken in the target's number type: in float32 they would cost as much as a block itself.
        """
        dtype = self._target.dtype
        kernels = (
            Kernel(site, a.to(dtype), b.to(dtype), 1.0)
            for site, (a, b) in zip(self._sites, self._sides, strict=True)
        )
        with applied(self._target, Lora("compiled", self._target.name, tuple(kernels))):
            return residuals_by_length(self._target, tokens, depths)

    def step(self, lesson: Lesson) -> None:
        """One step of the optimiser."""
        lesson.loss(self.run).backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def measure(self) -> Outcome:
        """The goal on held-out text."""
        return self._goal.measure(self.run)


def learning_rate(target: LanguageModel, config: TranslationConfig) -> float:
    """Peak of the schedule: the one chosen, or that for a target of this size."""
    if config.learning_rate is not None:
        return config.learning_rate
    return _SMALL_RATE if target.is_small else _LARGE_RATE


def _parameter(value: Tensor) -> Tensor:
    return value.detach().float().clone().requires_grad_()
