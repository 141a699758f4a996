"""Evaluation runs: what was asked, what is measured so far, and the files that keep them, one a run.

A visitor's runs lie in a folder of their own under the cache; its name is an id that only the visitor's
browser knows. Nothing here knows of Gradio, or imports torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from app.workspace import Selection, is_id
from cast.errors import RequestError
from cast.results import Result, result_of
from cast.storage import cache_folder, write_atomically

METHODS = {
    "hosted": "Hosted by words",
    "compiled": "Compiled LoRA",
    "instant": "Instant LoRA",
    "kernel": "Kernel, the paper's form",
    "hosted-1": "Hosted block by block",
    "hosted-states": "Hosted by states",
}
BASELINES = {
    "proxy-tuning": "Proxy tuning",
    "truncate-and-pad": "Truncate and pad",
    "naive-copy": "Naive copy",
    "cross-lora": "Cross-LoRA",
    "lora-x": "LoRA-X",
    "theseus": "Theseus",
    "bico": "BiCo",
    "reduced-rank-regression": "Reduced-rank regression",
    "self-distillation": "Self-generated distillation",
    "random-heads": "Control: random heads",
    "random-maps": "Control: random maps",
    "shuffled-layers": "Control: shuffled layers",
}
# What reads example prompts.
READ_PROMPTS = frozenset({"compiled", "self-distillation"})
# Names that results have beside those that can be asked for.
_NAMES = {
    **METHODS,
    **BASELINES,
    "compiled-prompts": "Compiled LoRA with prompts",
    "compiled-general": "Compiled LoRA, general text as it is",
}
MAX_EXAMPLES = 500
_KEPT = 50
# A run is a few kilobytes; a larger file is something else.
_LARGEST = 1 << 20


@dataclass(frozen=True)
class EvaluateRequest:
    """What *Run* asks for; an empty string stands for *none*, and for the default text.

    Steps that are None are those that suit the target.
    """

    selection: Selection
    task: str
    methods: tuple[str, ...]
    limit: int
    prompts: tuple[str, ...] = ()
    steps: int | None = None
    retrained: str = ""
    train: str = ""
    corpus: str = ""


@dataclass(frozen=True)
class TaskFacts:
    """What a task file holds."""

    name: str
    examples: int
    metric: str


@dataclass(frozen=True)
class Ends:
    """The ends of the scale: what a method is measured against. Scores are shares in [0, 1]."""

    metric: str
    examples: int
    base: float
    retrained: float | None
    source_base: float
    source_adapted: float


@dataclass(frozen=True)
class Missed:
    """A method that could not be measured, and why, in a sentence."""

    method: str
    reason: str


Told = Ends | Result | Missed


@dataclass(frozen=True)
class Run:
    """One evaluation as far as it has come; `id` is that of its job as well.

    `state` is running, done, failed or cancelled; `started` is UTC in ISO form.
    """

    id: str
    started: str
    source: str
    target: str
    adapter: str
    task: str
    methods: tuple[str, ...]
    state: str = "running"
    message: str = ""
    ends: Ends | None = None
    results: tuple[Result, ...] = ()
    missed: tuple[Missed, ...] = ()

    @property
    def title(self) -> str:
        """The task and the pair, in short."""
        task, source, target = (
            name.removeprefix("pocket:") for name in (self.task, self.source, self.target)
        )
        return f"{task}, {source} → {target}"

    @property
    def time(self) -> str:
        """When it was started, to the second: that alone tells a run from the same one asked again."""
        return f"{datetime.fromisoformat(self.started):%d %b %H:%M:%S} UTC"

    @property
    def label(self) -> str:
        """What tells this run from a visitor's other ones."""
        return f"{self.title}, {self.time}"

    @property
    def measured(self) -> int:
        """How many methods have come to their end, well or not."""
        return len(self.results) + len(self.missed)

    def told(self, told: Told) -> "Run":
        """The run with one more thing known."""
        if isinstance(told, Ends):
            return replace(self, ends=told)
        if isinstance(told, Missed):
            return replace(self, missed=(*self.missed, told))
        return replace(self, results=(*self.results, told))


@dataclass(frozen=True)
class Kept:
    """What a browser keeps of its evaluations: the id that names its folder, and the newest run's."""

    visitor: str = ""
    run: str = ""

    def to_json(self) -> dict[str, str]:
        """A flat JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "Kept":
        """Read what a browser kept; what is no id is left out."""
        if not isinstance(value, dict):
            return cls()
        return cls(**{f.name: value[f.name] for f in fields(cls) if is_id(value.get(f.name))})


class RunStore:
    """The files of all visitors' runs; the newest `_KEPT` of each visitor are kept.

    Without a folder they lie in the cache, which is made when the first of them is written or looked for.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def write(self, visitor: str, run: Run) -> None:
        """Write or rewrite a run, whole or not at all."""
        place = self._place(visitor)
        if place is None:
            raise RequestError("The page has lost track of this browser; reload it and press Run again.")
        write_atomically(place / f"{run.id}.json", (json.dumps(asdict(run), indent=1) + "\n").encode())
        for old in self.runs(visitor)[_KEPT:]:
            (place / f"{old.id}.json").unlink(missing_ok=True)

    def run(self, visitor: str, run_id: str) -> Run | None:
        """One run of a visitor; None where there is none, or its file cannot be read."""
        place = self._place(visitor)
        return _read(place / f"{run_id}.json") if place and is_id(run_id) else None

    def runs(self, visitor: str) -> list[Run]:
        """A visitor's runs, newest first."""
        place = self._place(visitor)
        found = [_read(path) for path in place.glob("*.json")] if place else []
        return sorted((run for run in found if run), key=lambda run: run.started, reverse=True)

    def forget(self, visitor: str, run_ids: Sequence[str]) -> None:
        """Delete runs of a visitor."""
        place = self._place(visitor)
        for run_id in run_ids:
            if place and is_id(run_id):
                (place / f"{run_id}.json").unlink(missing_ok=True)

    def _place(self, visitor: str) -> Path | None:
        """A visitor's folder; None for what is no id, which must not become part of a path."""
        if not is_id(visitor):
            return None
        return (self._folder or cache_folder() / "runs") / visitor


def lettered(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Runs that are shown together, each with the letter that stands for it; one alone needs none."""
    letters = ascii_uppercase if len(runs) > 1 else ("",)
    return list(zip(letters, runs, strict=False))


def method_label(method: str) -> str:
    """A method's name in words."""
    return _NAMES.get(method, method)


def _read(path: Path) -> Run | None:
    """A run from its file; None for what is none: a list of runs must not fail for one of them."""
    try:
        if path.stat().st_size > _LARGEST:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        return _run_of(record, path.stem)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _run_of(record: dict[str, Any], run_id: str) -> Run:
    names = {entry.name for entry in fields(Run)}
    kept = {name: value for name, value in record.items() if name in names}
    ends = kept["ends"]
    datetime.fromisoformat(kept["started"])
    return Run(
        **kept
        | {
            "id": run_id,
            "methods": tuple(kept["methods"]),
            "ends": None if ends is None else Ends(**ends),
            "results": tuple(result_of(result) for result in kept["results"]),
            "missed": tuple(Missed(**missed) for missed in kept["missed"]),
        }
    )
