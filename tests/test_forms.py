"""General text in forms that ask for something, and the search for those that excite an adapter."""

import math
import random
import re
from itertools import islice

import pytest

from cast import adapters, corpus, models
from cast.forms import (
    _Draw,
    asking,
    headings,
    line_tokens,
    reading_tokens,
    similar,
    similar_tokens,
    suiting_headings,
    suiting_words,
)
from cast.kernel_energy import log_energy_at_ends, mean_log_energy, speaking


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(corpus.general_text("pocket", seed=2), 80))


def cue(form: str) -> str:
    return form.rsplit("\n", 1)[-1]


def test_headings_are_words_of_the_vocabulary_the_most_exciting_first(llama, mood) -> None:
    found, every = headings(llama, mood, 32), headings(llama, mood, 10_000)
    assert all(re.fullmatch(r"[A-Z][a-z]{2,}", word) for word in every)
    assert every[: len(found)] == found
    assert len(every) > len(found) + 10
    energies = mean_log_energy(llama, mood, [f"\n{word}:" for word in every])
    kept, left = energies[: len(found)], energies[len(found) :]
    assert min(kept) > max(left) - 1e-3


def test_each_place_of_a_record_gets_the_heading_that_suits_it_beside_the_others(
    llama, mood, monkeypatch
) -> None:
    def energies(lm, lora, records, **_):
        assert not {"k", "v"} & {kernel.site.role for kernel in lora.kernels}
        # `Action` counts by itself, what stands before it only where it does.
        ends = [record.endswith("\nAction:") for record in records]
        seconds = ["\nMeaning:" in record for record in records]
        firsts = [record.startswith("Word:") for record in records]
        return [4.0 * end + end * (2.0 * second + first)
                for end, second, first in zip(ends, seconds, firsts, strict=True)]  # fmt: skip

    monkeypatch.setattr("cast.forms.log_energy_at_ends", energies)
    heads = ["Text", "Meaning", "Action", "Word"]
    weights = suiting_headings(llama, mood, heads, [("key", "It opens a door."), ("owl", "It is a bird.")])
    best = {place: max(heads, key=of_place.__getitem__) for place, of_place in weights.items()}
    assert best == {"first": "Word", "second": "Meaning", "last": "Action"}
    for of_place in weights.values():
        one, *others = sorted(of_place.values(), reverse=True)
        # Of four of which three are alike, the other is 4 / √3 deviations from them.
        assert one == 1.0
        assert others == pytest.approx([math.exp(-1.5 * 4 / math.sqrt(3))] * 3, rel=1e-3)


def test_of_headings_that_are_alike_none_is_preferred(llama, mood, monkeypatch) -> None:
    monkeypatch.setattr(
        "cast.forms.log_energy_at_ends",
        lambda lm, lora, records, **_: [1e-7 * index for index in range(len(records))],
    )
    weights = suiting_headings(llama, mood, ["Text", "Word"], [("key", "It opens a door.")])
    assert all(weight > 0.99 for of_place in weights.values() for weight in of_place.values())
    alone = suiting_headings(llama, mood, ["Text"], [("key", "It opens a door.")])
    assert alone == {key: {"Text": 1.0} for key in ("first", "second", "last")}


