"""What one visitor has chosen: names and job ids, never models.

A workspace travels through the visitor's browser, so what comes back from there is checked before use.
Nothing here knows of Gradio.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from cast.errors import RequestError

MODES = ("hosted", "compiled", "instant", "kernel")
PLAIN_MODES = ("compiled", "instant")
"""The modes that end in a plain LoRA; the others end in a recipe."""
MAX_STRENGTH = 2.0
MAX_SEGMENT = 1000
MAX_TOKENS = 256
MAX_TEMPERATURE = 1.5
UNCHOSEN = "Choose a source model, a target model and an adapter first."
_MAX_NAME = 300
_WHOLE = {"segment": (0, MAX_SEGMENT), "max_tokens": (1, MAX_TOKENS), "seed": (0, 2**31 - 1)}
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Pair:
    """An ordered pair of models, by name."""

    source: str
    target: str

    def check(self) -> None:
        """Refuse a pair that is not chosen yet.

        Raises:
            RequestError: a model is missing.
        """
        if not (self.source and self.target):
            raise RequestError("Choose a source model and a target model first.")


@dataclass(frozen=True)
class Selection:
    """What is translated, and how: everything that names a result.

    `segment` is of mode `hosted` only: the target blocks that share one encode and one decode; None is the
    whole source stack.
    """

    source: str
    target: str
    adapter: str
    mode: str = "hosted"
    segment: int | None = None

    @classmethod
    def of(
        cls,
        source: str | None,
        target: str | None,
        adapter: str | None,
        mode: str = "hosted",
        segment: int | None = None,
    ) -> "Selection":
        """The choice that widgets hold: an empty picker gives None, and 0 blocks are the whole stack."""
        blocks = int(segment or 0) if mode == "hosted" else 0
        return cls(source or "", target or "", adapter or "", mode, blocks or None)

    def check(self) -> None:
        """Refuse a choice of which something is missing.

        Raises:
            RequestError: a model or the adapter is.
        """
        if not (self.source and self.target and self.adapter):
            raise RequestError(UNCHOSEN)

    @property
    def pair(self) -> Pair:
        """The two models without the adapter."""
        return Pair(self.source, self.target)

    @property
    def by_words(self) -> bool:
        """Whether words cross from source to target, and no states: the whole stack needs no heads."""
        return self.mode == "hosted" and self.segment is None

    @property
    def way(self) -> str:
        """How the change is carried, in words."""
        if self.segment is None:
            return self.mode
        return f"{self.mode}, {self.segment} block{'s' * (self.segment > 1)} a segment"


@dataclass(frozen=True)
class Beside:
    """What stands beside the four panes, and how strongly the adapters in them act that are not carried.

    `retrained` is an adapter of the target to compare with; `second_mode` carries the change once more.
    """

    source_strength: float = 1.0
    retrained: str = ""
    retrained_strength: float = 1.0
    second_mode: str = ""
    second_strength: float = 1.0


@dataclass(frozen=True)
class Workspace:
    """A visitor's choices; an empty string stands for *none*, a segment of 0 for the whole stack.

    An empty `retrained` is the adapter that ships for the target and the same task, where one does.
    """

    source: str = ""
    target: str = ""
    adapter: str = ""
    mode: str = "hosted"
    segment: int = 0
    strength: float = 1.0
    prompt: str = ""
    max_tokens: int = 48
    temperature: float = 0.0
    seed: int = 0
    one_line: bool = True
    source_strength: float = 1.0
    retrained: str = ""
    retrained_strength: float = 1.0
    second_mode: str = ""
    second_strength: float = 1.0

    @property
    def selection(self) -> Selection:
        """The part of the workspace that names a translation."""
        return Selection.of(self.source, self.target, self.adapter, self.mode, self.segment)

    @classmethod
    def of(cls, selection: Selection) -> "Workspace":
        """The workspace of a choice, with what a choice does not hold at its default."""
        chosen = (selection.source, selection.target, selection.adapter)
        return cls(*chosen, selection.mode, selection.segment or 0)

    def choice(self) -> dict[str, str]:
        """Models and adapter as a flat JSON object that `from_json` reads."""
        return {"source": self.source, "target": self.target, "adapter": self.adapter}

    def settings(self) -> dict[str, str | float | bool]:
        """Everything else as a flat JSON object that `from_json` reads."""
        return {name: value for name, value in asdict(self).items() if name not in self.choice()}

    @classmethod
    def from_json(cls, *parts: object) -> "Workspace":
        """Read what a browser kept, in one part or several; what does not fit is left at its default."""
        kept = {name: value for part in parts for name, value in _fitting(cls, part).items()}
        for name in kept:
            if name.endswith("strength"):
                kept[name] = clamp_strength(kept[name])
            elif name == "temperature":
                kept[name] = float(kept[name])
        return cls(**kept)


@dataclass(frozen=True)
class Attached:
    """What a visitor has started and opened; an empty string stands for *none*.

    `earlier_job` is the translation before the last one, so that two can be compared. `folder` is the
    translated folder that was opened last, and is empty again once *Translate* is pressed.
    `adopt` is set until the finished translation's mode has become the chosen one, be it after a reload.
    """

    translate_job: str = ""
    heads_job: str = ""
    folder: str = ""
    adopt: bool = False
    earlier_job: str = ""

    def to_json(self) -> dict[str, str | bool]:
        """A flat JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "Attached":
        """Read what a browser kept; whatever does not fit is left out."""
        return cls(**_fitting(cls, value))


def is_id(value: object) -> bool:
    """Whether a value is an id as `uuid4().hex` writes it."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def clamp_strength(value: float) -> float:
    """A strength inside the range that the page offers."""
    return min(MAX_STRENGTH, max(0.0, float(value)))


def _fitting(cls: type[Workspace] | type[Attached], value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {f.name: value[f.name] for f in fields(cls) if _fits(f.name, value.get(f.name))}


def _fits(name: str, value: object) -> bool:
    if name in ("adopt", "one_line"):
        return isinstance(value, bool)
    if name in _WHOLE:
        low, high = _WHOLE[name]
        return type(value) is int and low <= value <= high
    if name.endswith("strength") or name == "temperature":
        # Outside of its range a strength is clamped; a temperature is not meant.
        number = type(value) in (int, float) and value == value
        return number and (name != "temperature" or 0 <= cast(float, value) <= MAX_TEMPERATURE)
    if not isinstance(value, str):
        return False
    if name in ("mode", "second_mode"):
        return value in MODES or (name == "second_mode" and value == "")
    if name.endswith("_job"):
        return value == "" or is_id(value)
    return len(value) <= (4000 if name == "prompt" else _MAX_NAME)
