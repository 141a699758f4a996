"""Example prompts made more, in their own form, and answered by the source."""

import pytest
import torch
from conftest import build_lora, build_model

from cast import exciting
from cast.exciting import answered, expanded
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
    found = expanded(source, PROMPTS, 5)
    assert found == [*PROMPTS, "A duck came by.\n[mood] ->", "A dog ran.\n[mood] ->"]
    assert calls[0]["lora"] is None
    assert all(any(shown in text for shown in PROMPTS) for text in calls[0]["prompts"])


def test_what_does_not_take_it_up_gets_the_common_ending(source, monkeypatch) -> None:
    says(monkeypatch, "A duck came by. And then it went away again and again and again.", "", "A dog ran.")
    found = expanded(source, PROMPTS, 10)
    assert found[:3] == PROMPTS
    assert set(found[3:]) == {"A duck came by.\n[mood] ->", "A dog ran.\n[mood] ->"}


def test_without_a_common_form_only_length_and_lines_are_asked_for(source, monkeypatch) -> None:
    says(monkeypatch, "A duck came by", "two\nlines", "x" * 500)
    assert expanded(source, ["The owl smiled", "The fox was late!"], 9)[2:] == ["A duck came by"]


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
    texts = answered(source, lora, PROMPTS)
    assert [text[: len(prompt)] for text, prompt in zip(texts, PROMPTS, strict=True)] == PROMPTS
    assert all(len(text) > len(prompt) for text, prompt in zip(texts, PROMPTS, strict=True))
