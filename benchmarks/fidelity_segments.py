"""The section of docs/fidelity.md on segments of `hosted`: what arrives, and what a new token costs."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from benchmarks.markdown import arrow, header, mean_change, row, short
from benchmarks.speed_record import SpeedRun
from cast.pocket import registry
from cast.pocket.tasks import TASKS
from cast.results import Result

# Method and what it is called here, from the fewest blocks between encode and decode to the most.
_SIZES = (
    ("hosted-1", "1"), ("hosted-2", "2"), ("hosted-3", "3"), ("hosted-states", "all, by states"),
    ("hosted", "all, by words"),
)  # fmt: skip
_HEAD = """## Segments of `hosted`

N is the number of target blocks between one encode and one decode; with `all` there is one decode, behind the
whole source stack, which reads its own tokens. Recovered lift on the tasks for which every N was measured.
"""
_COST = """What a new token costs, over the target alone, beside what it may cost: the target and twice the
hosted source blocks' own time, and 15 % more. All were timed in turn in one run of `python -m
benchmarks.speed` (one text, greedy).
"""
_BESIDE = ("target", "source", "source + adapter")


def segments_section(runs: Sequence[Result], speeds: Sequence[SpeedRun]) -> str:
    """Lift and cost against the number of blocks N, on the tasks that every N was measured on."""
    known = [method for method, _ in _SIZES if any(run.method == method for run in runs)]
    lines = [_HEAD]
    if len(known) < 2:
        return "\n".join([*lines, "Too few of them were measured.", ""])
    for pair in sorted({(run.source, run.target) for run in runs}):
        own = [run for run in runs if (run.source, run.target) == pair and run.method in known]
        lines += _lifts(own, [method for method in known if any(run.method == method for run in own)])
    return "\n".join([*lines, *_costs(speeds)])


def _lifts(runs: Sequence[Result], methods: Sequence[str]) -> list[str]:
    shared = set.intersection(*({run.task for run in runs if run.method == name} for name in methods))
    tasks = [task for name in TASKS if (task := registry.PREFIX + name) in shared]
    if len(methods) < 2 or not tasks:
        return []
    lines = header([f"{arrow((runs[0].source, runs[0].target))}: N", *map(short, tasks), "mean", "off-task"])
    for method, size in _SIZES:
        if method in methods:
            found = [[run for run in runs if (run.method, run.task) == (method, task)] for task in tasks]
            lifts = [_mean(run.lift for run in some) for some in found]
            cost = mean_change(run.off_task for some in found for run in some)
            lines.append(row([size, *map(_number, [*lifts, _mean(lifts)]), cost]))
    return [*lines, ""]


def _costs(speeds: Sequence[SpeedRun]) -> list[str]:
    if not speeds:
        return []
    lines = [_COST]
    for speed in speeds:
        clock = "processor seconds" if speed.clock == "processor" else "seconds"
        own = 1000 * speed.costs[0].written_seconds
        lines += header([f"{speed.source} → {speed.target}, {speed.adapter}", "cost", "allowed"])
        names = [(name, f"*{name} alone*") for name in _BESIDE]
        names += [(method, f"N = {size}") for method, size in _SIZES]
        for method, title in names:
            if cost := speed.of(method):
                allowed = speed.over_target(cost.limit_seconds) if cost.limit_seconds else None
                lines.append(row([title, f"{speed.over_target(cost.written_seconds):.2f}", _number(allowed)]))
        lines += ["", f"1 is {own:.1f} ms ({clock}, {speed.threads} thread, {speed.processor}).", ""]
    return lines


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
