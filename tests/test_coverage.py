"""Coverage against energies and divergences computed the long way, and what is expected of a translation."""

from dataclasses import replace

import pytest
import torch
from conftest import build_lora, build_model
from translation_fixtures import corpus

from cast.adapters import Kernel, Lora
from cast.arriving import held_out_quality
from cast.coverage import covered, measured_coverage
from cast.errors import CorpusError
from cast.models import LanguageModel
from cast.prediction import (
    LIKELY,
    REACHED,
    expected_in_words,
    hardly_excited,
    in_words,
    predicted,
    said_in_words,
)
from cast.recipes import Quality, Recipe, TranslationConfig
from cast.runners import PlainRunner
from cast.wording import WordedRunner

RECIPE = Recipe("compiled", "s", "", "t", "", "a")


@pytest.fixture(scope="module")
def source() -> LanguageModel:
    return build_model("llama")


def test_effect_is_the_mean_divergence_of_the_text_and_its_carriers_hold_nine_tenths(
    source: LanguageModel,
) -> None:
    lora, texts = build_lora(source), corpus(6)
    shown = measured_coverage(source, lora, texts)
    batch = source.encode(texts)
    real = batch.attention_mask.bool()
    real[:, 0] = False
    before, after = (
        PlainRunner(source, acting).logits(batch)[real].log_softmax(-1) for acting in (None, lora)
    )
    kl = (before.exp() * (before - after)).sum(-1)
    assert shown.effect == pytest.approx(float(kl.mean()), rel=1e-3)
    count = round(shown.carriers * len(kl))
    most = kl.sort(descending=True).values
    assert most[:count].sum() >= 0.9 * kl.sum() > most[: count - 1].sum()


def test_energy_follows_the_singular_directions_of_the_kernel(source: LanguageModel) -> None:
    """A kernel that reads one token's own direction is excited by text that holds the token."""
    site = next(site for site in source.architecture.sites if site.role == "q" and site.layer == 1)
    token = source.encode(["x"]).input_ids[0, -1]
    read: list[torch.Tensor] = []
    handle = source.architecture.module(site).register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0])
    )
    PlainRunner(source).logits(source.encode(["x", *corpus(40)]))
    handle.remove()
    own, others = read[0][0, 1], read[0][1:, 1:].flatten(0, 1)
    # The direction in which this token stands out from the others.
    direction = torch.linalg.lstsq(others.T @ others / len(others) + 1e-3 * torch.eye(len(own)), own).solution
    kernel = Kernel(site, direction[None], torch.randn(site.out_features, 1), 1.0)
    lora = Lora("reads x", source.name, (kernel,))
    with_it, without = (measured_coverage(source, lora, texts) for texts in (["x x x x x x"] * 4, corpus(4)))
    assert with_it.energy > 2 * without.energy
    assert with_it.energy <= 1.0
    assert source.token_texts[int(token)] in with_it.strongest


def test_the_fitting_text_is_covered_with_its_share_of_prompts(source: LanguageModel) -> None:
    lora, config = build_lora(source), TranslationConfig(batch_size=2, prompt_share=0.5)
    prompts, texts = corpus(20, 50), corpus(20)
    assert covered(source, lora, texts, (), config) == measured_coverage(source, lora, texts[:4])
    mixed = covered(source, lora, texts, prompts, config)
    assert mixed == measured_coverage(source, lora, [*prompts[:2], *texts[:2]])


def test_a_text_without_a_token_is_refused(source: LanguageModel) -> None:
    with pytest.raises(CorpusError, match="longer text"):
        measured_coverage(source, build_lora(source), [""])


def test_the_hosted_source_misses_nothing_and_the_bare_target_all(source: LanguageModel) -> None:
    target, lora = build_model("qwen2", "unigram"), build_lora(source)
    config = TranslationConfig()
    hosted, bare = (
        held_out_quality(source, lora, runner, corpus(4), config)
        for runner in (WordedRunner(source, lora, target), PlainRunner(target))
    )
    assert hosted.missing == pytest.approx(0.0, abs=1e-5)
    assert bare.missing == pytest.approx(1.0)
    assert predicted(hosted) == pytest.approx(1.0, abs=1e-4)
    assert predicted(bare) == pytest.approx(0.0, abs=1e-4)


def test_a_prediction_is_a_share_and_says_why_it_is_low() -> None:
    measured = Quality(kl_carried_base=2.0, kl_carried_adapted=0.2)
    assert predicted(Quality()) is None
    assert predicted(None) == 1.0
    assert predicted(measured) == pytest.approx(0.9)
    assert predicted(replace(measured, kl_carried_adapted=9.0)) == 0.0
    barely = replace(measured, reach=REACHED / 10)
    assert predicted(barely) == pytest.approx(0.09)
    assert hardly_excited(barely)
    assert not hardly_excited(replace(measured, reach=REACHED))
    assert not hardly_excited(measured)

    def words(quality: Quality) -> str:
        return in_words(replace(RECIPE, quality=replace(quality, predicted=predicted(quality))))

    assert in_words(RECIPE) == said_in_words(measured) == ""
    assert expected_in_words(RECIPE) == []
    (endless,) = expected_in_words(replace(RECIPE, quality=Quality(endless=True)))
    assert "an adapter of prose" in endless
    assert "would say 94 % word for word" in said_in_words(replace(measured, said=0.9375))
    assert words(replace(measured, kl_carried_adapted=2 * (1 - LIKELY) - 0.01)).startswith(
        "Likely to carry over ("
    )
    assert "in part" in words(replace(measured, kl_carried_adapted=1.0))
    assert "the text hardly shows what the adapter does" in words(barely)
    assert "95 % of its effect" in words(replace(measured, kl_carried_adapted=1.9))


def test_what_would_help_is_told_where_the_text_hardly_excited_the_adapter() -> None:
    low = Quality(kl_carried_base=2.0, kl_carried_adapted=0.2, reach=REACHED / 10, strongest=(" owl",))
    recipe = replace(RECIPE, quality=replace(low, predicted=predicted(low)))
    unlikely, helps = expected_in_words(recipe, "give prompts")
    assert unlikely.startswith("Unlikely")
    assert helps.startswith("What it was fitted on hardly excites the adapter")
    assert helps.endswith("it reacts most to ' owl'): give prompts.")
    assert expected_in_words(recipe) == [unlikely]
    assert expected_in_words(RECIPE, "give prompts") == []
