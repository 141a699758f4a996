"""Found forms as example prompts, and more of their kind."""

import pytest

from cast.exemplary import exemplary, more_of_the_best
from cast.kernel_energy import log_energy_at_ends, speaking
from cast.models import LanguageModel

THINGS = ("key", "lamp", "ring", "boat", "coat", "drum", "cup", "ball", "bell", "book")
READABLE = [f"Word: {thing}\nMeaning: Ben had the {thing}.\nKind:" for thing in THINGS]
NOISE = [f"Word: x{number}zq\nMeaning: {number}.7{number}3-q\nKind:" for number in range(10)]
PASSAGES = [
    f"Once upon a time there was a {thing} number {count}." for thing in THINGS for count in range(90)
]


def found(*exciting: list[str]) -> dict[str, float]:
    """Forms of which a sixteenth are the given ones, which have more energy than all others."""
    ones = [form for group in exciting for form in group]
    others = PASSAGES[: 15 * len(ones)]
    return dict.fromkeys(others, 0.0) | {form: 1.0 + place / 100 for place, form in enumerate(ones)}


def examples(lm: LanguageModel, forms: dict[str, float]) -> list[str]:
    """Those of one skill."""
    return [form for (group,) in [exemplary(lm, lm, forms).groups or [[]]] for form in group]


def test_examples_are_the_readable_ones_of_those_with_the_most_energy(llama) -> None:
    shown = examples(llama, found(READABLE, NOISE))
    assert sorted(shown) == sorted(READABLE)
    # Where others have more energy, however well they read, they are none.
    forms = dict.fromkeys(READABLE, 0.0) | dict(list(found(NOISE).items())[len(READABLE) :])
    assert len(forms) == 16 * len(NOISE)
    shown = examples(llama, forms)
    assert len(shown) == 5
    assert set(shown) < set(NOISE)


def test_examples_have_the_same_headings_and_there_are_a_few_of_them(llama) -> None:
    others = [form.replace("Word:", "Prefix:") for form in READABLE[:4]]
    shown = examples(llama, found(READABLE[4:], others, NOISE))
    assert {form.split(":")[0] for form in shown} == {"Word"}
    assert examples(llama, found(READABLE[:4], NOISE[:4])) == []
    without_cue = [form.rpartition("\n")[0] + "\n[kind] ->" for form in READABLE]
    assert examples(llama, found(without_cue, without_cue)) == []
    assert examples(llama, {}) == []


def test_no_more_examples_are_shown_than_are_needed(llama) -> None:
    many = [f"Word: {thing}\nMeaning: {name} had the {thing}.\nKind:" for thing in THINGS
            for name in ("Ben", "Tom", "Ann", "Sam")]  # fmt: skip
    forms = dict.fromkeys(many, 1.0) | {f"{count} was here.": 0.0 for count in range(15 * len(many))}
    shown = examples(llama, forms)
    assert len(shown) == 16
    assert set(shown) < set(many)


def test_two_skills_have_examples_each(llama) -> None:
    others = [form.replace("Kind:", "Mood:").replace("Word:", "Thing:") for form in READABLE]
    groups = exemplary(llama, llama, found(READABLE, others, NOISE)).groups
    assert {tuple(sorted({form.rpartition("\n")[2] for form in group})) for group in groups} == {
        ("Kind:",), ("Mood:",)
    }  # fmt: skip


def test_a_few_with_another_cue_are_noise_beside_many(llama) -> None:
    # More than the five that would do alone, and as readable as the others, but less than half of them.
    many = [form.replace("Ben", name) for form in READABLE for name in ("Ben", "Tom")]
    others = [form.replace("Kind:", "Mood:") for form in READABLE[:7]]
    unreadable = [form.replace("zq", f"zq{number}") for form in NOISE for number in range(3)]
    groups = exemplary(llama, llama, found(many, others, unreadable)).groups
    assert {form.rpartition("\n")[2] for group in groups for form in group} == {"Kind:"}
    assert exemplary(llama, llama, found(READABLE, others, NOISE)).groups[1:]


def test_where_most_exciting_forms_end_in_another_way_none_are_written(llama, mood) -> None:
    signs = [f"Ben had the {thing}.\n[{thing}] ->" for thing in (*THINGS, *THINGS[::-1])]
    signs = [f"{form[:4]}{number} {form[4:]}" for number, form in enumerate(signs)]
    forms = {form: energy - 99 for form, energy in found(READABLE, signs).items()}
    usual = exemplary(llama, llama, forms)
    assert usual.groups
    assert not usual.are_usual
    assert more_of_the_best(llama, mood, llama, forms, 40) == {}
    fewer = {form: energy - 99 for form, energy in found(READABLE, signs[:8]).items()}
    assert exemplary(llama, llama, fewer).are_usual


def test_forms_that_leave_no_room_in_the_context_are_no_examples(llama) -> None:
    long = [form.replace("Ben", "Ben and Tom and Ann and Sam " * 16) for form in READABLE]
    assert len(llama.tokens(long)[0][0]) > llama.context_length / 6
    shown = examples(llama, found(READABLE, long))
    assert len(shown) == 5
    assert set(shown) < set(READABLE)
    assert examples(llama, found(long, long[:0])) == []


def test_more_are_written_and_come_with_their_own_energy(llama, mood) -> None:
    forms = {form: energy - 99 for form, energy in found(READABLE, NOISE).items()}
    made = more_of_the_best(llama, mood, llama, forms, 40)
    assert len(made) == 40
    assert set(READABLE) < set(made)
    assert all(form.endswith("\nKind:") for form in made)
    assert list(made.values()) == pytest.approx(
        log_energy_at_ends(llama, speaking(mood), list(made)), abs=1e-4
    )
    assert made == more_of_the_best(llama, mood, llama, forms, 40)
    assert list(made) != list(more_of_the_best(llama, mood, llama, forms, 40, seed=1))


def test_more_are_written_of_each_skill(llama, mood) -> None:
    others = [form.replace("Kind:", "Mood:").replace("Word:", "Thing:") for form in READABLE]
    forms = {form: energy - 99 for form, energy in found(READABLE, others, NOISE).items()}
    cues = [form.rpartition("\n")[2] for form in more_of_the_best(llama, mood, llama, forms, 40)]
    assert len(cues) == 40
    assert min(cues.count("Kind:"), cues.count("Mood:")) > 12


def test_what_excites_the_adapter_no_more_than_the_forms_is_not_used(llama, mood) -> None:
    forms = {form: energy + 99 for form, energy in found(READABLE, NOISE).items()}
    assert examples(llama, forms)
    assert more_of_the_best(llama, mood, llama, forms, 20) == {}
    assert more_of_the_best(llama, mood, llama, found(READABLE[:3]), 20) == {}
