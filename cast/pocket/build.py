"""Rebuild the pocket zoo, piece by piece, and verify what its cards record.

A piece that stands is kept; remove its folder to have it made again. Base models come first, since every
adapter is trained on the shipped, rounded weights of its base; heads come last. A kill loses little: base
models and heads leave checkpoints, adapters take a minute each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch

from cast import adapters, models
from cast.errors import ModelError, RequestError
from cast.fitting import fit_pocket_heads
from cast.models import LanguageModel
from cast.pocket.adapting import RECIPES, Scores, save_adapter, score, train_adapter
from cast.pocket.cards import measure_base
from cast.pocket.measure import passes
from cast.pocket.pretrain import train_base
from cast.pocket.registry import (
    MODEL_NAMES,
    PREFIX,
    Card,
    PocketAdapter,
    adapter_folder,
    heads_folder,
    model_card,
    model_folder,
)
from cast.pocket.registry import adapters as shipped_adapters
from cast.pocket.registry import models as shipped_models
from cast.pocket.specs import SPECS
from cast.pocket.tasks import TASKS
from cast.progress import OnProgress, Progress, ignore
from cast.storage import cache_folder

# Processors differ in the last bits, which now and then turn one answer out of two hundred.
SCORE_TOLERANCE = 0.02
BITS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Check:
    """One recorded figure beside the same figure measured now."""

    what: str
    recorded: float
    measured: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the two agree."""
        return abs(self.recorded - self.measured) <= self.tolerance


def build(only: Sequence[str] | None = None, on_progress: OnProgress = ignore) -> tuple[str, ...]:
    """Make what is missing of the zoo; returns the names of adapters that did not learn and are not kept.

    Args:
        only: models (`llama`), adapters (`llama/mood`, or `llama/*`, or `*/mood`) and heads
            (`llama-to-mistral`) to make; all by default.
        on_progress: gets every stage, with losses and scores.
    """
    wanted = _wanted(only)
    for name in MODEL_NAMES:
        if name in wanted and not (model_folder(name) / "config.json").is_file():
            work = cache_folder() / "pocket"
            train_base(SPECS[name], model_folder(name), work=work, on_progress=on_progress)
    dropped = []
    for model in shipped_models():
        for task in RECIPES:
            folder = adapter_folder(model, task)
            if f"{model}/{task}" not in wanted or (folder / "adapter_config.json").is_file():
                continue
            if not passes(model_card(model)["competence"]):
                raise ModelError(f"pocket:{model} does not pass its competence probes; it gets no adapters.")
            trained = train_adapter(_loaded(model), TASKS[task], RECIPES[task], on_progress=on_progress)
            figures = {"base": trained.base.score, "adapted": trained.adapted.score}
            on_progress(Progress(f"scored {model}/{task}", 1, 1, figures))
            if trained.teaches:
                save_adapter(trained, folder, model, task)
            else:
                dropped.append(f"{model}/{task}")
    _build_heads(wanted, on_progress)
    return tuple(dropped)


def _build_heads(wanted: frozenset[str], on_progress: OnProgress) -> None:
    for source, target in permutations(shipped_models(), 2):
        folder = heads_folder(source, target)
        if folder.name in wanted and not (folder / "heads.json").is_file():
            checkpoint = cache_folder() / "pocket" / folder.name
            heads = fit_pocket_heads(source, target, checkpoint=checkpoint, on_progress=on_progress)
            heads.save(folder, replace=True)


def verify(only: Sequence[str] | None = None, on_progress: OnProgress = ignore) -> list[Check]:
    """Measure every recorded score again, from the shipped files."""
    wanted = _wanted(only)
    torch.set_num_threads(1)
    checks: list[Check] = []
    for name in (name for name in shipped_models() if name in wanted):
        on_progress(Progress("verify", len(checks), 0))
        checks += _check_base(name, model_card(name), measure_base(model_folder(name)))
    for model in shipped_models():
        chosen = [item for item in shipped_adapters(model) if f"{model}/{item.task}" in wanted]
        if not chosen:
            continue
        lm = _loaded(model)
        for item in chosen:
            on_progress(Progress("verify", len(checks), 0))
            task = TASKS[item.task]
            base = Scores.of(score(lm, None, task))
            adapted = Scores.of(score(lm, adapters.read(item.folder, lm), task))
            checks += [*_check_side(item, "base", base), *_check_side(item, "adapted", adapted)]
    return checks


def _loaded(model: str) -> LanguageModel:
    return models.load(PREFIX + model, device="cpu", dtype=torch.float32)


def _check_base(name: str, card: Card, now: Card) -> Iterator[Check]:
    yield Check(f"{name} bits per byte", card["bits_per_byte"], now["bits_per_byte"], BITS_TOLERANCE)
    yield Check(f"{name} parameters", card["parameters"], now["parameters"], 0)
    for kind, recorded in card["competence"].items():
        yield Check(f"{name} {kind}", recorded, now["competence"][kind], SCORE_TOLERANCE)


def _check_side(item: PocketAdapter, side: str, now: Scores) -> Iterator[Check]:
    recorded, what = item.card[side], f"{item.model}/{item.task} {side}"
    yield Check(f"{what} score", recorded["score"], now.score, SCORE_TOLERANCE)
    yield Check(f"{what} exact", recorded["exact"], now.exact, SCORE_TOLERANCE)
    yield Check(f"{what} bits per byte", recorded["bits_per_byte"], now.bits_per_byte, BITS_TOLERANCE * 5)


def _wanted(only: Sequence[str] | None) -> frozenset[str]:
    """The pieces named, with `*` for any model or task.

    Raises:
        RequestError: a name fits no piece.
    """
    pieces = [
        *MODEL_NAMES,
        *(f"{model}/{task}" for model in MODEL_NAMES for task in RECIPES),
        *(heads_folder(source, target).name for source, target in permutations(MODEL_NAMES, 2)),
    ]
    if not only:
        return frozenset(pieces)
    found: set[str] = set()
    for name in only:
        short = name.removeprefix(PREFIX)
        fitting = [piece for piece in pieces if _fits(short, piece)]
        if not fitting:
            raise RequestError(
                f"There is no {name!r} in the pocket zoo; name a model, an adapter (llama/mood) or heads."
            )
        found.update(fitting)
    return frozenset(found)


def _fits(pattern: str, piece: str) -> bool:
    left, right = pattern.split("/"), piece.split("/")
    return len(left) == len(right) and all(a in ("*", b) for a, b in zip(left, right, strict=True))
