"""The tables in words and Markdown, drawn from the measurements alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.real_pair.record import DIRECTIONS, Direction, Measurement, ModelName, Task, read_measurements
from benchmarks.real_pair.tasks import TASKS
from cast.evaluate import MINIMUM_LIFT, bootstrap_interval, recovered_lift
from cast.storage import write_atomically

MODELS: dict[ModelName, str] = {"smollm2": "SmolLM2", "gemma3": "Gemma 3"}
OWN = {"base": "untouched", "lora": "its own LoRA, trained on the task"}
"""What a model is without the other, with its row's name."""

CARRIED = {
    "hosted": "`hosted`, by words",
    "proxy-tuning": "proxy tuning",
    "compiled": "`compiled`, general text",
    "compiled-prompts": "`compiled`, five example prompts",
    "compiled-many-prompts": "`compiled`, thousands of prompts without answers",
    "hosted-states": "`hosted`, through the heads",
}
"""Ways to carry the other model's LoRA in the order of the table, with their row's name."""

LEAST_BITS = 0.03
"""What retraining must save of bits per byte, of which models need about 1, for a lift to be spoken of."""

FURTHER = "further"
"""How a folder begins, among measurements, of those on so many other examples."""

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
_LABEL, _TEXT, _PASSAGE = "choice (%) | exact (%)", "exact (%) | bits per byte", "bits per byte"
_WHAT: dict[Task, str] = {"kind": _LABEL, "verb": _LABEL, "entry": _TEXT, "style": _PASSAGE}

Found = Mapping[str, Measurement]


def render(folder: Path) -> str:
    """Markdown of every task that `folder` has measurements of, after a table of the lifts.

    Then the same of what was measured on further examples, if there is any.
    """
    parts = _tables(read_measurements(folder))
    for further in sorted(folder.glob(f"{FURTHER}-*")):
        parts += [
            "On other examples, which were drawn behind those above:",
            *_tables(read_measurements(further)),
        ]
    return "\n\n".join(parts) if parts else "Nothing is measured yet."


def _tables(found: Found) -> list[str]:
    """A table of the lifts, and one of each task."""
    parts = []
    for task in TASKS:
        rows = [measurement for measurement in found.values() if measurement.task == task]
        if rows:
            parts.append(_task_table(task, rows, found))
    return [*_lifts(found), *parts]


def write_into(readme: Path, folder: Path) -> None:
    """Replace what stands between the two marks of a Markdown file by the tables."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    write_atomically(readme, f"{before}{_BEGIN}\n{render(folder)}\n{_END}{after}".encode())


def _lifts(found: Found) -> list[str]:
    """The recovered lift at strength 1 of every task, direction and method; nothing before there is any."""
    lifts = {key: lift for key, row in found.items() if row.strength == 1 and (lift := _lift(row, found))}
    methods = [method for method in CARRIED if any(found[key].method == method for key in lifts)]
    if not methods:
        return []
    lines = []
    for direction in DIRECTIONS:
        for task in TASKS:
            keys = [_key(task, direction, method) for method in methods]
            if any(key in lifts for key in keys):
                cells = [_percent(lifts.get(key)) for key in keys]
                lines.append(f"| {_named(direction)} | {task} | {' | '.join(cells)} |")
    middles = []
    for method in methods:
        of_method = [lift[0] for key, lift in lifts.items() if found[key].method == method]
        middles.append(f"{100 * median(of_method):.0f} (of {len(of_method)})")
    head = f"| recovered lift (%) | task | {' | '.join(CARRIED[method] for method in methods)} |"
    return [
        "\n".join(
            [head, f"|---|---|{'---:|' * len(methods)}", *lines, f"| median | | {' | '.join(middles)} |"]
        )
    ]


def _key(task: Task, direction: Direction, method: str) -> str:
    return Measurement.key_of(task, direction.target, direction.source, method, 1.0)


def _named(direction: Direction) -> str:
    return f"{MODELS[direction.source]} → {MODELS[direction.target]}"


def _task_table(task: Task, rows: Sequence[Measurement], found: Found) -> str:
    what = _WHAT[task]
    lines = [
        f"**{task}** ({len(rows[0].bits)} test examples)",
        "",
        f"| | {what} | recovered lift (%) | cost on general text | made in | from tokens |",
        f"|---|{'---:|' * (what.count('|') + 5)}",
    ]
    for row in sorted(rows, key=_order):
        cells = [_row_name(row), _figures(row), _percent(_lift(row, found)), _cost(row, found), _made(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(row: Measurement) -> tuple[int, int, int, float]:
    """First the models as they are, then each direction."""
    if row.source is None:
        return 0, list(MODELS).index(row.model), list(OWN).index(row.method), row.strength
    way = DIRECTIONS.index(Direction(row.source, row.model))
    return 1, way, list(CARRIED).index(row.method), row.strength


def _row_name(row: Measurement) -> str:
    if row.source is None:
        return f"{MODELS[row.model]}, {OWN[row.method]}"
    strength = f", strength {_strength(row):g}" if _strength(row) != 1 else ""
    return f"{_named(Direction(row.source, row.model))}: {CARRIED[row.method]}{strength}"


def _strength(row: Measurement) -> float:
    """Factor on the carried change; of a compiled adapter, the one that it was fitted towards."""
    fitted = row.settings.get("strength") if row.method.startswith("compiled") else None
    return row.strength * (1.0 if fitted is None else float(fitted))


def _figures(row: Measurement) -> str:
    bits = f"{sum(row.bits) / sum(row.sizes):.3f}"
    shares = [_share(values) for values in (row.choice, row.exact) if values is not None]
    return " | ".join([*shares, bits][: _WHAT[row.task].count("|") + 1])


def _share(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def _lift(row: Measurement, found: Found) -> tuple[float, float, float] | None:
    """Recovered lift with its 95 % interval; None where there is none to speak of."""
    base, retrained = (
        found.get(Measurement.key_of(row.task, row.model, None, method, 1.0)) for method in OWN
    )
    if row.source is None or base is None or retrained is None:
        return None
    arrays = [_scores(measurement) for measurement in (base, row, retrained)]
    minimum = MINIMUM_LIFT if TASKS[row.task].greedy else LEAST_BITS
    lift = recovered_lift(*(float(scores.mean()) for scores in arrays), minimum=minimum)
    interval = bootstrap_interval(*arrays, minimum=minimum)
    return None if lift is None or interval is None else (lift, *interval)


def _percent(lift: tuple[float, float, float] | None) -> str:
    return "–" if lift is None else f"{100 * lift[0]:.0f} [{100 * lift[1]:.0f}, {100 * lift[2]:.0f}]"


def _scores(row: Measurement) -> np.ndarray:
    """One score an example, higher is better: the choice, else the exact text, else minus bits per byte."""
    for hits in (row.choice, row.exact):
        if hits is not None:
            return np.array(hits)
    return -np.array(row.bits) / np.array(row.sizes)


def _cost(row: Measurement, found: Found) -> str:
    """What held-out general text takes more, in bits per byte, than with the model untouched."""
    base = found.get(Measurement.key_of(row.task, row.model, None, "base", 1.0))
    if row.method == "base" or base is None or not (row.general_bits and base.general_bits):
        return "–"
    return f"{100 * (sum(row.general_bits) / sum(base.general_bits) - 1):+.1f} %"


def _made(row: Measurement) -> str:
    if not row.tokens:
        return "– | –"
    made = f"{row.cpu_seconds_made:,.0f} s" if row.cpu_seconds_made else "not measured"
    return f"{made} | {row.tokens:,}"
