"""A carried change is made as strong in words as the adapter is in its own model."""

from dataclasses import replace

import pytest
import torch
from conftest import build_lora, build_model
from translation_fixtures import corpus, heads_for

from cast.adapters import Lora
from cast.carrying import crossing
from cast.errors import CorpusError
from cast.gain import matched_gain
from cast.recipes import TranslationConfig
from cast.translate import translate


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_a_weakened_adapter_gets_its_strength_back(share: float) -> None:
    lm = build_model("llama", depth=2)
    lora = build_lora(lm)
    weak = Lora("weak", lm.name, tuple(replace(kernel, b=share * kernel.b) for kernel in lora.kernels))
    assert matched_gain(lm, lora, lm, weak, corpus(6)) == pytest.approx(1 / share, rel=0.05)


def test_what_cannot_be_as_strong_gets_the_largest_gain() -> None:
    lm = build_model("llama", depth=2)
    lora = build_lora(lm)
    nearly_nothing = Lora("x", lm.name, tuple(replace(kernel, b=1e-4 * kernel.b) for kernel in lora.kernels))
    assert matched_gain(lm, lora, lm, nearly_nothing, corpus(4)) == 8


def test_text_without_aligned_tokens_is_refused() -> None:
    lm = build_model("llama", depth=1)
    lora = build_lora(lm)
    with pytest.raises(CorpusError, match="no position"):
        matched_gain(lm, lora, lm, lora, [""])


def test_an_instant_adapter_holds_its_gain_and_names_it() -> None:
    source, target = build_model("llama", "unigram", width=24, depth=2), build_model("mistral", depth=3)
    lora, heads, texts = build_lora(source), heads_for(source, target), corpus(80)
    config = TranslationConfig(mode="instant", site_tokens=600)
    whole, half = (
        translate(source, target, lora, heads, texts, replace(config, strength=strength))
        for strength in (1.0, 0.5)
    )
    assert whole.recipe.gain == half.recipe.gain != 1
    assert whole.recipe.strength == 1
    for one, other in zip(whole.lora.kernels, half.lora.kernels, strict=True):
        torch.testing.assert_close(other.b, 0.5 * one.b)
    bare = Lora("bare", target.name, whole.lora.kernels)
    again = matched_gain(source, lora, target, bare, texts[: config.batch_size])
    assert again == pytest.approx(1, rel=0.1)


def test_a_crossing_lies_between_its_neighbours_and_looks_no_further() -> None:
    asked: list[float] = []

    def value(place: float) -> float:
        asked.append(place)
        return place**2

    assert crossing((1, 2, 3, 4), value, 6.5) == pytest.approx(2.5)
    assert asked == [1, 2, 3]
    assert crossing((1, 2), value, 0.5) == 1
    assert crossing((1, 2), value, 99) == 2
