"""Example prompts made more, in their own form, and answered by the source."""

from dataclasses import replace

import pytest
import torch
from conftest import build_lora, build_model

from cast import exciting, headwords
from cast.corpus import Passage
from cast.exciting import answered, best_writer, by_form, evenly, excited, expanded
from cast.generation import generate_many
from cast.headwords import suiting, words_of
from cast.models import LanguageModel
from cast.runners import PlainRunner

PROMPTS = ["The owl smiled.\n[mood] ->", "The fox was late.\n[mood] ->", "They walked home.\n[mood] ->"]


@pytest.fixture(scope="module")
def source() -> LanguageModel:
    return build_model("llama", "byte_bpe")


def says(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[dict]:
    """Let the base model write these texts in turn."""
    calls: list[dict] = []

    def written(runner: PlainRunner, prompts: list[str], **settings: object) -> list[str]:
        calls.append({"prompts": prompts, "lora": runner.lora} | settings)
        return [texts[index % len(texts)] for index in range(len(prompts))]

    monkeypatch.setattr(exciting, "generate_many", written)
    return calls


def test_what_takes_up_the_form_is_kept_and_cut_at_its_ending(source, monkeypatch) -> None:
    calls = says(monkeypatch, "A duck came by.\n[mood] -> happy\nmore", "\nA dog ran.\n[mood] ->")
    found = expanded(source, PROMPTS, 7)
    assert found[:5] == [*PROMPTS, "A duck came by.\n[mood] ->", "A dog ran.\n[mood] ->"]
    assert calls[0]["lora"] is None
    # The next turns ask so too, although they find nothing more.
    asked = [text for call in calls[: exciting._NEW_TURNS] for text in call["prompts"]]
    assert all(exciting.SEPARATOR in text and any(shown in text for shown in PROMPTS) for text in asked)


def test_words_are_kept_that_the_examples_call_for_more_than_nothing_does(source, monkeypatch) -> None:
    words = [text[1:] for text in source.token_texts if text.startswith(" ") and text[1:].isalpha()]
    start = len(source.tokens(["Word:"])[0][0])
    token = {word: source.tokens([f"Word: {word}"])[0][0][start] for word in words}
    words = list({token[word]: word for word in words}.values())
    monkeypatch.setattr(headwords, "_FEWEST", 4)
    assert len(words) > 15
    wanted, common = words[8:10], words[:4]

    def said(runner, texts):
        # What is common is likely everywhere, a little less so behind the examples.
        logits, shown = torch.zeros(len(texts), runner.lm.vocabulary), "Owl" in texts[0]
        logits[:, [token[word] for word in common]] = 4.9 if shown else 5.0
        logits[:, [token[word] for word in wanted]] = 4.0 if shown else 0.0
        return logits.log_softmax(-1)

    monkeypatch.setattr(headwords, "next_log_probs", said)
    shown = ["Word: Owl\n\n"] * 6
    kept, others = suiting(source, [shown, ["Word: Fox\n\n"]], "Word: ", words)
    assert len(kept) == max(4, round(0.2 * len(words)))
    assert set(wanted) <= set(kept[:2])
    assert set(common).isdisjoint(kept)
    # Other examples that call for nothing leave the words in their order.
    assert set(wanted).isdisjoint(others[:2])
    # Where words cannot be told apart so, all are kept: no common start, few words, no room for the examples.
    assert suiting(source, [["Owl\n\n"]], "", words)[0] == words
    assert suiting(source, [shown], "Word: ", words[:4])[0] == words[:4]
    cut = ["Owl " * source.context_length]
    assert suiting(source, [cut, shown], "Word: ", words) == [words, kept]
    # A start that fills the context by itself is not read at all.
    monkeypatch.setattr(headwords, "next_log_probs", None)
    long = "Word " * source.context_length
    assert suiting(source, [["Owl\n\n"]], f"{long}: ", words) == [words]


def test_words_behind_a_start_that_ends_in_a_line_break_are_judged_behind_it(source, monkeypatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(headwords, "_FEWEST", 1)
    monkeypatch.setattr(
        headwords,
        "next_log_probs",
        lambda runner, texts: read.extend(texts) or torch.zeros(1, runner.lm.vocabulary),
    )
    assert suiting(source, [["Text:\nowl\n\n"]], "Text:\n", ["owl", "fox", "river", "village", "lamp"])[0]
    assert read == ["Text:\n", "Text:\nowl\n\nText:\n"]


def test_no_model_is_asked_for_words_where_there_are_prompts_enough(source, monkeypatch) -> None:
    monkeypatch.setattr(exciting, "suiting", None)
    assert expanded(source, PROMPTS, len(PROMPTS), words=["lamp"]) == PROMPTS


def test_what_does_not_take_it_up_goes_on_from_an_example_and_gets_its_ending(source, monkeypatch) -> None:
    calls = says(monkeypatch, " went away. And again it", "", " ran.")
    found = expanded(source, PROMPTS, 8)
    assert found[:3] == PROMPTS
    assert len(found) > 4
    # Asked behind examples once: a model that never does it is not asked again.
    assert all(exciting.SEPARATOR in text for text in calls[0]["prompts"])
    begun = [text for call in calls[1:] for text in call["prompts"]]
    assert all(any(prompt.startswith(text) for prompt in PROMPTS) for text in begun)
    for prompt in found[3:]:
        assert prompt.endswith(".\n[mood] ->")
        assert any(prompt.startswith(text) for text in begun)


def test_new_ones_begin_as_the_examples_do_with_words_of_their_own(source, monkeypatch) -> None:
    examples = [f"Word: {word}\nKind:" for word in ("Owl", "Fox", "Potato vine")]
    calls = says(monkeypatch, " of the woods\nKind:")
    words = words_of(["A lamp stood, as lamps do, on 12 tables."], source)
    known = {text[1:] for text in source.token_texts}
    assert words[:4] == ["lamp", "stood", "lamps", "tables"]
    assert len(words) > 4
    assert all(word in known and word.isalpha() and word.islower() for word in words[4:])
    found = expanded(source, examples, 9, words=words[:4])
    begun = [text.rpartition("\n\n")[2] for text in calls[0]["prompts"]]
    assert len(begun) == 6
    assert set(begun) <= {"Word:", "Word: Lamp", "Word: Stood", "Word: Lamps", "Word: Tables"}
    assert len(set(begun)) > 2
    assert all(
        prompt in {f"{text} of the woods\nKind:" for text in begun}
        for prompt in found[3 : 3 + len(set(begun))]
    )


def test_without_a_common_form_only_length_and_lines_are_asked_for(source, monkeypatch) -> None:
    says(monkeypatch, " duck came by", "two\nlines of it", "x" * 500, "short")
    found = expanded(source, ["The owl smiled", "The fox was late!"], 9)[2:]
    assert found[0] == "The duck came by"
    assert all("\n" not in prompt and 7 <= len(prompt) <= 26 for prompt in found)


def test_enough_prompts_are_left_as_they_are(source, monkeypatch) -> None:
    calls = says(monkeypatch, "never")
    assert expanded(source, PROMPTS, 3) == PROMPTS
    assert not calls


def test_a_real_model_gives_the_same_prompts_for_a_seed(source) -> None:
    torch.manual_seed(1)
    first = expanded(source, PROMPTS, 6, seed=4)
    torch.manual_seed(2)
    assert expanded(source, PROMPTS, 6, seed=4) == first
    assert all(prompt.endswith("[mood] ->") for prompt in first)


def test_answers_stand_behind_their_prompts_and_are_the_adapters_own(source) -> None:
    lora = build_lora(source)
    passages = answered(source, lora, PROMPTS)
    assert [passage.answer for passage in passages] == list(map(len, PROMPTS))
    texts = [passage.text for passage in passages]
    assert [text[: len(prompt)] for text, prompt in zip(texts, PROMPTS, strict=True)] == PROMPTS
    assert all(len(text) > len(prompt) for text, prompt in zip(texts, PROMPTS, strict=True))


def test_prompts_are_drawn_evenly_over_answers_that_are_no_noise() -> None:
    answers = [" plant"] * 60 + [" person"] * 30 + [" body"] * 5 + [" ability"]
    weights = evenly([Passage(f"Kind:{answer}", 5) for answer in answers])
    assert [sum(weights[:60]), sum(weights[60:90]), sum(weights[90:95])] == pytest.approx([95 / 3] * 3)
    assert weights[95] == 1
    # Where every answer is another, none is drawn more.
    assert evenly([Passage(f"Title: {index}", 6) for index in range(9)]) == [1.0] * 9
    # Of draws each tells as much as any other.
    assert evenly([Passage(f"Kind:{answer}", 5, drawn=True) for answer in answers]) == [1.0] * len(answers)


def test_the_second_round_shows_what_the_first_has_found_and_all_is_answered(source, monkeypatch) -> None:
    calls = says(monkeypatch, " duck came by.\n[mood] ->", " dog ran.\n[mood] ->", " cat.\n[mood] ->")
    lora = build_lora(source)
    examples = [f"The {event}.\n[mood] ->" for event in ("owl smiled", "fox was late", "hen slept")]
    passages = excited(source, lora, examples, 11, seed=3)
    prompts = [passage.text[: passage.answer] for passage in passages]
    assert prompts[:3] == examples
    assert len(set(prompts)) == len(prompts) > 5
    assert all(len(passage.text) > len(prompt) for passage, prompt in zip(passages, prompts, strict=True))
    written = [call for call in calls if call["lora"] is None]
    assert "The duck came by." not in "".join(written[0]["prompts"])
    assert "The duck came by." in "".join("".join(call["prompts"]) for call in written[1:])
    assert sum(len(call["prompts"]) for call in calls if call["lora"] is lora) == len(passages)


def test_each_answer_is_asked_for_as_far_as_it_falls_short(source, monkeypatch) -> None:
    calls = says(monkeypatch, *(f"A duck {index} came by.\n[mood] ->" for index in range(60)))
    numbers = {"plant": 40, "person": 20, "food": 8, "ability": 1}
    known = []
    for answer, number in numbers.items():
        prompts = [f"{answer} {index}.\n[mood] ->" for index in range(number)]
        known += [Passage(f"{prompt} {answer}", len(prompt)) for prompt in prompts]

    def asked(known: list[Passage]) -> list[set[str]]:
        prompts = [passage.text[: passage.answer] for passage in known[::30]]
        expanded(source, prompts, 129, known=known)
        return [{answer for answer in numbers if answer in text} for text in calls.pop(0)["prompts"]]

    shown = asked(known)
    assert len(shown) == 60
    # Examples of one answer each. An even share is 43, so 3, 23 and 35 are missing; noise is not asked for.
    assert all(len(answers) == 1 for answers in shown)
    assert shown.count({"ability"}) == 0
    assert shown.count({"food"}) == pytest.approx(60 * 35 / 61, abs=9)
    assert shown.count({"person"}) == pytest.approx(60 * 23 / 61, abs=9)
    # Draws are of no kinds: their first words tell nothing.
    calls.clear()
    drawn = asked([replace(passage, drawn=True) for passage in known])
    assert any(len(answers) > 1 for answers in drawn)


@pytest.mark.parametrize(("long", "drawn"), [(("fox", "home"), True), (("fox",), False), ((), False)])
def test_answers_are_drawn_where_most_of_those_to_the_given_prompts_do_not_end(
    source, monkeypatch, long: tuple[str, ...], drawn: bool
) -> None:
    lora, loop = build_lora(source), " and the fox was late" * 30

    def written(
        runner: PlainRunner, prompts: list[str], *, temperature: float = 0.0, **_: object
    ) -> list[str]:
        if runner.lora is None:
            return [f"A duck {index} came by.\n[mood] ->" for index in range(len(prompts))]
        if temperature:
            return [" drawn"] * len(prompts)
        return [loop if any(word in text for word in long) else " happy" for text in prompts]

    monkeypatch.setattr(exciting, "generate_many", written)
    passages = excited(source, lora, PROMPTS, 8)
    answers = [passage.text[passage.answer :] for passage in passages]
    assert len(answers) > len(PROMPTS)
    assert set(answers) == ({" drawn"} if drawn else {" happy", loop} if long else {" happy"})
    assert exciting.mostly_drawn(passages) == drawn


def test_the_model_that_knows_the_examples_better_writes(source, monkeypatch) -> None:
    target = build_model("mistral", "byte_bpe")
    nats = {source.name: [-3.0, -9.0], target.name: [-4.0, -5.0]}
    monkeypatch.setattr("cast.exciting.completion_log_probs", lambda runner, _: nats[runner.lm.name])
    assert best_writer([source, target], PROMPTS) is target
    assert best_writer([source], PROMPTS) is source
    nats[target.name] = [-6.0, -6.0]
    assert best_writer([source, target], PROMPTS) is source
    nats[target.name] = [-1.0, -1.0]
    wrote: list[object] = []
    many = generate_many
    monkeypatch.setattr(
        "cast.exciting.generate_many",
        lambda runner, *given, **more: wrote.append((runner.lm, runner.lora)) or many(runner, *given, **more),
    )
    lora = build_lora(source)
    excited(source, lora, PROMPTS, 6, target=target)
    assert set(wrote) == {(target, None), (source, lora)}


def test_a_prompt_that_is_given_twice_counts_once(source) -> None:
    passages = excited(source, build_lora(source), [*PROMPTS, PROMPTS[0]], 8)
    prompts = [passage.text[: passage.answer] for passage in passages]
    assert prompts[:3] == PROMPTS
    assert len(set(prompts)) == len(prompts) > 3


def test_prompts_of_several_forms_are_told_apart_by_their_last_lines() -> None:
    asked = [f"The owl {did}.\nQuestion: Who?\nAnswer:" for did in ("smiled", "slept")]
    assert by_form([PROMPTS[0], asked[0], PROMPTS[1], asked[1]]) == [PROMPTS[:2], asked]
    # A last line of its own is what a prompt is about, not its form.
    assert by_form([*asked, "Write of owls."]) == [[*asked, "Write of owls."]]
    assert by_form(PROMPTS[:1]) == [PROMPTS[:1]]


def test_each_form_is_made_more_by_itself(source, monkeypatch) -> None:
    asked = [f"The {name} sat.\nQuestion: Who?\nAnswer:" for name in ("duck", "goose")]
    calls = says(monkeypatch, " cat.\n[mood] ->", " dog.\nQuestion: Who?\nAnswer:")
    passages = excited(source, build_lora(source), [*PROMPTS[:2], *asked], 8)
    shown = [prompt for call in calls if call["lora"] is None for prompt in call["prompts"]]
    shows = {("[mood]" in prompt, "Answer:" in prompt) for prompt in shown}
    assert {(True, False), (False, True)} <= shows
    assert (True, True) not in shows
    made = [passage.text[: passage.answer] for passage in passages]
    assert {*PROMPTS[:2], *asked} < set(made)
    assert len(set(made)) == len(made)
    endings = [sum(prompt.endswith(ending) for prompt in made) for ending in ("[mood] ->", "Answer:")]
    assert min(endings) >= 3


def test_most_of_an_example_is_left_out_as_often_as_little_of_it(source, monkeypatch) -> None:
    calls = says(monkeypatch, " no form.")
    example = " ".join(f"w{number}" for number in range(64)) + "\n[mood] ->"
    expanded(source, [example], 400)
    kept = [len(text.split()) for call in calls for text in call["prompts"]]
    assert min(kept) == 1
    assert max(kept) > 40
    # One word, two or three, four to seven, …: six of equal width where the length is doubled each time.
    shares = [sum(1 << scale <= words < 2 << scale for words in kept) / len(kept) for scale in range(6)]
    assert shares == pytest.approx([1 / 6] * 6, abs=0.05)
