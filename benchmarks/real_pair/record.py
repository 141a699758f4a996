"""One measured way to a skill, example by example, as a JSON file; the table is drawn from these alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cast.errors import RequestError
from cast.evaluate import EvalReport
from cast.results import library_versions
from cast.storage import write_atomically

Task = Literal["kind", "verb", "entry", "style"]
ModelName = Literal["smollm2", "gemma3"]


@dataclass(frozen=True)
class Direction:
    """Which of the two models has the adapter, and which shall get it."""

    source: ModelName
    target: ModelName

    @property
    def name(self) -> str:
        """As files and options spell it."""
        return f"{self.source}-to-{self.target}"


DIRECTIONS = (Direction("smollm2", "gemma3"), Direction("gemma3", "smollm2"))


@dataclass(frozen=True)
class Measurement:
    """Scores of one runner on the test examples of one task; lists have one entry an example."""

    task: Task
    model: ModelName
    """Whose tokens are scored."""
    source: ModelName | None
    """The model that the adapter was trained on, where it is carried to another."""
    method: str
    """`base`, `lora` (trained on this model), or a way to carry the other model's LoRA."""
    strength: float
    bits: tuple[float, ...]
    """Bits for each gold completion."""
    sizes: tuple[int, ...]
    """Bytes of each gold completion."""
    choice: tuple[float, ...] | None
    """1 where the right choice was the likeliest."""
    exact: tuple[float, ...] | None
    """1 where the greedy answer was the gold one."""
    outputs: tuple[str, ...]
    """Greedy answers."""
    cpu_seconds_made: float
    """Processor time of making what was measured: training, or fitting (heads counted apart)."""
    cpu_seconds_scored: float
    """Processor time of the scoring."""
    tokens: int
    """Tokens of text that it was made from; for a LoRA, of the examples it was trained on."""
    general_bits: tuple[float, ...] | None = None
    """Bits for each paragraph of held-out general text: what the skill costs elsewhere."""
    general_sizes: tuple[int, ...] | None = None
    """Bytes of those paragraphs."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the fields of the configuration that was used."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Libraries, number type, threads."""

    @property
    def key(self) -> str:
        """Name of this measurement: task, model or direction, method."""
        return self.key_of(self.task, self.model, self.source, self.method, self.strength)

    @staticmethod
    def key_of(task: Task, model: ModelName, source: ModelName | None, method: str, strength: float) -> str:
        """The name that such a measurement has or would have."""
        where = Direction(source, model).name if source else model
        return f"{task}__{where}__{method}" + (f"__strength{strength:g}" if strength != 1 else "")

    def write(self, folder: Path) -> Path:
        """Write `<key>.json` into `folder`; OutputError when that cannot be done."""
        path = folder / f"{self.key}.json"
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
        return path

    @classmethod
    def read(cls, path: Path) -> "Measurement":
        """Read one file.

        Raises:
            RequestError: it is no measurement.
        """
        names = {entry.name for entry in fields(cls)}
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            values = {
                key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
            }
            return cls(**{key: value for key, value in values.items() if key in names})
        except (ValueError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{path} is no measurement of the real pair ({error}); move it elsewhere."
            ) from error

    @classmethod
    def of(
        cls,
        report: EvalReport,
        *,
        task: Task,
        model: ModelName,
        source: ModelName | None,
        method: str,
        strength: float = 1.0,
        made: "Making",
        general: "GeneralText",
        cpu_seconds_scored: float,
        environment: Mapping[str, str],
    ) -> "Measurement":
        """Take a report's arrays, rounded to what a figure needs."""
        return cls(
            task=task,
            model=model,
            source=source,
            method=method,
            strength=strength,
            bits=tuple(round(float(value), 3) for value in report.bits),
            sizes=tuple(int(value) for value in report.sizes),
            choice=None if report.choice is None else tuple(map(float, report.choice)),
            exact=None if report.exact is None else tuple(map(float, report.exact)),
            outputs=report.outputs,
            cpu_seconds_made=made.cpu_seconds,
            cpu_seconds_scored=round(cpu_seconds_scored, 1),
            tokens=made.tokens,
            general_bits=tuple(round(value, 2) for value in general.bits),
            general_sizes=general.sizes,
            settings=made.settings,
            environment={**library_versions(), **environment},
        )


@dataclass(frozen=True)
class GeneralText:
    """What a runner needs for held-out general text: bits and bytes of each paragraph."""

    bits: tuple[float, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Making:
    """How long something took to make, from how many tokens, with which settings.

    The process's own time is kept beside the clock's: it does not depend on what else the machine did.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Keep it beside what was made, so that a resumed run knows."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> "Making":
        """What an earlier run kept."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def read_measurements(folder: Path) -> dict[str, Measurement]:
    """Every measurement in `folder` by its key."""
    found = (Measurement.read(path) for path in sorted(folder.glob("*__*.json")))
    return {measurement.key: measurement for measurement in found}
