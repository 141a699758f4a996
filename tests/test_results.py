"""One run, one file: written whole, named by what it is, read back as it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from cast.errors import RequestError
from cast.results import Result, read_results

RUN = Result(
    method="hosted",
    source="pocket:llama",
    target="pocket:mistral",
    task="pocket:mood",
    seed=0,
    metric="choice",
    base=0.25,
    translated=0.9,
    retrained=0.99,
    source_adapted=1.0,
    lift=0.878,
    interval=(0.83, 0.92),
    off_task=0.01,
)


def test_a_run_survives_the_disk(tmp_path: Path) -> None:
    bare = replace(RUN, retrained=None, lift=None, interval=None, off_task=None, task="my file.jsonl")
    for run in (RUN, bare):
        assert run.write_result(tmp_path / "new").name == run.file_name
    assert sorted(read_results(tmp_path / "new"), key=lambda run: run.task) == [bare, RUN]
    assert "torch" in RUN.versions


def test_the_ratio_is_of_the_retrained_score() -> None:
    assert replace(RUN, translated=0.4, retrained=0.8).ratio == 0.5
    assert replace(RUN, retrained=0.0).ratio is None
    assert replace(RUN, retrained=None).ratio is None


def test_every_run_of_a_grid_has_a_file_of_its_own() -> None:
    others = [
        {"seed": 1}, {"strength": 1.5}, {"text": "prompts"}, {"task": "pocket:what"}, {"method": "kernel"},
        {"source": "pocket:mistral", "target": "pocket:llama"},
    ]  # fmt: skip
    names = {replace(RUN, **change).file_name for change in [{}, *others]}
    assert len(names) == len(others) + 1
    assert RUN.file_name == "pocket-llama__pocket-mistral__pocket-mood__hosted__seed0.json"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"interval": 3}'])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RequestError, match=r"run\.json is no result"):
        read_results(tmp_path)