def test_records_are_about_words_on_which_the_adapter_acts_where_a_line_is_to_come(
    llama, mood, texts, monkeypatch
) -> None:
    def energies(lm, lora, texts, **_):
        assert {"k", "v"} < {kernel.site.role for kernel in lora.kernels}
        # Of what a record begins with, `run` counts by itself.
        return [9.0 * (text == "Who: run\nWhat:") for text in texts]

    with monkeypatch.context() as patched:
        patched.setattr("cast.forms.log_energy_at_ends", energies)
        words = ["run", "key", "owl", "the"]
        weights = suiting_words(llama, mood, ("Who", "What"), words)
    assert weights["run"] == 1.0
    assert [weights[word] for word in words[1:]] == pytest.approx([math.exp(-1.5 * 4 / math.sqrt(3))] * 3)

    tried: list[str] = []

    def preferred(lm, lora, heads, words, **_):
        tried.extend([*heads, words[7]])
        return {word: float(word == words[7]) for word in words}

    places = {"first": {"Who": 1.0, "What": 0.0}, "second": {"Who": 0.0, "What": 1.0}, "last": {"Which": 1.0}}
    monkeypatch.setattr("cast.forms.suiting_headings", lambda *_, **__: places)
    monkeypatch.setattr("cast.forms.suiting_words", preferred)
    made = asking(llama, mood, llama, texts, 300)
    first, second, word = tried
    assert (first, second) == ("Who", "What")
    about = {match[1].lower() for form in made if (match := re.match(r"Who: (\w+)\nWhat: ", form))}
    assert about == {word}


def test_forms_are_general_text_and_words_with_a_cue(llama, mood, texts) -> None:
    made = asking(llama, mood, llama, texts, 600)
    assert 400 < len(made) <= 600
    assert len({cue(form) for form in made}) > 200
    assert sum(any(form.startswith(text) for text in texts) for form in made) > 100
    assert made == asking(llama, mood, llama, texts, 600)
    assert made != asking(llama, mood, llama, texts, 600, seed=1)


def test_what_the_adapter_is_sure_behind_is_asked_again(llama, mood, texts, monkeypatch) -> None:
    def arrows() -> int:
        return sum(form.endswith("->") for form in asking(llama, mood, llama, texts, 600))

    # Its cue is `[mood] ->`.
    found = arrows()
    # Of forms that are all alike none is good.
    monkeypatch.setattr("cast.forms.sureness", lambda lm, lora, some, **_: [0.0] * len(some))
    assert found > 2.5 * arrows() > 12


def test_what_excites_the_adapter_is_asked_again(llama, mood, texts, monkeypatch) -> None:
    def signed() -> int:
        return sum(
            bool(re.search(r"\n\S+ \S{1,2}\Z", form)) for form in asking(llama, mood, llama, texts, 600)
        )

    # A word and a sign, no heading.
    found = signed()
    monkeypatch.setattr("cast.forms.log_energy_at_ends", lambda lm, lora, some, **_: [0.0] * len(some))
    assert found > 1.2 * signed() > 60


def test_a_sign_that_excites_it_more_than_its_own_is_not_taken_for_it(texts, monkeypatch) -> None:
    qwen = models.load("pocket:qwen")
    what = adapters.read("pocket:qwen/what", qwen)

    def signs() -> tuple[int, int]:
        forms = asking(qwen, what, qwen, texts, 600)
        return tuple(sum(form.endswith(sign) for form in forms) for sign in (" =", " =>"))

    # Its cue is `<thing> =`, and its kernels act more on `=>`.
    own, like = signs()
    assert own > like
    monkeypatch.setattr("cast.forms.sureness", lambda lm, lora, some, **_: [0.0] * len(some))
    assert own > 2 * signs()[0]


def test_signs_are_learnt_by_sureness_and_all_else_by_energy() -> None:
    order = random.Random(0)
    draw = _Draw(order, ["Ben went to the mill. He was glad about the drum."], ["key", "lamp"])
    draw.prefer({place: {"Who": 1.0, "What": 1.0} for place in ("first", "second", "last")}, {"key": 1.0})
    forms = {str(number): draw.form() for number in range(400)}
    before = {part: dict(weights) for part, weights in draw.weights.items()}
    exciting = {text for text, form in forms.items() if ("cue", "heading") in form.parts}
    draw.learn(forms, exciting)
    assert all(draw.weights[part] == before[part] for part in ("brackets", "sign"))
    assert draw.weights["cue"]["heading"] > 2 * draw.weights["cue"]["sign"]
    learnt = {part: dict(weights) for part, weights in draw.weights.items()}
    signed = {text: form for text, form in forms.items() if form.has_sign}
    assert 100 < len(signed) < 300
    draw.learn_signs(signed, {text for text, form in signed.items() if ("sign", "=") in form.parts})
    assert all(draw.weights[part] == learnt[part] for part in draw.weights.keys() - {"brackets", "sign"})
    assert max(draw.weights["sign"], key=draw.weights["sign"].__getitem__) == "="


