"""The fidelity table: rendered from kept results alone, tasks left out by rule are named."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import fidelity_fill
from benchmarks.fidelity_segments import segments_section
from benchmarks.fidelity_table import Cell, render, write_table
from benchmarks.speed import Way, costs, hosted_blocks
from benchmarks.speed_record import Cost, SpeedRun, read_runs
from cast.results import Result, read_results
from cast.runners import PlainRunner
from cast.wording import WordedRunner

RUN = Result(
    "hosted", "pocket:llama", "pocket:mistral", "pocket:mood", 0, "choice",
    base=0.2, translated=0.8, retrained=1.0, source_adapted=1.0, lift=0.75, interval=(0.7, 0.8),
    off_task=0.02, examples=500, revision="abc",
)  # fmt: skip


def test_one_run_is_shown_as_it_is(tmp_path: Path) -> None:
    RUN.write_result(tmp_path / "runs")
    write_table(tmp_path / "runs", tmp_path / "speeds", tmp_path / "fidelity.md")
    page = (tmp_path / "fidelity.md").read_text()
    assert "| hosted | 1 | 0.75 (1) | – | 0.75 | 0.75 (llama → mistral, mood) | +2.0 % | – | 0 |" in page
    # One method on a pair makes no table of its own.
    assert "| pair | method | mood |" in page
    assert "| llama → mistral | hosted | 80.0 · **0.75** |" in page
    assert "code at abc" in page


def test_several_methods_on_a_pair_stand_side_by_side() -> None:
    page = render([RUN, replace(RUN, method="instant", lift=0.5, translated=0.6, interval=(0.4, 0.6))])
    assert "## llama → mistral" in page
    cells = "80.0 · **0.75** [0.70, 0.80] | 60.0 · **0.50** [0.40, 0.60]"
    assert f"| mood | choice accuracy | 20.0 | 100.0 | 100.0 | {cells} |" in page
    assert "Other pairs" not in page


def test_the_median_and_the_least_are_over_pairs_and_tasks_with_seeds_averaged() -> None:
    others = [
        replace(RUN, seed=1, lift=0.25),
        replace(RUN, target="pocket:neox", lift=0.9),
        replace(RUN, target="pocket:neox", task="pocket:json", metric="style", lift=0.6),
    ]
    page = render([RUN, *others])
    assert "| hosted | 2 | 0.63 (2) | 0.60 (1) | 0.60 | 0.50 (llama → mistral, mood) |" in page


def test_a_task_that_retraining_does_not_lift_is_named_and_left_out() -> None:
    flat = replace(
        RUN, task="pocket:brief", metric="style", base=0.9, retrained=0.95, lift=None, interval=None
    )
    page = render([RUN, flat, replace(RUN, method="instant")])
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
    costs = {"source_off_task": 0.1, "retrained_off_task": 0.2, "general_bits": 0.5}
    page = render([
        replace(RUN, off_task=0.3015, **costs),
        replace(RUN, method="theseus", lift=0.1, interval=(0.0, 0.2), translated=0.28, off_task=0.5, **costs),
        # The source needs three times the bits, so its 10 % are as much as the target's 30 %.
        replace(RUN, source="pocket:mistral", target="pocket:llama", general_bits=1.5),
    ])  # fmt: skip
    least = "(llama → mistral, mood)"
    assert f"| theseus | 1 | 0.10 (1) | – | 0.10 | 0.10 {least} | +50.0 % | 1 of 1 | 0 |" in page
    assert (
        "| hosted | 2 | 0.75 (2) | – | 0.75 | 0.75 (llama → mistral, mood) | +16.1 % | 0 of 1 | 0 |" in page
    )
    assert "| task | theseus: score · **lift** |" in page
    # The larger own cost is 30 % of the target's bits: 0.5 % of that more is allowed, 67 % are not.
    assert "| mood | +10.0 | +20.0 | +30.1 | **+50.0** |" in page
    assert "| *the source with its own adapter* |  |  |  |  |  | +10.0 % |  |  |" in page


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
    monkeypatch.setattr(fidelity_fill, "general_bits", lambda model: {"mistral": 0.4}[model])
    monkeypatch.setattr(fidelity_fill, "own_cost", lambda model, task: {"llama": 0.1, "mistral": 0.2}[model])
    monkeypatch.setattr(sys, "argv", ["fill", "--what", "own", "--results", str(tmp_path)])
    assert fidelity_fill.main() == 0
    (filled,) = read_results(tmp_path)
    assert filled == replace(kept, source_off_task=0.1, retrained_off_task=0.2, general_bits=0.4)


SPEED = SpeedRun(
    "llama", "mistral", "mood", "a processor", 2, 1, "processor", 7, 10**8, {"torch": "2"},
    (
        Cost("target", 0, 1e-4, 5e-3, 2e-3), Cost("hosted-1", 0, 2e-4, 9e-3, 8e-3, 5e-3),
        Cost("hosted", 0, 2e-4, 9e-3, 6e-3, 5e-3), Cost("instant", 19, 1e-4, 5e-3, 3e-3),
    ),
)  # fmt: skip


def test_segments_stand_beside_their_cost_on_the_tasks_that_all_have(tmp_path: Path) -> None:
    runs = [
        replace(RUN, method=method, task=f"pocket:{task}", lift=lift, off_task=0.5)
        for method, task, lift in (
            ("hosted-1", "mood", 0.25), ("hosted-1", "who", 0.5), ("hosted-1", "json", 0.0),
            ("hosted", "mood", 1.0), ("hosted", "who", 0.9), ("kernel", "mood", 0.1),
        )
    ]  # fmt: skip
    SPEED.write(tmp_path)
    assert read_runs(tmp_path) == [SPEED]
    section = segments_section(runs, read_runs(tmp_path))
    assert "| llama → mistral: N | mood | who | mean | off-task |" in section
    assert "| 1 | 0.25 | 0.50 | 0.38 | +50.0 % |" in section
    assert "| all, by words | 1.00 | 0.90 | 0.95 | +50.0 % |" in section
    assert "| N = 1 | 4.00 | 2.50 |" in section
    assert "| N = all, by words | 3.00 | 2.50 |" in section
    assert "instant" not in section
    assert "1 is 2.0 ms (processor seconds, 1 thread, a processor)." in section
    assert "Too few of them" in segments_section(runs[:3], [])


def test_ways_are_timed_in_turn_and_a_hosted_one_beside_what_it_may_cost(tiny_model, tiny_lora) -> None:
    """A clock that counts its own questions: what is compared is what lies between two of them."""
    source, target = tiny_model("llama"), tiny_model("gpt_neox", width=24)
    ways = [
        Way("target", PlainRunner(target)),
        Way("hosted", WordedRunner(source, tiny_lora(source), target)),
    ]
    ticks = itertools.count()
    alone, hosted = costs(ways, ["The fox met the owl."], 1, lambda: float(next(ticks)))
    assert (alone.written_seconds, alone.limit_seconds) == (1, None)
    # The hosted blocks are looked at before and after: one tick each, twice, and 15 % more.
    assert hosted.limit_seconds == pytest.approx(1.15 * (1 + 2 * source.depth))
    assert hosted_blocks(ways[1].runner) == set(range(1, source.depth + 1))


def test_without_results_the_page_says_so() -> None:
    assert "No run has been made yet." in render([])
