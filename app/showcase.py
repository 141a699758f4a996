"""The example that stands on the page before anything is loaded, read from `assets/showcase.json`.

It is a recording of the engine itself (`python -m app.record`), and says how it was made.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.facts import (
    AdapterFacts,
    DepthFacts,
    GridFacts,
    HeadsFacts,
    JointMap,
    LayerFacts,
    MapPoint,
    Measure,
    ModelFacts,
    SiteFacts,
)
from app.views import PANES, Pane
from app.workspace import Pair, Selection
from cast.errors import RequestError


@dataclass(frozen=True)
class SkillScore:
    """How one skill scores on the target, in [0, 1]: bare, with the carried adapter, with one of its own."""

    skill: str
    target: float
    translated: float
    retrained: float


@dataclass(frozen=True)
class Showcase:
    """One recorded run: what was chosen, the facts of the pair, and what each pane said, by pane key.

    `skills` are scores of every shipped skill of the pair, each on `scored` test prompts. `retrained` is the
    target's own adapter, where one has answered too.
    """

    selection: Selection
    strength: float
    prompt: str
    answers: Mapping[str, str]
    source: ModelFacts
    target: ModelFacts
    adapter: AdapterFacts
    heads: HeadsFacts | None
    joint_map: JointMap | None
    made: str
    skills: tuple[SkillScore, ...] = ()
    scored: int = 0
    layers: LayerFacts | None = None
    retrained: str = ""

    def knows(self, selection: Selection) -> bool:
        """Whether the recording is of this choice."""
        return selection == self.selection

    @property
    def pair(self) -> Pair:
        """The recorded pair of models."""
        return self.selection.pair

    def panes(self) -> tuple[Pane, ...]:
        """The recorded answers as the page shows them."""
        chosen = self.selection
        names = dict(zip(PANES, (chosen.source, chosen.adapter, chosen.target, chosen.way), strict=True))
        if self.retrained:
            names["retrained"] = self.retrained
        return tuple(Pane(key, name, self.answers.get(key, ""), "done") for key, name in names.items())

    def save(self, path: Path) -> None:
        """Write the recording as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Showcase":
        """Read a recording.

        Raises:
            RequestError: The file is missing or is not a recording.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                selection=Selection(**raw["selection"]),
                strength=float(raw["strength"]),
                prompt=raw["prompt"],
                answers=dict(raw["answers"]),
                source=ModelFacts(**raw["source"]),
                target=ModelFacts(**raw["target"]),
                adapter=_adapter(raw["adapter"]),
                heads=_heads(raw["heads"]) if raw["heads"] else None,
                joint_map=_joint_map(raw["joint_map"]) if raw["joint_map"] else None,
                made=raw["made"],
                skills=tuple(SkillScore(**skill) for skill in raw["skills"]),
                retrained=str(raw.get("retrained", "")),
                scored=int(raw["scored"]),
                layers=_layers(raw["layers"]) if raw.get("layers") else None,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"The recorded example {path.name} cannot be read; make it again with `python -m app.record`."
            ) from error


def _adapter(raw: Mapping[str, Any]) -> AdapterFacts:
    sites = tuple(SiteFacts(s["block"], tuple(s["roles"]), s["effect"]) for s in raw["sites"])
    return AdapterFacts(**{**raw, "targets": tuple(raw["targets"]), "sites": sites})


def _heads(raw: Mapping[str, Any]) -> HeadsFacts:
    depths = tuple(DepthFacts(**depth) for depth in raw["depths"])
    return HeadsFacts(**{**raw, "layer_map": tuple(raw["layer_map"]), "depths": depths})


def _joint_map(raw: Mapping[str, Any]) -> JointMap:
    places = ("source", "target", "adapted", "translated")
    points = tuple(
        MapPoint(**p | {name: tuple(p[name]) for name in places if p.get(name) is not None})
        for p in raw["points"]
    )
    return JointMap(**{**raw, "points": points, "measures": tuple(Measure(**m) for m in raw["measures"])})


def _layers(raw: Mapping[str, Any]) -> LayerFacts:
    grids = tuple(
        GridFacts(grid["name"], *(tuple(map(tuple, grid[key])) for key in ("values", "controls")))
        for grid in raw["grids"]
    )
    return LayerFacts(grids, int(raw["tokens"]))
