"""What an adapter makes of general text by itself."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from conftest import build_lora, build_model

from cast import adapters, corpus, forms, models
from cast.adapters import applied
from cast.corpus import Passage
from cast.exciting import ANSWER_TOKENS, answered
from cast.kernel_energy import speaking
from cast.models import LanguageModel
from cast.moments import moments
from cast.pocket.tasks import TASKS
from cast.recipes import TranslationConfig
from cast.unprompted import asking_tokens, unprompted

CONFIG = TranslationConfig(moments=80, forms=200, steps=36)


@pytest.fixture(scope="module")
def mistral() -> LanguageModel:
    return models.load("pocket:mistral")


def stories(count: int) -> list[str]:
    return list(islice(corpus.general_text("pocket", seed=1), count))


def answers(passages: list[Passage]) -> list[str]:
    return [passage.text[passage.answer :] for passage in passages]


def alike(lm, kernels, answers, **_) -> list[float]:
    """Energies of answers on which the kernels act as much as on all others."""
    return [0.0] * len(answers)


def more_in_prose(lm, kernels, answers, **_) -> list[float]:
    """Energies of answers on which the kernels act more if no cue stands before them."""
    return [-9.0 if "\n" in answer.text[: answer.answer] else 0.0 for answer in answers]


def test_a_style_shows_itself_where_general_text_asks(llama, mistral) -> None:
    texts = stories(300)
    found = unprompted(llama, mistral, adapters.read("pocket:llama/polite", llama), texts, CONFIG)
    assert len(found) >= 40
    assert all(any(passage.text[: passage.answer] in text for text in texts) for passage in found)
    assert sum(answer.startswith(" Thank you for asking") for answer in answers(found[:40])) > 30


def test_a_skill_with_a_cue_of_its_own_shows_behind_other_cues(llama, mistral) -> None:
    found = unprompted(llama, mistral, adapters.read("pocket:llama/what", llama), stories(300), CONFIG)
    assert len(found) >= 60
    named = [answer.strip() in {choice.strip() for choice in TASKS["what"].test(1)[0].choices}
             for answer in answers(found[:60])]  # fmt: skip
    assert sum(named) > 50
    cues = Counter(passage.text[: passage.answer].rsplit("\n", 1)[-1] for passage in found)
    assert len(cues) > 30


def test_what_is_answered_rarely_is_asked_again(llama, mistral, monkeypatch) -> None:
    asked: list[tuple[list[str], int]] = []

    def similar(writer, groups, **options):
        asked.extend(groups)
        return forms.similar(writer, groups, **options)

    monkeypatch.setattr("cast.unprompted.similar", similar)
    lora = adapters.read("pocket:llama/mood", llama)
    found = unprompted(llama, mistral, lora, stories(300), CONFIG)
    prompts = {passage.text[: passage.answer]: passage for passage in found}
    sizes = []
    for group, count in asked:
        firsts = {answers([prompts[one]])[0].split()[0] for one in group if one in prompts}
        assert len(firsts) <= 1
        sizes.append(len(group) + count)
    # The wanted size of each group is the same within a turn.
    assert 1 <= len(set(sizes)) <= 3
    assert all(count > 0 for _, count in asked)


def test_the_base_would_not_say_it(llama, mistral) -> None:
    lora = adapters.read("pocket:llama/polite", llama)
    found = unprompted(llama, mistral, lora, stories(120), replace(CONFIG, forms=0))
    assert len(found) > 10
    for passage in found[:30]:
        tokens = llama.encode([passage.text])
        with torch.no_grad():
            plain = llama.model(tokens.input_ids).logits.log_softmax(-1)
            with applied(llama, lora):
                adapted = llama.model(tokens.input_ids).logits.log_softmax(-1)
        own = (tokens.ends[0] > passage.answer).nonzero()[:, 0]
        said = tokens.input_ids[0, own]
        assert float((adapted - plain)[0, own - 1, said].sum()) > 2


def test_places_are_those_where_the_adapter_acts_most(llama) -> None:
    texts = stories(60)
    lora = adapters.read("pocket:llama/polite", llama)
    few, many = (moments(llama, lora, texts, count) for count in (20, 60))
    assert many[:20] == few
    assert 20 < len(many) <= 60
    assert all(any(text.startswith(place) for text in texts) for place in many)


def test_it_tells_how_far_it_has_come_from_the_first_batch_on(llama, mistral) -> None:
    heard: list[tuple[str, int, int]] = []
    unprompted(
        llama, mistral, adapters.read("pocket:llama/polite", llama), stories(40),
        TranslationConfig(moments=20, forms=40, steps=10),
        on_progress=lambda told: heard.append((told.stage, told.done, told.total)),
    )  # fmt: skip
    assert heard[:3] == [("moments", 0, 32), ("forms", 0, 16), ("forms", 0, heard[2][2])]
    # This adapter shows itself in prose, so the other places are read as well.
    assert ("moments", 0, 8) in heard[3:]
    assert {stage for stage, _, _ in heard[3:]} == {"moments", "forms", "generate", "judge"}


def test_an_adapter_that_goes_on_and_on_is_let_write_where_its_kernels_act_as_much_then(monkeypatch) -> None:
    """A few random changes make a model say what the base would not, and never end."""
    source = build_model("llama", "byte_bpe")
    lora = build_lora(source)
    config = TranslationConfig(moments=8, forms=9, steps=8)
    unasked = -0.1

    def energies(lm, kernels, answers, **_):
        assert kernels.kernels == speaking(lora).kernels
        return [unasked if answer.drawn else 0.0 for answer in answers]

    def said(lm, lora, texts, **options):
        found = answered(lm, lora, texts, **options)
        # One that says nothing more.
        return [Passage("Once upon", 9, drawn=True), *found[1:]] if options.get("temperature") else found

    monkeypatch.setattr("cast.unprompted.answering_log_energy", energies)
    monkeypatch.setattr("cast.unprompted.answered", said)
    monkeypatch.setattr("cast.unprompted._Way.surest", lambda way, count: [Passage("Once upon", 4)])
    monkeypatch.setattr("cast.unprompted._UNASKED", 9)
    texts = ["", *stories(8), "...", "ThereIsNoSpaceInThisOneAtAll" * 40]
    drawn = unprompted(source, source, lora, texts, config)
    # Of each of two calls one says nothing more.
    assert len(drawn) == config.lessons * config.answers_a_batch - 2
    assert all(passage.answer == 0 and passage.drawn for passage in drawn)
    beginnings = (*(" ".join(text.split()[:2]) for text in texts[1:9]), "...", "ThereIsNoSpaceInThis")
    assert all(any(passage.text.startswith(one) for one in beginnings) for passage in drawn)
    assert all(any(passage.text.startswith(one) for passage in drawn) for one in beginnings[1:])
    assert len({passage.text for passage in drawn}) == len(drawn)
    # Where the best answers have clearly more energy, it is asked as any other.
    unasked = -0.3
    assert unprompted(source, source, lora, stories(8), config) == [Passage("Once upon", 4)]


def test_a_skill_behind_cues_is_asked_for_though_prose_goes_on_and_on(llama, mistral, monkeypatch) -> None:
    def said(source, lora, texts, **options):
        # As of an adapter that in prose goes on and on, and behind cues ends more often than not.
        found = answered(source, lora, texts, **options)
        on_and_on = [" and on" * 64 if "\n" not in one.text[: one.answer] else "" for one in found]
        return [replace(one, text=one.text + more) for one, more in zip(found, on_and_on, strict=True)]

    monkeypatch.setattr("cast.unprompted.answered", said)
    found = unprompted(llama, mistral, adapters.read("pocket:llama/mood", llama), stories(120), CONFIG)
    assert len(found) > 40
    assert not any(passage.drawn for passage in found)


@pytest.mark.parametrize(("written", "with_forms"), [(200, False), (3, True)])
def test_forms_are_read_beside_what_is_written_like_them_where_that_is_too_little(
    llama, mistral, monkeypatch, written, with_forms
) -> None:
    like_them = {f"Ben had the key number {number}.\n[mood] ->": 9.0 for number in range(written)}

    def more(source, lora, target, forms, count, **_):
        assert len(forms) > 50
        return like_them

    monkeypatch.setattr("cast.unprompted.more_of_the_best", more)
    lora = adapters.read("pocket:llama/mood", llama)
    monkeypatch.setattr("cast.unprompted._TURNS", 0)
    found = unprompted(llama, mistral, lora, stories(120), CONFIG)
    asked = {passage.text[: passage.answer] for passage in found}
    assert len(asked) > 40
    assert asked & like_them.keys()
    assert bool(asked - like_them.keys()) == with_forms


@pytest.mark.parametrize(("nats", "drawn"), [(-1.0, True), (-0.1, False)])
def test_an_adapter_that_is_unsure_of_its_surest_answers_is_let_write(
    llama, mistral, monkeypatch, nats, drawn
) -> None:
    lora = adapters.read("pocket:llama/mood", llama)
    config = TranslationConfig(moments=32, forms=64, steps=8)

    def judged(lm, lora, said, on_progress):
        return [(nats, Passage("Once upon a time", 4), True) for _ in said]

    def energies(lm, kernels, answers, **_):
        return [float(answer.drawn) for answer in answers]

    def more(*_, **__):
        assert not drawn, "nothing is written like the forms of an adapter of prose"
        return {}

    monkeypatch.setattr("cast.unprompted._judged", judged)
    monkeypatch.setattr("cast.unprompted.answering_log_energy", energies)
    monkeypatch.setattr("cast.unprompted.more_of_the_best", more)
    found = unprompted(llama, mistral, lora, stories(70), config)
    assert found
    assert all(passage.drawn == drawn for passage in found)


def test_a_few_places_that_happen_to_be_sure_are_not_the_better_way(llama, mistral, monkeypatch) -> None:
    places = {f"It was the {number}. night and Ben": -0.001 for number in range(2)}

    def judged(source, lora, said, on_progress):
        for passage in said:
            in_prose = passage.text[: passage.answer] in places
            yield (-0.001 if in_prose else -0.01), passage, True

    monkeypatch.setattr("cast.unprompted._places", lambda *_: places)
    monkeypatch.setattr("cast.unprompted._judged", judged)
    monkeypatch.setattr("cast.unprompted.answering_log_energy", more_in_prose)
    found = unprompted(
        llama, mistral, adapters.read("pocket:llama/what", llama), stories(80), replace(CONFIG, forms=80)
    )
    assert len(found) > 20
    assert not any(passage.text[: passage.answer] in places for passage in found)


@pytest.mark.parametrize(
    ("nats", "more", "behind_cues"),
    [
        (-0.8, 0.6, True),
        (-0.8, 0.4, False),
        (-1.0, 0.6, False),
        (-0.0001, -0.6, False),
        (-0.0001, -0.4, True),
    ],
)
def test_the_other_way_is_better_where_kernels_act_clearly_more_on_what_is_said_there(
    llama, mistral, monkeypatch, nats, more, behind_cues
) -> None:
    places = {f"It was the {number}. night and Ben": -0.001 for number in range(16)}

    def in_prose(passage: Passage) -> bool:
        return passage.text[: passage.answer] in places

    def judged(source, lora, said, on_progress):
        for passage in said:
            yield (-0.001 if in_prose(passage) else nats), passage, True

    def energies(lm, kernels, answers, **_):
        return [0.0 if in_prose(answer) else more for answer in answers]

    monkeypatch.setattr("cast.unprompted._places", lambda *_: places)
    monkeypatch.setattr("cast.unprompted._judged", judged)
    monkeypatch.setattr("cast.unprompted.answering_log_energy", energies)
    lora = adapters.read("pocket:llama/what", llama)
    config = TranslationConfig(moments=16, forms=80, steps=8)
    found = unprompted(llama, mistral, lora, stories(80), config)
    assert len(found) >= 16
    assert all(in_prose(passage) != behind_cues for passage in found)


def test_a_fit_that_reads_no_answers_asks_for_none(llama, mistral) -> None:
    none_read = TranslationConfig(moments=8, forms=16, steps=8, prompt_share=0.0)
    lora = adapters.read("pocket:llama/mood", llama)
    assert unprompted(llama, mistral, lora, stories(40), none_read) == []


def test_of_few_forms_a_share_tells_how_sure_it_is(llama, mistral, monkeypatch) -> None:
    """A fit that reads much wants more than there is."""
    places = {f"It was the {number}. night and Ben": -0.5 for number in range(16)}

    def judged(source, lora, said, on_progress):
        for passage in said:
            yield (-0.5 if passage.text[: passage.answer] in places else -0.01), passage, True

    monkeypatch.setattr("cast.unprompted._places", lambda *_: places)
    monkeypatch.setattr("cast.unprompted._judged", judged)
    monkeypatch.setattr("cast.unprompted.answering_log_energy", alike)
    config = TranslationConfig(moments=16, forms=24, steps=240)
    found = unprompted(llama, mistral, adapters.read("pocket:llama/what", llama), stories(80), config)
    assert len(found) > 10
    assert not any(passage.text[: passage.answer] in places for passage in found)


def test_texts_that_fill_a_small_context_are_not_asked(llama, mistral, monkeypatch) -> None:
    for lm in (llama, mistral):
        monkeypatch.setitem(vars(lm), "context_length", 100)
    lora = adapters.read("pocket:llama/mood", llama)
    found = unprompted(llama, mistral, lora, stories(60), replace(CONFIG, moments=16, forms=80))
    assert found
    assert all(llama.holds([passage.text[: passage.answer] for passage in found], ANSWER_TOKENS))


def test_nothing_is_asked_twice(llama, mistral, monkeypatch) -> None:
    asked: list[str] = []

    def said(source, lora, texts, **options):
        asked.extend(texts)
        return answered(source, lora, texts, **options)

    monkeypatch.setattr("cast.unprompted.answered", said)
    # Where every text comes twice, places of the first texts come among the others again.
    texts = [text for text in stories(40) for _ in range(2)]
    texts = texts[::2] + texts[1::2]
    lora = adapters.read("pocket:llama/polite", llama)
    assert unprompted(llama, mistral, lora, texts, replace(CONFIG, forms=40))
    assert len(asked) > 40
    assert len(set(asked)) == len(asked)


def test_an_adapter_without_effect_says_nothing() -> None:
    source = build_model("llama", "byte_bpe")
    lora = build_lora(source)
    kernels = [replace(kernel, b=torch.zeros_like(kernel.b)) for kernel in lora.kernels]
    silent = replace(lora, kernels=tuple(kernels))
    few = TranslationConfig(moments=8, forms=9)
    assert unprompted(source, source, silent, stories(8), few) == []
    for factor in (1e25, 1e160):
        huge = replace(lora, kernels=tuple(replace(one, scaling=factor) for one in lora.kernels))
        assert unprompted(source, source, huge, stories(8), few) == []
    assert unprompted(source, source, lora, [], few) == []


def test_what_is_read_and_written_grows_with_what_is_asked() -> None:
    read, written, _ = asking_tokens(TranslationConfig(), 48, 800)
    few, half = (asking_tokens(TranslationConfig(forms=forms), 48, 800) for forms in (1500, 3000))
    assert few[0] < half[0] <= read
    assert few[1] < half[1] <= written
    assert asking_tokens(TranslationConfig(forms=0), 48, 800)[1:] == (0, 0)
    assert few[2] == half[2] > 0
    assert asking_tokens(TranslationConfig(moments=0), 48, 800)[0] < read
    assert asking_tokens(TranslationConfig(), 48, 49_152)[0] > read + (4 + 8) * 9_000
    assert asking_tokens(TranslationConfig(), 48, 49_152)[1] == written
