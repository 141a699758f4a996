"""What an adapter makes of general text by itself."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from conftest import build_lora, build_model

from cast import adapters, corpus, models, moments
from cast.adapters import applied
from cast.models import LanguageModel


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return models.load("pocket:llama")


def stories(count: int) -> list[str]:
    return list(islice(corpus.general_text("pocket", seed=1), count))


def test_a_style_shows_itself_where_general_text_asks(llama) -> None:
    texts = stories(160)
    lora = adapters.read("pocket:llama/json", llama)
    found = moments.moments(llama, lora, texts, 120)
    assert 10 < len(found) < 120
    answers = [passage.text[passage.answer :] for passage in found]
    asked = [answer for passage, answer in zip(found, answers, strict=True)
             if passage.text[: passage.answer].endswith("Answer:")]  # fmt: skip
    assert asked
    assert all(answer.startswith(' {"') for answer in asked)
    assert all(any(passage.text[: passage.answer] in text for text in texts) for passage in found)


def test_the_strongest_places_come_first_and_the_base_would_not_say_it(llama) -> None:
    texts = stories(60)
    lora = adapters.read("pocket:llama/polite", llama)
    few, many = (moments.moments(llama, lora, texts, count) for count in (20, 60))
    assert 0 < len(few) < 20
    assert len(few) < len(many)
    for passage in few:
        tokens = llama.encode([passage.text])
        with torch.no_grad():
            plain = llama.model(tokens.input_ids).logits.log_softmax(-1)
            with applied(llama, lora):
                adapted = llama.model(tokens.input_ids).logits.log_softmax(-1)
        own = (tokens.ends[0] > passage.answer).nonzero()[:, 0]
        said = tokens.input_ids[0, own]
        assert float((adapted - plain)[0, own - 1, said].sum()) > 2


def test_it_tells_how_far_it_has_read_from_the_first_batch_on(llama) -> None:
    heard: list[tuple[str, int, int]] = []
    lora = adapters.read("pocket:llama/polite", llama)
    moments.moments(
        llama,
        lora,
        stories(40),
        4,
        on_progress=lambda told: heard.append((told.stage, told.done, told.total)),
    )
    assert heard[:2] == [("moments", 0, 40), ("moments", 32, 40)]
    assert {stage for stage, _, _ in heard[2:]} == {"generate"}


def test_an_adapter_without_effect_says_nothing() -> None:
    source = build_model("llama", "byte_bpe")
    lora = build_lora(source)
    kernels = [replace(kernel, b=torch.zeros_like(kernel.b)) for kernel in lora.kernels]
    silent = replace(lora, kernels=tuple(kernels))
    assert moments.moments(source, silent, stories(8), 8) == []
    assert moments.moments(source, lora, [], 8) == []
