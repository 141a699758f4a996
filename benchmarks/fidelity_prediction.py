"""How well the prediction foretold the measured lift: rank correlations over the kept results."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np
from scipy.stats import spearmanr

from cast.prediction import LIKELY, PARTLY, REACHED
from cast.results import Result

_DRAWS = 2000

_HEAD = """## Prediction

Before any score: 1 - the share of the adapter's effect that is missing on held-out text, times how far the
text that was fitted on reaches the adapter (`cast/prediction.py`). Spearman's rank correlation ρ with the
recovered lift; in brackets the 95 % interval, bootstrap over (pair, task), whose runs are drawn together.
"""


def prediction_section(runs: Sequence[Result]) -> str:
    """The section of the page; a line where no run holds a prediction."""
    known = [run for run in runs if run.predicted is not None and run.lift is not None]
    if len(known) < 3:
        return f"{_HEAD}\nToo few runs hold a prediction.\n"
    groups: list[tuple[str, Callable[[Result], bool]]] = [
        ("all methods", lambda run: True),
        ("all but `hosted`, which is 1 by definition", lambda run: run.method != "hosted"),
        ("`compiled` and `compiled-prompts`", lambda run: run.method.startswith("compiled")),
    ]
    lines = [_HEAD, "| runs | number | ρ |", "| --- | --- | --- |"]
    for name, chosen in groups:
        some = [run for run in known if chosen(run)]
        lines.append(f"| {name} | {len(some)} | {_correlation(some, lambda run: run.predicted)} |")
    lines += ["", "| words | runs | mean lift | lift of at least 0.7 |", "| --- | --- | --- | --- |"]
    for name, low, high in (
        ("likely", LIKELY, 2.0), ("in part", PARTLY, LIKELY), ("unlikely", -1.0, PARTLY)
    ):  # fmt: skip
        lifts = [
            run.lift
            for run in known
            if run.lift is not None and run.predicted is not None and low <= run.predicted < high
        ]
        if lifts:
            share = fmean(lift >= LIKELY for lift in lifts)
            lines.append(f"| {name} | {len(lifts)} | {fmean(lifts):.2f} | {100 * share:.0f} % |")
    return "\n".join([*lines, "", *_reach(runs), ""])


def _reach(runs: Sequence[Result]) -> list[str]:
    """Whether the text that excites an adapter more also carries more of it."""
    known = [run for run in runs if run.reach is not None and run.lift is not None]
    if len(known) < 3:
        return []
    lines = [
        f"How far the fitting text excites the adapter, over {len(known)} compiled runs: ρ of the lift with "
        f"*energy* {_correlation(known, lambda run: run.coverage)}, with *reach* "
        f"{_correlation(known, lambda run: run.reach)} (`cast/coverage.py`)."
    ]
    below, above = (
        [run.lift for run in known if run.lift is not None and (run.reach or 0.0) < REACHED] if low
        else [run.lift for run in known if run.lift is not None and (run.reach or 0.0) >= REACHED]
        for low in (True, False)
    )  # fmt: skip
    for name, lifts in ((f"below {REACHED}", below), (f"from {REACHED} on", above)):
        if lifts:
            lines.append(f"Reach {name}: {len(lifts)} runs, median lift {median(lifts):.2f}.")
    return lines


def _correlation(runs: Sequence[Result], value: Callable[[Result], float | None]) -> str:
    """Spearman's ρ between a value and the lift, with its interval."""
    clusters: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        found = value(run)
        if found is not None and run.lift is not None:
            clusters[run.source, run.target, run.task].append((found, run.lift))
    pairs = [pair for cluster in clusters.values() for pair in cluster]
    if len(pairs) < 3 or len(set(pairs)) < 3:
        return "–"
    random = np.random.default_rng(0)
    several, draws = list(clusters.values()), []
    for _ in range(_DRAWS):
        chosen = random.integers(len(several), size=len(several))
        drawn = np.array([pair for index in chosen for pair in several[index]])
        if len(np.unique(drawn[:, 0])) > 1 and len(np.unique(drawn[:, 1])) > 1:
            draws.append(float(spearmanr(drawn[:, 0], drawn[:, 1]).statistic))
    rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]"
