"""docs/fidelity.md, rendered from the kept results and nothing else."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, variance

from benchmarks.fidelity_prediction import prediction_section
from benchmarks.fidelity_segments import segments_section
from benchmarks.markdown import arrow, header, mean_change, percent, row, short
from benchmarks.speed_record import SpeedRun, read_runs
from cast.baselines import BASELINES
from cast.pocket.tasks import TASKS
from cast.results import Result, read_results

# From a 95 % interval's width to a standard error.
_WIDTH_IN_ERRORS = 2 * 1.96
_ORDER = (
    "hosted", "compiled-prompts", "compiled", "compiled-general", "instant", "kernel", "hosted-states",
    "hosted-3", "hosted-2", "hosted-1", "self-distillation", "proxy-tuning", "reduced-rank-regression",
    "theseus", "bico", "cross-lora", "lora-x", "truncate-and-pad", "naive-copy", "random-heads",
    "random-maps", "shuffled-layers",
)  # fmt: skip
# A method may cost so much more than the dearer of the two adapters themselves.
_ALLOWED = 1.01
_METRICS = {"choice": "choice accuracy", "style": "style score", "exact": "exact match"}

HEAD = """# Fidelity in the pocket zoo

How much of a skill arrives. *Recovered lift* = (translated - base) / (retrained - base) on the target: 0
is the bare target, 1 is as good as a LoRA trained on the target itself. Scores are percent on the task's
test stream: choice accuracy for label tasks, style score for behaviour tasks. In brackets: 95 %
interval, bootstrap over examples, with the variance between seeds added where there are several. *Off-
task* is the relative change of bits per byte on held-out general text.

- `hosted`: the whole source stack beside the target, which takes over the words that the adapter moves; no
  heads, no fit. `hosted-states`: the same through the deepest decode head. `hosted-1`: block by block;
  `hosted-2`, `hosted-3`: two and three of the target's blocks at a time.
- `compiled`: a plain LoRA fitted on general text, and on what the source with its adapter says by itself, at
  places of such text or behind the cues on which its kernels act most; no prompt. What is of commits
  before 830081f is from before the cues were told by the kernels that speak, and of those before 8a616c9
  from before signs were told by sureness. `compiled-prompts`: with five example prompts of the task, without
  answers, which a base model of the pair makes more. Of both, runs of commits before f44765f read a batch
  four times, not six, and started from carried kernels, as good; those before 4fca7c1 learn of
  hosting that forbids more words than the adapter does (docs/experiments.md). `compiled-general`: on general
  text as it is, by an earlier fit, of 100 steps of AdamW.
- `instant`, `kernel`: see README. No method has read a label.
- Baselines, each in `cast/baselines/` with its paper and equation, at the source adapter's rank:
  `cross-lora`, `lora-x` and `truncate-and-pad` see weights alone; `theseus`, `bico` and
  `reduced-rank-regression` (closed form, to the rank of `compiled`) the 625 passages of general text that
  `instant` draws from; `proxy-tuning` runs both models; `self-distillation` trains on the adapted source's
  written answers to the prompts that `compiled-prompts` makes, with its rank and the steps of one of its
  rounds. `random-heads`, `random-maps` and `shuffled-layers` are controls: `hosted-states` through drawn
  heads, `instant` through drawn maps, and with each kernel in another block.

Made by `python -m benchmarks.fidelity --table` from `benchmarks/results/fidelity/`, one file a run, scored on
100 examples; `python -m benchmarks.fidelity --slice small` makes the runs of three pairs, `--slice full`
those of all, and `--methods` names any other.
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
        text = percent(self.translated)
        if self.lift is not None and self.interval is not None:
            text += f" · **{self.lift:.2f}** [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"
        return text


def write_table(results: Path, speeds: Path, page: Path) -> None:
    """Render every result in `results`, and what `benchmarks.speed` keeps in `speeds`, to the page."""
    page.write_text(render(read_results(results), read_runs(speeds)), encoding="utf-8")


