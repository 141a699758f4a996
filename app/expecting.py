"""How long what comes next may take on this device, and how that is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from app.backend import Backend
from app.facts import FitRequest, ModelFacts, TranslateRequest
from app.paces import Paces
from cast.progress import OnProgress, Progress

T = TypeVar("T")
Request = FitRequest | TranslateRequest
# Stages that hang on the network or the disk, and not on the work.
_BEFORE = ("load", "convert", "text")
_OF_A_FIT = "activations"


@dataclass(frozen=True)
class Expected:
    """Seconds that work may take (0 runs at once), and from how many jobs like it that is known."""

    seconds: float
    jobs: int


class Expectations:
    """What the backend reckons from sizes, put right by what earlier jobs took."""

    def __init__(self, backend: Backend, paces: Paces) -> None:
        self._backend = backend
        self._paces = paces

    def of(self, request: Request, source: ModelFacts, target: ModelFacts) -> Expected:
        """Of *Train heads*, or of *Translate* where the pair has the heads that it takes."""
        pace = self._paces.of(_name(request), source.parameters + target.parameters)
        return Expected(self._reckoned(request, source, target) * pace.factor, pace.jobs)

    def timed(
        self,
        request: Request,
        facts: Callable[[], tuple[ModelFacts, ModelFacts]],
        work: Callable[[OnProgress], T],
        on_progress: OnProgress,
    ) -> T:
        """Do the work, and learn from what it took once it has come to its end."""
        watch = _Watch(on_progress, isinstance(request, TranslateRequest))
        made = work(watch)
        if (taken := watch.seconds()) is not None:
            source, target = facts()
            reckoned = self._reckoned(request, source, target)
            self._paces.learn(_name(request), source.parameters + target.parameters, reckoned, taken)
        return made

    def _reckoned(self, request: Request, source: ModelFacts, target: ModelFacts) -> float:
        if isinstance(request, FitRequest):
            return self._backend.fit_seconds(request, source, target)
        return self._backend.translate_seconds(request, source, target)


class _Watch:
    """Passes progress on, and measures from the first report of the work itself."""

    def __init__(self, on_progress: OnProgress, translates: bool) -> None:
        self._on_progress = on_progress
        self._translates = translates
        self._started: float | None = None
        self._fitted_heads = False

    def __call__(self, progress: Progress) -> None:
        self._on_progress(progress)
        if self._started is None and progress.stage not in _BEFORE:
            self._started = time.monotonic()
        self._fitted_heads |= progress.stage == _OF_A_FIT

    def seconds(self) -> float | None:
        """What it took; None where that tells nothing, as of a translation that fitted heads first."""
        if self._started is None or (self._translates and self._fitted_heads):
            return None
        return time.monotonic() - self._started


def _name(request: Request) -> str:
    return f"heads-{request.kind}" if isinstance(request, FitRequest) else request.selection.mode


def in_words(mode: str, translate: Expected, fit: Expected, *, hosted: bool = False, prompts: int = 0) -> str:
    """What comes next and how long it may take, and how that is known.

    Args:
        mode: as it is called.
        translate: of *Translate*.
        fit: of *Train heads*.
        hosted: whether the mode runs at once, and *Translate* makes a compiled LoRA of it.
        prompts: how many are given to the fit.
    """
    given = f" with {prompts:,} prompt{'s' * (prompts > 1)}" if prompts else ""
    takes = f"takes {about(translate.seconds)}"
    told = (
        f"mode {mode} runs at once, a plain LoRA{given} {takes}" if hosted else f"mode {mode}{given} {takes}"
    )
    return (
        f"On this device {told}, and training heads (effort good) takes {about(fit.seconds)}. "
        f"{known_from(translate)}"
    )


def known_from(expected: Expected) -> str:
    """Where an expectation comes from, in a sentence."""
    ground = "Reckoned from the models' sizes and a quick probe of this device"
    if not expected.jobs:
        return f"{ground}; no such job has run here yet, so it is rough."
    jobs = "the last such job" if expected.jobs == 1 else f"the last {expected.jobs} such jobs"
    return f"{ground}, put right by what {jobs} took here."


def about(seconds: float) -> str:
    """A rough time as people say it."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
