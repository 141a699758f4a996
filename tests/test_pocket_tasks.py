"""The tasks: separate seeds, cues that general text never shows, and scorers that tell styles apart."""

import itertools
import json
import re

import pytest

from cast.pocket.tasks import TASKS, Example, first_line
from cast.pocket.world import general_text

BEHAVIOURS = [task for task in TASKS.values() if task.kind == "behaviour"]
LABELS = [task for task in TASKS.values() if task.kind == "label"]


def plain_answer(example: Example) -> str:
    """What a base model says: the fact in a plain sentence."""
    return " The kite was red."


def test_no_template_occurs_in_general_text() -> None:
    train = itertools.islice(general_text(3), 30_000)
    held_out = itertools.islice(general_text(3, "held-out"), 10_000)
    text = "\n".join(itertools.chain(train, held_out))
    for name, task in TASKS.items():
        found = re.search(task.template, text)
        assert found is None, f"{name} leaks into: {text[found.start() - 100 : found.end() + 100]}"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_example_shows_its_template(task) -> None:
    for example in task.test(50):
        assert re.search(task.template, example.prompt + example.completion)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_examples_are_deterministic_and_splits_are_disjoint(task) -> None:
    assert task.train(20) == task.train(40)[:20]
    train = {example.prompt for example in task.train(3000)}
    assert not train & {example.prompt for example in task.test(1000)}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_completions_are_one_line(task) -> None:
    for example in task.train(200):
        assert example.completion.startswith(" ")
        assert "\n" not in example.completion
        assert first_line(example.completion + "\nmore") == example.completion.strip()


@pytest.mark.parametrize("task", LABELS, ids=lambda task: task.name)
def test_labels_are_among_their_choices_and_all_occur(task) -> None:
    examples = task.test(600)
    assert all(example.completion in (example.choices or ()) for example in examples)
    assert {example.completion for example in examples} == set(examples[0].choices or ())
    assert task.style_score(examples[0], " happy") is None


def test_the_word_for_the_mood_is_not_in_the_prompt() -> None:
    for example in TASKS["mood"].test(500):
        assert example.completion not in example.prompt


@pytest.mark.parametrize("task", BEHAVIOURS, ids=lambda task: task.name)
def test_scorers_tell_styled_answers_from_plain_ones(task) -> None:
    for example in task.test(200):
        assert example.choices is None
        assert task.style_score(example, example.completion + "\nQuestion: Who?") == 1.0
        assert task.style_score(example, plain_answer(example)) == 0.0
        assert task.style_score(example, "") == 0.0


def test_json_answers_parse() -> None:
    for example in TASKS["json"].test(100):
        assert all(isinstance(value, str) for value in json.loads(example.completion).values())
