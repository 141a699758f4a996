"""docs/fidelity.md, rendered from the kept results and nothing else."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from cast.pocket.tasks import TASKS
from cast.results import Result, read_results

# From a 95 % interval's width to a standard error.
_WIDTH_IN_ERRORS = 2 * 1.96
_ORDER = (
    "hosted", "compiled-prompts", "compiled", "instant", "kernel", "hosted-states", "hosted-1"
)  # fmt: skip
_METRICS = {"choice": "choice accuracy", "style": "style score", "exact": "exact match"}

HEAD = """# Fidelity in the pocket zoo

How much of a skill arrives. *Recovered lift* = (translated - base) / (retrained - base) on the target: 0
is the bare target, 1 is as good as a LoRA trained on the target itself. Scores are percent on the task's
test stream: choice accuracy for label tasks, style score for behaviour tasks. In brackets: 95 %
interval, bootstrap over examples, with the variance between seeds added where there are several. *Off-
task* is the relative change of bits per byte on held-out general text, as a mean over the tasks; the zoo's
adapters are trained on completions alone and disturb their own model about as much.

- `hosted`: the whole source stack beside the target, which takes over the words that the adapter moves; no
  heads, no fit. `hosted-states`: the same through the deepest decode head. `hosted-1`: block by block.
- `compiled`: a plain LoRA fitted on general text alone. `compiled-prompts`: with five example prompts of the
  task, without answers, which the source's base model makes more.
- `instant`, `kernel`: see README. No method has read a label.

Made by `python -m benchmarks.fidelity --table` from `benchmarks/results/fidelity/`, one file a run;
`python -m benchmarks.fidelity --slice small` makes the runs.
"""


@dataclass(frozen=True)
class Cell:
    """All seeds of one method on one task of one pair."""

    runs: tuple[Result, ...]

    @property
    def translated(self) -> float:
        """Mean score."""
        return fmean(run.translated for run in self.runs)

    @property
    def lift(self) -> float | None:
        """Mean recovered lift."""
        lifts = [run.lift for run in self.runs if run.lift is not None]
        return fmean(lifts) if lifts else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean lift.

        All seeds are scored on the same examples, so their sampling error does not average out; the variance
        between seeds does.
        """
        kept = [(run.lift, run.interval) for run in self.runs if run.lift is not None and run.interval]
        if not kept:
            return None
        if len(kept) == 1:
            return kept[0][1]
        sampling = fmean(((high - low) / _WIDTH_IN_ERRORS) ** 2 for _, (low, high) in kept)
        between = variance(lift for lift, _ in kept) / len(kept)
        reach, mean = 1.96 * math.sqrt(sampling + between), fmean(lift for lift, _ in kept)
        return mean - reach, mean + reach

    def __str__(self) -> str:
        text = _percent(self.translated)
        if self.lift is not None and self.interval is not None:
            text += f" · **{self.lift:.2f}** [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"
        return text


def write_table(results: Path, page: Path) -> None:
    """Render every result in `results` to the Markdown page."""
    page.write_text(render(read_results(results)), encoding="utf-8")


def render(runs: Sequence[Result]) -> str:
    """The page for these runs."""
    if not runs:
        return f"{HEAD}\nNo run has been made yet.\n"
    methods = sorted({run.method for run in runs}, key=_place(_ORDER))
    pairs = sorted({(run.source, run.target) for run in runs})
    sections = [HEAD, _overview(runs, pairs, methods)]
    sections += [_pair_section(pair, [run for run in runs if _pair(run) == pair], methods) for pair in pairs]
    return "\n".join([*sections, _provenance(runs)])


def _overview(runs: Sequence[Result], pairs: Sequence[tuple[str, str]], methods: Sequence[str]) -> str:
    """Mean lift by method, label and behaviour tasks apart, and what it costs elsewhere."""
    lines = ["## In short", "", "Mean recovered lift over tasks (number of tasks).", ""]
    lines += _header(["pair", "tasks", *methods])
    for pair in [*pairs, None]:
        for metric in ("choice", "style"):
            chosen = [run for run in runs if run.metric == metric and pair in (None, _pair(run))]
            if not chosen:
                continue
            cells = [_mean_lift([run for run in chosen if run.method == method]) for method in methods]
            name = "all pairs" if pair is None else _arrow(pair)
            lines.append(_row([name, "label" if metric == "choice" else "behaviour", *cells]))
    for title, mean in (("off-task", _mean_off_task), ("seconds a translation", _mean_seconds)):
        cells = [mean([run for run in runs if run.method == method]) for method in methods]
        lines.append(_row(["all pairs", title, *cells]))
    return "\n".join([*lines, ""])


def _pair_section(pair: tuple[str, str], runs: Sequence[Result], methods: Sequence[str]) -> str:
    cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for run in runs:
        cells[run.task, run.method].append(run)
    lines = [f"## {_arrow(pair)}", ""]
    columns = ["task", "score", "base", "retrained", "source + adapter"]
    lines += _header([*columns, *(f"{method}: score · **lift**" for method in methods)])
    left_out = []
    for task in sorted({run.task for run in runs}, key=_place([f"pocket:{name}" for name in TASKS])):
        first = next(run for run in runs if run.task == task)
        if first.lift is None:
            left_out.append(f"{_short(task)} ({_percent(first.base)} → {_percent(first.retrained)})")
            continue
        ends = [_percent(value) for value in (first.base, first.retrained, first.source_adapted)]
        found = [cells.get((task, method)) for method in methods]
        lines.append(
            _row([
                _short(task), _METRICS[first.metric], *ends,
                *(str(Cell(tuple(some))) if some else "–" for some in found),
            ])
        )  # fmt: skip
    if left_out:
        lines += ["", f"Left out, since retraining gains less than 10 points: {', '.join(left_out)}."]
    return "\n".join([*lines, ""])


def _provenance(runs: Sequence[Result]) -> str:
    """What the figures were made with."""
    packages = sorted({f"{name} {number}" for run in runs for name, number in run.versions.items()})
    return (
        f"{len(runs)} runs; seeds {_named(run.seed for run in runs)}; "
        f"examples {_named(run.examples for run in runs)}; "
        f"code at {_named(run.revision for run in runs)}; {', '.join(packages)}.\n"
    )


def _named(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values if value not in (None, "")})) or "not recorded"


def _mean_lift(runs: Sequence[Result]) -> str:
    lifts = [run.lift for run in runs if run.lift is not None]
    tasks = {(run.source, run.target, run.task) for run in runs if run.lift is not None}
    return f"{fmean(lifts):.2f} ({len(tasks)})" if lifts else "–"


def _mean_off_task(runs: Sequence[Result]) -> str:
    values = [run.off_task for run in runs if run.off_task is not None]
    return f"{100 * fmean(values):+.1f} %" if values else "–"


def _mean_seconds(runs: Sequence[Result]) -> str:
    return f"{fmean(run.seconds for run in runs):.0f}" if runs else "–"


def _pair(run: Result) -> tuple[str, str]:
    return run.source, run.target


def _arrow(pair: tuple[str, str]) -> str:
    return " → ".join(_short(name) for name in pair)


def _short(name: str) -> str:
    return name.removeprefix("pocket:")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _place(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Known names in the order given, others behind them by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)


def _header(columns: Sequence[str]) -> list[str]:
    return [_row(columns), _row(["---"] * len(columns))]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