def render(runs: Sequence[Result], speeds: Sequence[SpeedRun] = ()) -> str:
    """The page for these runs."""
    if not runs:
        return f"{HEAD}\nNo run has been made yet.\n"
    methods = sorted({run.method for run in runs}, key=_place(_ORDER))
    pairs = sorted({(run.source, run.target) for run in runs})
    bits = {run.target: run.general_bits for run in runs if run.general_bits is not None}
    sections = [HEAD, _overview(runs, methods, bits)]
    of_pair = {pair: [run for run in runs if _pair(run) == pair] for pair in pairs}
    one_way = {pair: own for pair, own in of_pair.items() if len({run.method for run in own}) == 1}
    sections += [
        _pair_section(pair, own, methods, bits) for pair, own in of_pair.items() if pair not in one_way
    ]
    if one_way:
        sections.append(_one_way_section(one_way))
    sections += [segments_section(runs, speeds), prediction_section(runs), provenance(runs)]
    return "\n".join(sections)


def _overview(runs: Sequence[Result], methods: Sequence[str], bits: Mapping[str, float]) -> str:
    """Lift by method over everything that was measured, and what it costs elsewhere."""
    lines = [
        "## In short", "",
        "Recovered lift: means over label and behaviour tasks (number of pair and task), median and least of",
        "all; mean off-task change; *above*: pairs and tasks where that is, in bits, more than 1 % above the",
        "dearer of the two adapters' own; median seconds of a translation, on one thread beside other work.",
        "Methods were measured on different pairs and tasks: only `hosted` and `compiled` on all of them.",
        "",
        *header(
            ["method", "pairs", "label", "behaviour", "median", "least", "off-task", "above", "seconds"]
        ),
    ]  # fmt: skip
    for method in methods:
        own = [run for run in runs if run.method == method]
        means = [_mean_lift([run for run in own if run.metric == metric]) for metric in ("choice", "style")]
        figures = [str(len({_pair(run) for run in own})), *means, *_middle_and_least(own)]
        figures += [mean_change(run.off_task for run in own), _counted(own, bits), _median_seconds(own)]
        lines.append(row([method, *figures]))
    for title, costs in (
        ("the source with its own adapter", {(run.source, run.task): run.source_off_task for run in runs}),
        (
            "the target with the retrained one",
            {(run.target, run.task): run.retrained_off_task for run in runs},
        ),
    ):
        lines.append(row([f"*{title}*", *[""] * 5, mean_change(costs.values()), "", ""]))
    return "\n".join([*lines, ""])


def _middle_and_least(runs: Sequence[Result]) -> tuple[str, str]:
    """Median lift of all pairs and tasks, and the least with its place; seeds are averaged."""
    means = {place: Cell(tuple(own)).lift for place, own in _by_place(runs).items()}
    lifts = {place: lift for place, lift in means.items() if lift is not None}
    if not lifts:
        return "–", "–"
    source, target, task = min(lifts, key=lambda place: lifts[place])
    least = f"{lifts[source, target, task]:.2f} ({arrow((source, target))}, {short(task)})"
    return f"{median(lifts.values()):.2f}", least


def _one_way_section(of_pair: Mapping[tuple[str, str], Sequence[Result]]) -> str:
    """Pairs on which a single method was measured, as one table of scores and lifts."""
    runs = [run for own in of_pair.values() for run in own]
    tasks = sorted({run.task for run in runs}, key=_place([f"pocket:{name}" for name in TASKS]))
    lines = ["## Other pairs", "", "Score · **lift**, of the one method that was measured there.", ""]
    lines += header(["pair", "method", *map(short, tasks)])
    for pair, own in of_pair.items():
        cells = [[run for run in own if run.task == task] for task in tasks]
        shown = [
            f"{percent(Cell(tuple(some)).translated)} · **{_lift(some)}**" if some else "–" for some in cells
        ]
        lines.append(row([arrow(pair), own[0].method, *shown]))
    return "\n".join([*lines, ""])


def _lift(runs: Sequence[Result]) -> str:
    lift = Cell(tuple(runs)).lift
    return "–" if lift is None else f"{lift:.2f}"


