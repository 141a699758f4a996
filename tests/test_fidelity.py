"""The fidelity table: rendered from kept results alone, tasks left out by rule are named."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fidelity_table import Cell, render, write_table
from cast.results import Result

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


def test_without_results_the_page_says_so() -> None:
    assert "No run has been made yet." in render([])
