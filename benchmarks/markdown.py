"""Tables in Markdown, and the short names that stand in them."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from cast.pocket import registry


def header(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(columns), row(["---"] * len(columns))]


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def arrow(pair: tuple[str, str]) -> str:
    """Source and target by their short names."""
    return " → ".join(map(short, pair))


def short(name: str) -> str:
    """A model's or task's name without what all of the zoo share."""
    return name.removeprefix(registry.PREFIX)


def percent(share: float | None) -> str:
    """A share in percent; a dash for what is not known."""
    return "–" if share is None else f"{100 * share:.1f}"


def mean_change(shares: Iterable[float | None]) -> str:
    """The mean of the known relative changes, in percent with its sign; a dash where none is known."""
    values = [share for share in shares if share is not None]
    return f"{100 * fmean(values):+.1f} %" if values else "–"
