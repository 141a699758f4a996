"""How long work reports where it is, and how it is cancelled.

A long function takes `on_progress: OnProgress = ignore`. The callback may raise `Cancelled`, which passes
through the function after it has kept what can be kept (checkpoints, finished files).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One report: `done` of `total` steps of a named stage, with the measures known so far.

    `by_depth` is the held-out R² of each target depth, where the work has such.
    """

    stage: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    by_depth: Mapping[int, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, in [0, 1]; 0 where the total is unknown (0)."""
        return min(1.0, self.done / self.total) if self.total else 0.0


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Take a report and do nothing with it."""
