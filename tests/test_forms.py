"""General text in forms that ask for something, and the search for those behind which something is heard."""

import re
from itertools import islice

import pytest

from cast import corpus, models
from cast.forms import asking, headings, line_tokens, similar, similar_tokens
from cast.models import LanguageModel
from cast.pocket.tasks import TASKS


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return models.load("pocket:llama")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(corpus.general_text("pocket", seed=2), 80))


def cue(form: str) -> str:
    return form.rsplit("\n", 1)[-1]


def test_headings_are_words_that_the_model_puts_a_colon_behind(llama) -> None:
    found = headings(llama)
    # Every question in the story world has this heading.
    assert found[0] == "Question"
    assert all(re.fullmatch(r"[A-Z][a-z]{2,}", word) for word in found)
    assert headings(llama, 3) == found[:3]


def test_forms_are_general_text_and_words_with_a_cue_and_hold_no_tasks(llama, texts) -> None:
    made = asking(llama, llama, texts, 600, lambda some: [0.0] * len(some))
    assert 400 < len(made) <= 600
    assert len({cue(form) for form in made}) > 200
    assert sum(any(form.startswith(text) for text in texts) for form in made) > 100
    assert not [form for form in made for task in TASKS.values()
                if task.kind == "label" and re.search(task.template, form)]  # fmt: skip
    assert made == asking(llama, llama, texts, 600, lambda some: [0.0] * len(some))
    assert made != asking(llama, llama, texts, 600, lambda some: [0.0] * len(some), seed=1)


def test_what_is_heard_is_asked_again(llama, texts) -> None:
    def scored(some):
        return [float(form.endswith("=>")) for form in some]

    deaf = asking(llama, llama, texts, 600, lambda some: [0.0] * len(some))
    heard = asking(llama, llama, texts, 600, scored)
    count = sum(form.endswith("=>") for form in deaf)
    assert sum(heard.values()) > 2.5 * count
    assert count > 5


def test_every_form_comes_with_its_own_score(llama, texts) -> None:
    made = asking(llama, llama, texts, 90, lambda some: [float(len(form)) for form in some])
    assert made
    assert all(score == len(form) for form, score in made.items())


def test_similar_forms_have_new_bodies_of_each_group_and_its_cues(llama) -> None:
    asked = [
        ([f"Question: Who had the {thing}?\nAnswer: Ben had the {thing}.\n<who> ->"
          for thing in ("key", "lamp", "ring")], 20),
        ([f"The {place} was quiet.\n\n### Mood:\n" for place in ("farm", "mill", "school")], 10),
    ]  # fmt: skip
    made = similar(llama, asked)
    assert not {form for group, _ in asked for form in group} & set(made)
    asking = [form for form in made if form.endswith("\n<who> ->")]
    assert 10 < len(asking) <= 20
    assert sum(form.startswith("Question:") for form in asking) > len(asking) / 2
    assert 5 < sum(form.endswith("\n\n### Mood:\n") for form in made) <= 10
    assert len(made) == len(set(made))
    assert made == similar(llama, asked)


def test_examples_that_fill_the_context_leave_room_to_write(llama) -> None:
    long = "The old mill stood by the river and nobody came. " * 8
    forms = [f"{number} {long}\n<mood> =" for number in ("One", "Two", "Three")]
    assert similar(llama, [(forms, 3)])


def test_nothing_is_made_of_nothing(llama, texts) -> None:
    assert asking(llama, llama, [], 30, len) == {}
    assert asking(llama, llama, texts, 0, len) == {}
    assert similar(llama, []) == []
    assert similar_tokens(0) == line_tokens(0) == 0
    assert line_tokens(2000) == pytest.approx(2 * line_tokens(1000), abs=2)
