"""The table in words and Markdown, drawn from the measurements alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.real_pair.record import Measurement, Task, read_measurements
from cast.evaluate import bootstrap_interval, recovered_lift
from cast.storage import write_atomically

METHODS = {
    "target-base": "target, untouched",
    "source-base": "source, untouched",
    "source-lora": "source + its LoRA",
    "hosted": "target, translated: `hosted`, whole stack by its words",
    "hosted-states": "target, translated: `hosted`, whole stack through the heads",
    "compiled": "target, translated: `compiled` on general text",
    "compiled-prompts": "target, translated: `compiled` with five example prompts",
    "retrained": "target, LoRA retrained on the task's labels",
}
"""Methods in the order of the table, with their row's name."""

_TRANSLATED = ("hosted", "hosted-states", "compiled", "compiled-prompts")
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
_WHAT = {"kind": "choice (%) | exact (%)", "style": "bits per byte"}


def render(folder: Path) -> str:
    """Markdown of every task that `folder` has measurements of."""
    found = read_measurements(folder)
    parts = []
    for task in get_args(Task):
        rows = [measurement for measurement in found.values() if measurement.task == task]
        if rows:
            parts.append(_task_table(task, sorted(rows, key=_order)))
    return "\n\n".join(parts) if parts else "Nothing is measured yet."


def write_into(readme: Path, folder: Path) -> None:
    """Replace what stands between the two marks of a Markdown file by the table."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    write_atomically(readme, f"{before}{_BEGIN}\n{render(folder)}\n{_END}{after}".encode())


def _order(row: Measurement) -> tuple[int, float]:
    return list(METHODS).index(row.method), row.strength


def _task_table(task: Task, rows: Sequence[Measurement]) -> str:
    by_method = {row.method: row for row in rows}
    what = _WHAT[task]
    columns = what.count("|") + 4
    lines = [
        f"**{task}** ({len(rows[0].bits)} test examples)",
        "",
        f"| | {what} | recovered lift | made in | from tokens |",
        f"|---|{'---:|' * columns}",
    ]
    for row in rows:
        strength = f", strength {_strength(row):g}" if row.method in _TRANSLATED else ""
        cells = [f"{METHODS[row.method]}{strength}", _figures(row), _lift(row, by_method), _made(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _strength(row: Measurement) -> float:
    """Factor on the carried change; of a compiled adapter, the one that it was fitted towards."""
    fitted = row.settings.get("strength") if row.method == "compiled" else None
    return row.strength * (1.0 if fitted is None else float(fitted))


def _figures(row: Measurement) -> str:
    if row.choice is None or row.exact is None:
        return f"{sum(row.bits) / sum(row.sizes):.3f}"
    return f"{_share(row.choice)} | {_share(row.exact)}"


def _share(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def _lift(row: Measurement, by_method: Mapping[str, Measurement]) -> str:
    """Recovered lift in percent with its 95 % interval; a dash where there is none to speak of."""
    base, retrained = by_method.get("target-base"), by_method.get("retrained")
    if row.method not in _TRANSLATED or base is None or retrained is None:
        return "–"
    arrays = [_scores(measurement) for measurement in (base, row, retrained)]
    lift = recovered_lift(*(float(scores.mean()) for scores in arrays))
    interval = bootstrap_interval(*arrays)
    if lift is None or interval is None:
        return "–"
    return f"{100 * lift:.0f} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def _scores(row: Measurement) -> np.ndarray:
    """One score an example, higher is better: the choice, else minus the bits per byte."""
    if row.choice is not None:
        return np.array(row.choice)
    return -np.array(row.bits) / np.array(row.sizes)


def _made(row: Measurement) -> str:
    if not row.tokens:
        return "– | –"
    made = f"{row.cpu_seconds_made:,.0f} s" if row.cpu_seconds_made else "not measured"
    return f"{made} | {row.tokens:,}"
