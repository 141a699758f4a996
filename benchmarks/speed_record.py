"""What `benchmarks.speed` keeps of a run, and how it is read again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "speed"


@dataclass(frozen=True)
class Cost:
    """One way to run the target; seconds."""

    method: str
    translate_seconds: float
    """Heads not counted; site maps counted where they were not cached."""
    scored_seconds: float
    """A token of several texts at once, teacher-forced, logits at every position."""
    first_seconds: float
    """From the prompt to the first new token."""
    written_seconds: float
    """A new token of one text, greedy."""
    limit_seconds: float | None = None
    """Hosted: what a new token may take, that of the target alone and twice that of the hosted source blocks
    by themselves, and 15 % more."""


@dataclass(frozen=True)
class SpeedRun:
    """All ways of one run, the target alone first."""

    source: str
    target: str
    adapter: str
    processor: str
    cores: int
    threads: int
    clock: str
    """`processor`, or `wall`."""
    repeats: int
    peak_memory_bytes: int
    versions: Mapping[str, str]
    costs: tuple[Cost, ...]

    def of(self, method: str) -> Cost | None:
        """One way's cost, where it was measured."""
        return next((cost for cost in self.costs if cost.method == method), None)

    def over_target(self, seconds: float) -> float:
        """A new token's seconds over those of the target alone."""
        return seconds / self.costs[0].written_seconds

    def table(self) -> str:
        """The figures as aligned text, in milliseconds but for the translation."""
        columns = ("scored", "first", "written", "limit", "x target")
        lines = [f"{'':<18}{'translate s':>12}" + "".join(f"{name:>10}" for name in columns)]
        for cost in self.costs:
            limit = f"{1000 * cost.limit_seconds:>10.2f}" if cost.limit_seconds else f"{'–':>10}"
            lines.append(
                f"{cost.method:<18}{cost.translate_seconds:>12}{1000 * cost.scored_seconds:>10.3f}"
                f"{1000 * cost.first_seconds:>10.1f}{1000 * cost.written_seconds:>10.2f}{limit}"
                f"{self.over_target(cost.written_seconds):>10.2f}"
            )
        return "\n".join(lines)

    def write(self, folder: Path) -> Path:
        """Keep it as one file, named by the two models."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.source}-to-{self.target}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


def read_runs(folder: Path) -> list[SpeedRun]:
    """The kept runs."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [
        SpeedRun(**record | {"costs": tuple(Cost(**cost) for cost in record["costs"])}) for record in records
    ]
