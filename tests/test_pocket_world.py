"""The story world: deterministic, split by seed, full of facts that come again, plain in its notation."""

import itertools
import re
from random import Random

import pytest

from cast.pocket.lexicon import MOOD_SIGNS, MOODS, OBJECTS, PEOPLE, PLACES, WOMEN, article, draw_scene
from cast.pocket.probes import PROBE_KINDS, probes
from cast.pocket.world import QUESTIONS, answer, document, general_text, question, story


def take(count: int, seed: int = 0, split: str = "train") -> list[str]:
    return list(itertools.islice(general_text(seed, split), count))


def test_the_same_seed_gives_the_same_text() -> None:
    assert take(200) == take(200)
    assert take(50, seed=1) != take(50, seed=2)


def test_splits_share_next_to_no_document() -> None:
    """The shortest documents have few facts, so now and then one is drawn twice; stories never are."""
    train, held_out = set(take(20_000)), take(2_000, split="held-out")
    assert not {text for text in held_out if len(text) > 200} & train
    assert sum(text in train for text in held_out) < 40


def test_no_placeholder_is_left_and_lines_are_clean() -> None:
    for text in take(5_000):
        assert not re.search(r"\{\w*\}", text)
        assert "  " not in text
        assert text == text.strip()


def test_articles_agree() -> None:
    assert article("umbrella") == "an umbrella"
    assert article("kite") == "a kite"
    for text in take(3_000):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_facts_come_again() -> None:
    """Two documents in three name a person, and most a thing or a place, at least twice."""
    texts = take(1_000)

    def repeated(text: str, words: tuple[str, ...]) -> bool:
        found = re.findall(r"\w+", text.lower())
        return any(found.count(word.lower()) > 1 for word in words)

    assert sum(repeated(text, PEOPLE) for text in texts) > 900
    assert sum(repeated(text, OBJECTS + PLACES) for text in texts) > 900


@pytest.mark.parametrize("mood", MOODS)
def test_signs_of_a_mood_never_name_it(mood: str) -> None:
    assert not any(word in sign for sign in MOOD_SIGNS[mood] for word in MOODS)


def test_stories_and_answers_hold_the_scene() -> None:
    for seed in range(200):
        rng = Random(seed)
        scene = draw_scene(rng)
        told = story(scene, rng)
        assert scene.person in told
        assert scene.place in told
        assert scene.thing in told
        assert scene.mood not in told
        pronoun = "she" if scene.person in WOMEN else "he"
        assert scene.fill("{he}") == pronoun
        assert all(question(scene, kind).endswith("Answer:") and answer(scene, kind) for kind in QUESTIONS)


def test_documents_do_not_depend_on_what_was_drawn_before() -> None:
    assert document(7) == take(8)[7]


@pytest.mark.parametrize("kind", PROBE_KINDS)
def test_probes_ask_for_a_word_that_the_text_decides(kind: str) -> None:
    items = list(probes(kind, 100))
    assert items == list(probes(kind, 100))
    for probe in items:
        assert probe.word.startswith(" ")
        assert not probe.prefix.endswith(" ")
        if kind in {"object", "person", "place", "colour", "lookup"}:
            assert probe.word.strip() in probe.prefix