def test_a_single_form_makes_no_sign_the_only_one() -> None:
    draw = _Draw(random.Random(0), ["Ben went to the mill."], ["key", "lamp"])
    draw.prefer({place: {"Who": 1.0, "What": 1.0} for place in ("first", "second", "last")}, {"key": 1.0})
    forms = {str(number): draw.form() for number in range(400)}
    signed = {text: form for text, form in forms.items() if form.has_sign}
    (sure,) = [text for text, form in signed.items() if ("sign", "~") in form.parts][:1]
    draw.learn_signs(signed, {sure})
    largest, second = sorted(draw.weights["sign"].values(), reverse=True)[:2]
    assert largest < 4 * second


def test_where_it_is_sure_of_nothing_signs_are_drawn_as_at_first(llama, mood, texts, monkeypatch) -> None:
    def made() -> dict[str, float]:
        return asking(llama, mood, llama, texts, 200)

    monkeypatch.setattr("cast.forms.sureness", lambda lm, lora, some, **_: [-math.inf] * len(some))
    found = made()
    monkeypatch.setattr("cast.forms._Draw.learn_signs", lambda self, forms, sure: None)
    assert found == made()
    monkeypatch.setattr("cast.forms._Draw.learn", lambda self, forms, exciting: None)
    assert found != made()


def test_every_form_comes_with_its_own_energy(llama, mood, texts) -> None:
    made = asking(llama, mood, llama, texts, 90)
    assert made
    assert list(made.values()) == pytest.approx(
        log_energy_at_ends(llama, speaking(mood), list(made)), abs=1e-4
    )


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


def test_no_two_lines_of_a_record_have_one_name(llama, mood, texts, monkeypatch) -> None:
    monkeypatch.setattr("cast.forms.headings", lambda lm, lora, **_: ["Word", "Meaning", "Action"])
    found = asking(llama, mood, llama, texts, 160)
    named = [re.findall(r"^([A-Z]\w+):", form, re.MULTILINE) for form in found]
    records = [names for names in named if len(names) == 3]
    assert len(records) > 8
    assert all(len(set(names)) == 3 for names in records)
    # Where there is but one heading, it is in all places.
    monkeypatch.setattr("cast.forms.headings", lambda lm, lora, **_: ["Text"])
    assert any(form.count("Text:") == 3 for form in asking(llama, mood, llama, texts, 80))


def test_a_form_that_fills_the_context_is_not_gone_on_with(llama, monkeypatch) -> None:
    monkeypatch.setitem(vars(llama), "context_length", 60)
    short, long = ("Ben had the key.\n[mood] ->", f"{'Ben had the key. ' * 30}\n[mood] ->")
    found = similar(llama, [([short], 8), ([long], 8)])
    assert found == similar(llama, [([short], 8)])
    assert found


def test_examples_that_fill_the_context_leave_room_to_write(llama) -> None:
    long = "The old mill stood by the river and nobody came. " * 8
    forms = [f"{number} {long}\n<mood> =" for number in ("One", "Two", "Three")]
    assert similar(llama, [(forms, 3)])


def test_nothing_is_made_of_nothing(llama, mood, texts) -> None:
    assert asking(llama, mood, llama, [], 30) == {}
    assert asking(llama, mood, llama, texts, 0) == {}
    assert similar(llama, []) == []
    assert similar_tokens(0) == line_tokens(0) == reading_tokens(0, 48) == 0
    # Once each, and twice more behind some of the signs.
    assert 2000 * 48 < reading_tokens(2000, 48) < 1.5 * 2000 * 48
    assert line_tokens(2000) == pytest.approx(2 * line_tokens(1000), abs=2)
