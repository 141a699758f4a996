"""The fidelity table: rendered from kept results alone, tasks left out by rule are named."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import fidelity_fill
from benchmarks.fidelity_table import Cell, render, write_table
from cast.results import Result, read_results

RUN = Result(
    "hosted", "pocket:llama", "pocket:mistral", "pocket:mood", 0, "choice",
    base=0.2, translated=0.8, retrained=1.0, source_adapted=1.0, lift=0.75, interval=(0.7, 0.8),
    off_task=0.02, examples=500, revision="abc",
)  # fmt: skip


def test_one_run_is_shown_as_it_is(tmp_path: Path) -> None:
    RUN.write_result(tmp_path / "runs")
    write_table(tmp_path / "runs", tmp_path / "fidelity.md")
    page = (tmp_path / "fidelity.md").read_text()
    assert "## llama → mistral" in page
    assert "| mood | choice accuracy | 20.0 | 100.0 | 100.0 | 80.0 · **0.75** [0.70, 0.80] |" in page
    assert "code at abc" in page


def test_a_task_that_retraining_does_not_lift_is_named_and_left_out() -> None:
    flat = replace(
        RUN, task="pocket:brief", metric="style", base=0.9, retrained=0.95, lift=None, interval=None
    )
    page = render([RUN, flat])
    assert "Left out, since retraining gains less than 10 points: brief (90.0 → 95.0)." in page
    assert "| brief |" not in page


def test_seeds_are_averaged_and_their_spread_widens_the_interval() -> None:
    lifts = (0.55, 0.75, 0.95)
    runs = [
        replace(RUN, seed=n, lift=x, interval=(x - 0.05, x + 0.05), translated=0.2 + 0.8 * x)
        for n, x in enumerate(lifts)
    ]
    cell = Cell(tuple(runs))
    assert cell.lift == pytest.approx(0.75)
    assert cell.interval is not None
    low, high = cell.interval
    # Sampling error 0.05 / 1.96 of each, and a spread of 0.2 between three seeds.
    assert high - low == pytest.approx(2 * 1.96 * ((0.05 / 1.96) ** 2 + 0.04 / 3) ** 0.5)


def test_a_baseline_stands_beside_the_modes_and_the_adapters_own_cost_beside_theirs() -> None:
    costs = {"source_off_task": 0.1, "retrained_off_task": 0.2}
    page = render([
        replace(RUN, off_task=0.205, **costs),
        replace(RUN, method="theseus", lift=0.1, interval=(0.0, 0.2), translated=0.28, off_task=0.5, **costs),
    ])  # fmt: skip
    assert "| hosted | 0.75 (1) | 0.75 (1) | +20.5 % | 0 |" in page
    assert "| theseus | 0.10 (1) | 0.10 (1) | +50.0 % | 0 |" in page
    assert "| task | theseus: score · **lift** |" in page
    # The larger own cost is 20 %: half a percent more is allowed, thirty are not.
    assert "| mood | +10.0 | +20.0 | +20.5 | **+50.0** |" in page
    assert "| *the source with its own adapter* |  |  | +10.0 % |  |" in page


def test_a_prediction_that_orders_the_runs_has_rank_correlation_one() -> None:
    runs = [
        replace(RUN, task=f"pocket:{task}", lift=lift, predicted=lift**2, reach=0.05 + lift / 2)
        for task, lift in (("mood", 0.9), ("what", 0.1), ("who", 0.5), ("where", 0.2), ("colour", 0.8))
    ]
    page = render(runs)
    assert "| all methods | 5 | 1.00 [1.00, 1.00] |" in page
    assert "| likely | 1 | 0.90 | 100 % |" in page
    assert "| unlikely | 3 | 0.27 | 0 % |" in page
    assert "Reach below 0.12: 1 runs, median lift 0.10." in page
    assert "Too few runs hold a prediction." in render([RUN])


def test_what_older_results_lack_is_filled_in_and_scores_stay(tmp_path: Path, monkeypatch) -> None:
    kept = replace(RUN, method="compiled", off_task=0.3)
    kept.write_result(tmp_path)
    monkeypatch.setattr(fidelity_fill, "own_cost", lambda model, task: {"llama": 0.1, "mistral": 0.2}[model])
    monkeypatch.setattr(sys, "argv", ["fill", "--what", "own", "--results", str(tmp_path)])
    assert fidelity_fill.main() == 0
    (filled,) = read_results(tmp_path)
    assert filled == replace(kept, source_off_task=0.1, retrained_off_task=0.2)


def test_without_results_the_page_says_so() -> None:
    assert "No run has been made yet." in render([])
