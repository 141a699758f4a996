"""A carried change is made as strong in words as the adapter is in its own model."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import build_lora, build_model
from translation_fixtures import corpus, heads_for

from cast.adapters import Lora
from cast.errors import CorpusError
from cast.gain import crossing, matched_gain
from cast.hosting import HostedRunner
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner
from cast.translate import translate


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_a_weakened_adapter_gets_its_strength_back(share: float) -> None:
    lm = build_model("llama", depth=2)
    lora = build_lora(lm)
    weak = Lora("weak", lm.name, tuple(replace(kernel, b=share * kernel.b) for kernel in lora.kernels))
    assert matched_gain(lm, lora, partial(PlainRunner, lm, weak), corpus(6)) == pytest.approx(
        1 / share, rel=0.05
    )


@pytest.mark.parametrize("segment", [None, 1, 2])
def test_heads_that_carry_half_of_the_change_need_about_twice_the_strength(segment: int | None) -> None:
    """Exactly twice where there is one decode; block by block each next one reads what the last has done."""
    lm = build_model("llama", depth=2)
    config = TranslationConfig(batch_size=4, max_length=128)
    for scale in (1.0, 0.5):
        heads = heads_for(lm, lm, identity=True)
        for depth in heads.depths:
            heads.at(depth).decode.weight.mul_(scale)
        hosted = partial(HostedRunner, lm, build_lora(lm), lm, heads, segment)
        gain = matched_gain(lm, build_lora(lm), hosted, corpus(8), config)
        assert gain == pytest.approx(1 / scale, rel=0.2 if segment == 1 else 0.02)


def test_what_cannot_be_as_strong_gets_the_largest_gain() -> None:
    lm = build_model("llama", depth=2)
    lora = build_lora(lm)
    nearly_nothing = Lora("x", lm.name, tuple(replace(kernel, b=1e-4 * kernel.b) for kernel in lora.kernels))
    assert matched_gain(lm, lora, partial(PlainRunner, lm, nearly_nothing), corpus(4)) == 8


def test_text_without_aligned_tokens_is_refused() -> None:
    lm = build_model("llama", depth=1)
    lora = build_lora(lm)
    with pytest.raises(CorpusError, match="no position"):
        matched_gain(lm, lora, partial(PlainRunner, lm, lora), [""])


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
    again = matched_gain(source, lora, partial(PlainRunner, target, bare), texts[: config.batch_size])
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
