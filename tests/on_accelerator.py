"""What the library does on an accelerator is what it does on the CPU; run by `test_accelerator.py`."""

import copy
from dataclasses import dataclass

import pytest
import torch
from accelerator import DEVICE
from conftest import build_lora, build_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from translation_fixtures import corpus, heads_for

from cast import exciting, manifold
from cast.adapters import Lora
from cast.baselines import BASELINES
from cast.comparison import made_by
from cast.fitting import FitConfig, fit_heads
from cast.generation import generate_many
from cast.heads import HeadSet
from cast.marking import token_changes
from cast.models import LanguageModel
from cast.pipeline import FoundHeads
from cast.pocket.tasks import Example
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner, Runner
from cast.scoring import completion_log_probs
from cast.training import LoraTrainingConfig, train_lora
from cast.translate import translate

TEXTS = corpus(60)
PAIRS = [("The cat sat", " on the mat"), ("A dog", " ran home and slept")]
HEADS = FitConfig(
    tokens=600, held_out_tokens=200, mlp_width=8, deepest_width=8, passes=1, batch_size=8, save_seconds=0
)
FEW = {"steps": 2, "rounds": 1, "batch_size": 4, "rank": 2, "site_tokens": 300, "strength": 1.0}


@dataclass(frozen=True)
class Here:
    """Two models of different families on one device, an adapter of the first, heads between them."""

    source: LanguageModel
    target: LanguageModel
    lora: Lora
    heads: HeadSet


def on(device) -> Here:
    source, target = (
        LanguageModel(lm.name, copy.deepcopy(lm.model).to(device), lm.tokenizer)
        for lm in (
            build_model("llama", "byte_bpe", depth=2),
            build_model("mistral", "unigram", width=24, depth=3),
        )
    )
    return Here(source, target, build_lora(source), heads_for(source, target))


@pytest.fixture(autouse=True)
def attends_as_the_stand_in_does():
    """By plain products: other sums, however near, may turn a rotation that random heads hardly determine."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(scope="module")
def cpu():
    return on("cpu")


@pytest.fixture(scope="module")
def apart():
    here = on(DEVICE)
    assert here.source.device == here.target.device == DEVICE
    return here


def says(runner: Runner) -> list[float]:
    """Scores of given texts, behind which it must also write, greedily and by chance."""
    for temperature in (0.0, 1.0):
        assert len(generate_many(runner, ["The cat", "A"], max_new_tokens=4, temperature=temperature)) == 2
    return completion_log_probs(runner, PAIRS)


def translated(here: Here, mode: str, prompts=(), **settings) -> Runner:
    config = TranslationConfig(mode, **FEW | settings)
    heads = here.heads if config.takes_heads else None
    made = translate(here.source, here.target, here.lora, heads, TEXTS, config, prompts=prompts)
    return made.runner(here.source, here.target)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("hosted", {}),
        ("hosted", {"readout": "states"}),
        ("hosted", {"segment": 1}),
        ("instant", {}),
        ("kernel", {}),
        ("compiled", {"readout": "states"}),
        ("compiled", {"moments": 0, "forms": 0}),
        ("compiled", {"moments": 10, "forms": 10}),
        ("compiled", {"prompts": ["The cat sat on", "A dog ran to"], "prompts_wanted": 2}),
    ],
)
def test_a_translation_says_the_same(cpu, apart, mode, settings, monkeypatch):
    monkeypatch.setattr(exciting, "ANSWER_TOKENS", 4)  # random models end no answer
    assert says(translated(apart, mode, **settings)) == pytest.approx(
        says(translated(cpu, mode, **settings)), rel=1e-3, abs=1e-3
    )


@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_heads_are_the_same(cpu, apart, kind, tmp_path):
    config = FitConfig(**{**HEADS.__dict__, "kind": kind, "layers": "cka"})
    here, there = (
        fit_heads(each.source, each.target, TEXTS, config, checkpoint=tmp_path / name)
        for name, each in (("cpu", cpu), ("apart", apart))
    )
    for depth in here.depths:
        for mine, yours in zip(here.at(depth), there.at(depth), strict=True):
            for name, value in mine.state_dict().items():
                torch.testing.assert_close(yours.state_dict()[name], value, rtol=1e-3, atol=1e-3)


def test_a_lora_is_trained_the_same(cpu, apart):
    examples = [Example(prompt, answer, ()) for prompt, answer in PAIRS * 4]
    trained = [
        train_lora(here.target, examples, LoraTrainingConfig(steps=3, batch_size=4), seed=0)
        for here in (cpu, apart)
    ]
    mine, yours = (
        says(PlainRunner(here.target, lora)) for here, lora in zip((cpu, apart), trained, strict=True)
    )
    assert yours == pytest.approx(mine, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["proxy-tuning", "theseus", "cross-lora"])
def test_a_baseline_says_the_same(cpu, apart, name, tmp_path, monkeypatch):
    monkeypatch.setenv("CAST_CACHE", str(tmp_path))
    said = []
    for here in (cpu, apart):
        method = BASELINES[name]
        runner, _ = made_by(
            method, here.source, here.target, here.lora, heads=FoundHeads(here.heads, tmp_path),
            text="pocket", prompts=["The cat sat on", "A dog ran to"],
        )  # fmt: skip
        said.append(says(runner))
    assert said[1] == pytest.approx(said[0], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("fitted", [True, False])
def test_what_is_explored_is_the_same(cpu, apart, fitted):
    found = []
    for here in (cpu, apart):
        hosted = translated(here, "hosted")
        (states,) = manifold.read_pairs(
            here.source, here.target, here.heads if fitted else None, TEXTS, [(2, 3)],
            lora=here.lora, translated=hosted, points=120,
        )  # fmt: skip
        found.append(manifold.drawn(states, method="pca"))
    assert found[1].measures["R²"].value == pytest.approx(found[0].measures["R²"].value, abs=1e-3)


def test_what_an_adapter_changes_is_the_same(cpu, apart):
    mine, yours = (
        token_changes(PlainRunner(here.source, here.lora), PlainRunner(here.source), *PAIRS[0])
        for here in (cpu, apart)
    )
    assert [each.text for each in yours] == [each.text for each in mine]
    assert [each.with_it for each in yours] == pytest.approx([each.with_it for each in mine], abs=1e-3)


def test_text_meets_the_device_only_where_it_should():
    """The stand-in refuses what an accelerator does: otherwise the tests above would hold of anything."""
    here, there = torch.ones(2), torch.ones(2).to(DEVICE)
    for wrong in (
        lambda: here + there,
        lambda: here[there.long()],
        lambda: torch.where(there > 0, here, there),
    ):
        with pytest.raises(RuntimeError, match="of the CPU"):
            wrong()
    for wrong in (there.double, there.numpy):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(RuntimeError, match="generator"):
        torch.multinomial(there, 1, generator=torch.Generator())
    assert (there[torch.tensor([0])] * torch.tensor(2.0)).tolist() == [2.0]
