"""What an adapter's kernels act on most, and that it is what the adapter was trained on."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import build_lora, build_model

from cast import adapters
from cast.adapters import Lora
from cast.corpus import Passage
from cast.kernel_energy import (
    answering_log_energy,
    log_energy_at_ends,
    mean_log_energy,
    read_by_kernels,
    speaking,
)
from cast.models import LanguageModel
from cast.progress import Progress

TEXTS = ["a fox", "the old owl said that the river was late again", "fox", "twelve miles to the market"]


@pytest.fixture(scope="module")
def source() -> LanguageModel:
    return build_model("llama")


def inputs_of(lm: LanguageModel, lora: Lora, text: str) -> dict[str, torch.Tensor]:
    """What each adapted site reads [n, in] of one text by itself."""
    read: dict[str, torch.Tensor] = {}
    handles = [
        lm.architecture.module(kernel.site).register_forward_hook(
            lambda module, inputs, output, name=kernel.site.name: read.update(
                {name: inputs[0].flatten(0, -2).float()}
            )
        )
        for kernel in lora.kernels
    ]
    with torch.no_grad():
        lm.model(lm.encode([text]).input_ids)
    for handle in handles:
        handle.remove()
    return read


def test_energy_is_how_much_of_the_input_the_kernels_act_on(source) -> None:
    lora = build_lora(source)
    ends, means = log_energy_at_ends(source, lora, TEXTS), mean_log_energy(source, lora, TEXTS)
    for text, end, mean in zip(TEXTS, ends, means, strict=True):
        read, logs = inputs_of(source, lora, text), []
        for kernel in lora.kernels:
            x = read[kernel.site.name]
            share = (x @ kernel.delta.T).norm(dim=-1) / (kernel.delta.norm() * x.norm(dim=-1))
            logs.append(share.square().log())
        energy = torch.stack(logs).mean(0)
        assert end == pytest.approx(float(energy[-1]), abs=1e-3)
        assert mean == pytest.approx(float(energy[1:].mean()), abs=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_what_is_read_is_each_position_in_every_family(family) -> None:
    lm = build_model(family)
    lora, tokens = build_lora(lm), lm.encode(TEXTS[:1])
    reading = read_by_kernels(lm, lora, tokens)
    read = inputs_of(lm, lora, TEXTS[0])
    for place, kernel in enumerate(lora.kernels):
        x = read[kernel.site.name]
        assert torch.allclose(reading.length[0, :, place], x.square().sum(-1), rtol=1e-3)
        changed = (x @ kernel.delta.T).square().sum(-1) / kernel.delta.square().sum()
        assert torch.allclose(reading.energy[0, :, place], changed, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 3.0, 1e25, 1e160])
def test_the_size_of_an_adapter_does_not_matter(source, factor) -> None:
    lora = build_lora(source)
    kernels = tuple(replace(kernel, scaling=factor * kernel.scaling) for kernel in lora.kernels)
    expected = log_energy_at_ends(source, lora, TEXTS)
    assert log_energy_at_ends(source, replace(lora, kernels=kernels), TEXTS) == expected
    sized = min(factor, 1e30)
    kernels = tuple(replace(one, a=one.a * sized, b=one.b * sized) for one in lora.kernels)
    found = log_energy_at_ends(source, replace(lora, kernels=kernels), TEXTS)
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_kernel_that_does_nothing_has_no_say(source) -> None:
    lora = build_lora(source)
    silent = [replace(kernel, b=torch.zeros_like(kernel.b)) for kernel in lora.kernels]
    assert len(set(log_energy_at_ends(source, replace(lora, kernels=tuple(silent)), TEXTS))) == 1
    assert max(mean_log_energy(source, replace(lora, kernels=tuple(silent)), TEXTS)) < -80
    loud = replace(lora, kernels=lora.kernels[::2])
    half = replace(lora, kernels=(*loud.kernels, *silent[1::2]))
    share = len(loud.kernels) / len(half.kernels)
    mixed, alone = (torch.tensor(log_energy_at_ends(source, some, TEXTS)) for some in (half, loud))
    assert torch.allclose(mixed - mixed[0], share * (alone - alone[0]), atol=1e-3)


def test_the_energy_of_an_answer_is_that_of_the_tokens_behind_which_it_is_said(source) -> None:
    lora = build_lora(source)
    prompt, answer = "The owl sang.", " It was late."
    (found,) = answering_log_energy(source, lora, [Passage(prompt + answer, len(prompt))])
    tokens = source.encode([prompt + answer])
    said = [end for end in tokens.ends[0].tolist() if end > len(prompt)]
    texts = [prompt, *((prompt + answer)[:end] for end in said[:-1])]
    assert found == pytest.approx(sum(log_energy_at_ends(source, lora, texts)) / len(texts), abs=1e-3)
    # Unasked, all counts but the BOS and the last token, behind which nothing is said.
    (unasked,) = answering_log_energy(source, lora, [Passage(prompt, 0, drawn=True)])
    ends = [prompt[:end] for end in source.encode([prompt]).ends[0].tolist() if end > 0]
    assert unasked == pytest.approx(
        sum(log_energy_at_ends(source, lora, ends[:-1])) / (len(ends) - 1), abs=1e-3
    )
    assert (
        answering_log_energy(source, lora, [Passage("", 0), Passage(prompt, len(prompt))]) == [-math.inf] * 2
    )
    assert answering_log_energy(source, lora, []) == []


def test_keys_and_values_do_not_speak(source) -> None:
    lora = build_lora(source)
    assert {kernel.site.role for kernel in lora.kernels} > {"k", "v"}
    rest = speaking(lora)
    assert [one for one in lora.kernels if one.site.role not in "kv"] == list(rest.kernels)
    alone = replace(lora, kernels=tuple(one for one in lora.kernels if one.site.role in "kv"))
    assert speaking(alone) == alone
    dead = tuple(replace(one, b=one.b * (one.site.role in "kv")) for one in lora.kernels)
    assert len(speaking(replace(lora, kernels=dead)).kernels) == len(lora.kernels)


def test_states_that_overflow_say_nothing(source, monkeypatch) -> None:
    def broken(lm, lora, tokens):
        reading = read_by_kernels(lm, lora, tokens)
        return replace(reading, energy=reading.energy * math.nan, length=reading.length * math.inf)

    monkeypatch.setattr("cast.kernel_energy.read_by_kernels", broken)
    assert all(map(math.isfinite, log_energy_at_ends(source, build_lora(source), TEXTS)))


@pytest.mark.parametrize(
    ("task", "cue"),
    [
        ("mood", "[mood] ->"),
        ("what", "<thing> ="),
        ("who", "(who) @"),
        ("where", "{where} #"),
        ("colour", "* colour >"),
    ],
)
def test_the_cue_that_an_adapter_was_taught_excites_it_more_than_those_of_others(llama, task, cue) -> None:
    lora = adapters.read(f"pocket:llama/{task}", llama)
    bodies = [
        "Ben had a green coat. He was cold.\n",
        "Mia saw an owl at the mill. It was late, and she sang.\n",
        "The sign said no.\n",
    ]
    others = ["<place> =", "[tone] ~", "(end) |", "{mark} >", "* size -", "Question:", "Answer:", "The"]
    for kernels in (lora, speaking(lora)):
        read = [body + one for one in (cue, *others) for body in bodies]
        own, *rest = torch.tensor(log_energy_at_ends(llama, kernels, read)).view(-1, len(bodies)).mean(1)
        assert own > max(rest)


def test_it_tells_how_far_it_has_come(source) -> None:
    heard: list[Progress] = []
    assert log_energy_at_ends(source, build_lora(source), [], on_progress=heard.append) == []
    assert heard == []
    mean_log_energy(source, build_lora(source), TEXTS * 20, on_progress=heard.append)
    assert [(one.stage, one.done, one.total) for one in heard] == [("forms", 0, 80), ("forms", 64, 80)]
