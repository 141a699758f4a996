"""The result of one run (one method, pair, task and seed), kept as a JSON file that tables and plots read."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cast.errors import RequestError
from cast.recipes import TextKind
from cast.storage import write_atomically

_PACKAGES = ("torch", "transformers", "peft", "numpy")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Result:
    """What one method made of one adapter. Scores are shares in [0, 1]; what does not apply is None."""

    method: str
    """A mode of CAST, or a baseline's name."""
    source: str
    target: str
    task: str
    seed: int
    """Of the whole fit."""
    metric: str
    """Which score the four below are: `choice`, `style` or `exact`."""
    base: float
    translated: float
    retrained: float | None
    source_adapted: float | None
    """The source with its own adapter: a second ceiling."""
    lift: float | None
    """Recovered lift; None where the task is left out by rule or there is no retrained reference."""
    interval: tuple[float, float] | None
    """Bootstrap 95 % interval of `lift`."""
    off_task: float | None
    """Relative change of bits per byte on held-out general text."""
    source_off_task: float | None = None
    """The same of the source with its own adapter."""
    retrained_off_task: float | None = None
    """The same of the target with the retrained adapter."""
    general_bits: float | None = None
    """Bits per byte of that text that the target needs without any adapter."""
    missing: float | None = None
    """Share of the adapter's effect that held-out text does not show; 0 is the hosted source by words."""
    said: float | None = None
    """Share of held-out answers that the adapted target would say; see `cast.recipes.Quality`."""
    coverage: float | None = None
    reach: float | None = None
    """Of the fitting text, where one is fitted on; see `cast.coverage`."""
    predicted: float | None = None
    """The lift that was expected before any score; see `cast.prediction`."""
    strength: float = 1.0
    text: TextKind = "general"
    """What the method was fitted on."""
    tokens: int = 0
    """Aligned tokens or, for methods without alignment, target tokens it was fitted on."""
    seconds: float = 0.0
    """Wall-clock time of the translation, heads not counted."""
    peak_memory_bytes: int = 0
    examples: int | None = None
    """Test examples that the four scores are means of."""
    versions: dict[str, str] = field(default_factory=library_versions)
    revision: str = ""
    """Commit of the code, where it is known."""

    @property
    def ratio(self) -> float | None:
        """Translated / retrained, as in arXiv 2510.17902; it flatters where the base scores already."""
        return self.translated / self.retrained if self.retrained else None

    @property
    def file_name(self) -> str:
        """Name that tells this run from every other one of the same grid."""
        return file_name(
            self.method,
            self.source,
            self.target,
            self.task,
            self.seed,
            strength=self.strength,
            text=self.text,
        )

    def write_result(self, folder: Path) -> Path:
        """Write the run into `folder` and return the file's path.

        Raises:
            OutputError: the file cannot be written.
        """
        path = folder / self.file_name
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())
        return path


def file_name(
    method: str,
    source: str,
    target: str,
    task: str,
    seed: int,
    *,
    strength: float = 1.0,
    text: TextKind = "general",
) -> str:
    """The file that keeps a run: known before the run, so that a grid can leave out what is there."""
    parts = [source, target, task, method, f"seed{seed}"]
    if strength != 1.0:
        parts.append(f"strength{strength:g}")
    if text != "general":
        parts.append(text)
    return "__".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts) + ".json"


def result_of(record: Mapping[str, Any]) -> Result:
    """A result from its JSON object; keys that are not known here are left out.

    Raises:
        KeyError, TypeError: it is no result.
    """
    names = {entry.name for entry in fields(Result)}
    interval = record["interval"]
    kept = {name: value for name, value in record.items() if name in names}
    return Result(**kept | {"interval": None if interval is None else tuple(interval)})


def read_results(folder: Path) -> list[Result]:
    """Every run kept in `folder`, in the order of the file names.

    Raises:
        RequestError: a file there is no result.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(result_of(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is no result of a run ({error}); move it elsewhere.") from error
    return results
