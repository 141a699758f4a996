"""Tasks read and refused, runners scored, lift and its interval."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_fixtures import WORDS, tiny_lm

from cast.errors import TaskError
from cast.evaluate import (
    TaskData,
    bootstrap_interval,
    evaluate,
    off_task,
    read_task,
    recovered_lift,
)
from cast.models import LanguageModel
from cast.pocket.tasks import TASKS, Example
from cast.runners import PlainRunner
from cast.scoring import bits_per_byte
from cast.training import LoraTrainingConfig, train_lora

CHOICES = tuple(f" {word}" for word in WORDS[:3])
EXAMPLES = tuple(Example(f"The {word} fox sat. colour:", f" {word}", CHOICES) for word in WORDS[:3])
LINE = {"prompt": "p", "completion": "a", "choices": ["a", "b"]}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm()


@pytest.fixture(scope="module")
def trained(lm: LanguageModel) -> PlainRunner:
    """The tiny model with a LoRA that knows `EXAMPLES` by heart."""
    config = LoraTrainingConfig(rank=8, steps=100, batch_size=3, learning_rate=1e-2)
    return PlainRunner(lm, train_lora(lm, EXAMPLES, config, seed=0))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: object) -> str:
        path = tmp_path / "task.jsonl"
        path.write_text(
            "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        )
        return str(path)

    return write


# --- tasks -----------------------------------------------------------------------------------------------


def test_a_pocket_task_has_disjoint_streams() -> None:
    test, train = read_task("pocket:mood", limit=20), read_task("pocket:mood", "train", 20)
    assert test.metric == "choice"
    assert len(test.examples) == len(train.examples) == 20
    assert not {example.prompt for example in test.examples} & {example.prompt for example in train.examples}
    assert len(read_task("pocket:mood").examples) == 500


def test_every_pocket_task_is_read_with_its_metric() -> None:
    metrics = {name: read_task(f"pocket:{name}", limit=3).metric for name in TASKS}
    assert metrics == {name: "choice" if task.kind == "label" else "style" for name, task in TASKS.items()}


def test_a_file_is_read_as_it_stands(written) -> None:
    task = read_task(written(LINE, "", {**LINE, "completion": "b", "note": "left out"}))
    assert task.name == "task"
    assert task.examples == (Example("p", "a", ("a", "b")), Example("p", "b", ("a", "b")))
    assert task.metric == "choice"
    assert read_task(written({"prompt": "", "completion": "a"})).metric == "exact"
    assert len(read_task(written(LINE, LINE, LINE), limit=2).examples) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: not JSON"),
        ([LINE, "[]"], "line 2: not an object"),
        ([LINE, "", {"prompt": "p"}], "line 3: `completion` is missing"),
        ([{"prompt": 3, "completion": "a"}], "line 1: `prompt` is missing or not a string"),
        ([{"prompt": "p", "completion": ""}], "line 1: the completion is empty"),
        ([{**LINE, "choices": "ab"}], "line 1: `choices` must be a list"),
        ([{**LINE, "choices": ["a", ""]}], "line 1: `choices` must be a list"),
        ([{**LINE, "choices": ["a"]}], "line 1: `choices` needs at least two"),
        ([{**LINE, "choices": ["a", "a"]}], "line 1: `choices` needs at least two"),
        ([{**LINE, "choices": [" a", "b"]}], "line 1: the completion 'a' is none of its choices"),
        ([LINE, {"prompt": "p", "completion": "a"}], "choices to some examples only"),
        ([""], "holds no example"),
        (["[" * 100_000], "line 1: not JSON"),
        (['"' + "x" * 1_000_001], "line 1: longer than 1,000,000"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(written, lines: list, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_task(written(*lines))


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(TaskError, match="not UTF-8"):
        read_task(str(tmp_path / "latin.jsonl"))
    with pytest.raises(TaskError, match="cannot be read"):
        read_task(str(tmp_path))
    with pytest.raises(TaskError, match="cannot be read"):
        read_task(str(tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match=r"no pocket task 'mode'; there are mood, what"):
        read_task("pocket:mode")
    with pytest.raises(TaskError, match="at least 1"):
        read_task("pocket:mood", limit=0)


# --- reports ---------------------------------------------------------------------------------------------


def test_what_was_learnt_scores_and_the_base_does_not(lm: LanguageModel, trained: PlainRunner) -> None:
    task = TaskData("colours", EXAMPLES)
    base, report = evaluate(PlainRunner(lm), task), evaluate(trained, task)
    assert report.choice is not None
    assert report.choice.tolist() == [1, 1, 1]
    assert report.exact is not None
    assert report.exact.tolist() == [1, 1, 1]
    assert [output.strip() for output in report.outputs] == WORDS[:3]
    assert (report.score, report.scores.tolist()) == (1.0, [1, 1, 1])
    assert base.score < 1
    assert base.bits_per_byte > 5 * report.bits_per_byte
    assert report.style is None
    assert json.loads(json.dumps(report.summary()))["choice"] == 1.0


def test_a_rule_scores_what_was_generated(trained: PlainRunner) -> None:
    plain = tuple(Example(example.prompt, example.completion) for example in EXAMPLES)
    task = TaskData("starts", plain, style=lambda example, text: float(text.strip().startswith("re")))
    report = evaluate(trained, task)
    assert report.metric == "style"
    assert report.scores.tolist() == [1, 0, 0]
    assert report.choice is None


def test_without_generation_nothing_is_claimed_of_it(trained: PlainRunner) -> None:
    report = evaluate(trained, TaskData("colours", EXAMPLES), greedy=False, limit=2)
    assert (report.exact, report.outputs, report.count) == (None, (), 2)
    plain = TaskData("plain", (Example("The red fox", " sat"),))
    with pytest.raises(TaskError, match="greedy=True"):
        evaluate(trained, plain, greedy=False).score  # noqa: B018


def test_off_task_cost_is_nil_for_the_base_and_follows_the_strength(lm, trained) -> None:
    lines = [f"The {word} house sat by the fox." for word in WORDS]
    before = bits_per_byte(PlainRunner(lm), lines)
    assert off_task(PlainRunner(lm), before, lines) == 0
    half = PlainRunner(lm, trained.lora, 0.5)
    assert off_task(trained, before, lines) != off_task(half, before, lines)


# --- lift ------------------------------------------------------------------------------------------------

shares = st.floats(0, 1)


@given(shares, shares)
def test_lift_is_0_at_the_base_and_1_at_the_retrained(base: float, retrained: float) -> None:
    if retrained - base >= 0.1:
        assert recovered_lift(base, base, retrained) == 0
        assert recovered_lift(base, retrained, retrained) == 1
    else:
        assert recovered_lift(base, retrained, retrained) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 0.9))
def test_the_interval_holds_the_lift_and_narrows_with_examples(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    widths = []
    for count in (50, 800):
        base = (rng.random(count) < 0.2).astype(float)
        translated = (rng.random((3, count)) < share).astype(float)
        retrained = (rng.random(count) < 0.95).astype(float)
        lift = recovered_lift(base.mean(), translated.mean(), retrained.mean())
        interval = bootstrap_interval(base, translated, retrained, draws=300, seed=seed)
        assert interval is not None
        assert lift is not None
        assert interval[0] <= lift <= interval[1]
        widths.append(interval[1] - interval[0])
    assert widths[1] < widths[0]


def test_pairing_over_examples_counts() -> None:
    """A translation that is right exactly where the retrained is has no doubt in its lift."""
    right = np.tile([1.0, 0.0, 1.0, 1.0], 50)
    assert bootstrap_interval(np.zeros(200), right, right) == (1.0, 1.0)


def test_seeds_that_differ_widen_the_interval() -> None:
    base, retrained = np.zeros(400), np.ones(400)
    alike = np.tile([1.0, 0.0], 200)
    same = bootstrap_interval(base, np.stack([alike] * 3), retrained)
    apart = bootstrap_interval(base, np.stack([np.zeros(400), alike, np.ones(400)]), retrained)
    assert same is not None
    assert apart is not None
    assert apart[1] - apart[0] > 3 * (same[1] - same[0])


def test_there_is_no_interval_where_there_is_no_lift() -> None:
    assert bootstrap_interval(np.ones(10), np.ones(10), np.ones(10)) is None