def _pair_section(
    pair: tuple[str, str], runs: Sequence[Result], methods: Sequence[str], bits: Mapping[str, float]
) -> str:
    cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for run in runs:
        cells[run.task, run.method].append(run)
    tasks = sorted({run.task for run in runs}, key=_place([f"pocket:{name}" for name in TASKS]))
    here = [method for method in methods if any(run.method == method for run in runs)]
    modes, baselines = (
        [method for method in here if (method in BASELINES) is known] for known in (False, True)
    )
    lines = [f"## {arrow(pair)}", ""]
    columns = ["task", "score", "base", "retrained", "source + adapter"]
    lines += header([*columns, *(f"{method}: score · **lift**" for method in modes)])
    firsts = {task: next(run for run in runs if run.task == task) for task in tasks}
    left_out = [
        f"{short(task)} ({percent(first.base)} → {percent(first.retrained)})"
        for task, first in firsts.items()
        if first.lift is None
    ]
    tasks = [task for task in tasks if firsts[task].lift is not None]
    for task in tasks:
        first = firsts[task]
        ends = [percent(value) for value in (first.base, first.retrained, first.source_adapted)]
        found = [_cell(cells.get((task, method))) for method in modes]
        lines.append(row([short(task), _METRICS[first.metric], *ends, *found]))
    if baselines:
        lines += [
            "",
            "Baselines:",
            "",
            *header(["task", *(f"{name}: score · **lift**" for name in baselines)]),
        ]
        lines += [
            row([short(task), *(_cell(cells.get((task, name))) for name in baselines)]) for task in tasks
        ]
    lines += ["", *_off_task_table(cells, tasks, here, bits)]
    if left_out:
        lines += ["", f"Left out, since retraining gains less than 10 points: {', '.join(left_out)}."]
    return "\n".join([*lines, ""])


def _cell(runs: Sequence[Result] | None) -> str:
    return str(Cell(tuple(runs))) if runs else "–"


def _off_task_table(
    cells: Mapping[tuple[str, str], Sequence[Result]], tasks: Sequence[str], methods: Sequence[str],
    bits: Mapping[str, float],
) -> list[str]:  # fmt: skip
    """What each method costs on general text beside what the two adapters cost their own models."""
    lines = [
        "Off-task, percent of the base's bits per byte; bold: in bits over 1 % above both adapters' own.",
        "",
        *header(["task", "source's own", "retrained's own", *methods]),
    ]  # fmt: skip
    for task in tasks:
        found = [cells.get((task, method), ()) for method in methods]
        first = next(run for runs in found for run in runs)
        shown = []
        for runs in found:
            costs = [run.off_task for run in runs if run.off_task is not None]
            text = f"{100 * fmean(costs):+.1f}" if costs else "–"
            shown.append(f"**{text}**" if _is_above(runs, bits) else text)
        ends = [_cost(cost) for cost in (first.source_off_task, first.retrained_off_task)]
        lines.append(row([short(task), *ends, *shown]))
    return lines


def _is_above(runs: Sequence[Result], bits: Mapping[str, float]) -> bool | None:
    """Whether one method's runs on a task of a pair cost more bits than the dearer adapter on its own model.

    Args:
        runs: of all seeds.
        bits: bits per byte of general text that each model needs without any adapter.

    Returns:
        None where that is not known.
    """
    costs = [run.off_task for run in runs if run.off_task is not None]
    if not costs or not bits.keys() >= {runs[0].source, runs[0].target}:
        return None
    source, target = bits[runs[0].source], bits[runs[0].target]
    own = [
        off_task * base
        for off_task, base in ((runs[0].source_off_task, source), (runs[0].retrained_off_task, target))
        if off_task is not None
    ]
    return fmean(costs) * target > _ALLOWED * max(own) if own else None


def _counted(runs: Sequence[Result], bits: Mapping[str, float]) -> str:
    """How many of one method's pairs and tasks are above the adapters' own, of how many."""
    known = [above for own in _by_place(runs).values() if (above := _is_above(own, bits)) is not None]
    return f"{sum(known)} of {len(known)}" if known else "–"


def _by_place(runs: Sequence[Result]) -> Mapping[tuple[str, str, str], Sequence[Result]]:
    """One method's runs by pair and task, all seeds of one together."""
    cells: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for run in runs:
        cells[run.source, run.target, run.task].append(run)
    return cells


def _cost(off_task: float | None) -> str:
    return "–" if off_task is None else f"{100 * off_task:+.1f}"


def provenance(runs: Sequence[Result]) -> str:
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


def _median_seconds(runs: Sequence[Result]) -> str:
    return f"{median(run.seconds for run in runs):.0f}" if runs else "–"


def _pair(run: Result) -> tuple[str, str]:
    return run.source, run.target


def _place(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Known names in the order given, others behind them by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)
