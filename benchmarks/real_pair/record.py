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

Task = Literal["kind", "style"]


@dataclass(frozen=True)
class Measurement:
    """Scores of one runner on the test examples of one task; lists have one entry an example."""

    task: Task
    method: str
    """`source-base`, `source-lora`, `target-base`, `retrained`, or a mode of CAST."""
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the fields of the configuration that was used."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Libraries, number type, threads."""

    @property
    def key(self) -> str:
        """Name of this measurement among those of its task."""
        return self.key_of(self.task, self.method, self.strength)

    @staticmethod
    def key_of(task: Task, method: str, strength: float) -> str:
        """The name that such a measurement has or would have."""
        return f"{task}__{method}" + (f"__strength{strength:g}" if strength != 1 else "")

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
        method: str,
        strength: float = 1.0,
        made: "Making",
        cpu_seconds_scored: float,
        environment: Mapping[str, str],
    ) -> "Measurement":
        """Take a report's arrays, rounded to what a figure needs."""
        return cls(
            task=task,
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
            settings=made.settings,
            environment={**library_versions(), **environment},
        )


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
