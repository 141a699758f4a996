"""What an adapter's kernels act on most, and that it is what the adapter was trained on."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import build_lora, build_model

from cast import adapters, models
from cast.adapters import Lora
from cast.kernel_energy import energy_at_ends, mean_energy
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
            lambda module, inputs, output, name=kernel.site.name: read.update({name: inputs[0][0].float()})
        )
        for kernel in lora.kernels
    ]
    with torch.no_grad():
        lm.model(lm.encode([text]).input_ids)
    for handle in handles:
        handle.remove()
    return read


def test_energy_is_the_size_of_the_kernels_change_for_its_input(source) -> None:
    lora = build_lora(source)
    ends, means = energy_at_ends(source, lora, TEXTS), mean_energy(source, lora, TEXTS)
    for text, end, mean in zip(TEXTS, ends, means, strict=True):
        read, logs = inputs_of(source, lora, text), []
        for kernel in lora.kernels:
            x = read[kernel.site.name]
            logs.append(((x @ kernel.delta.T).norm(dim=-1) / x.norm(dim=-1)).square().log())
        energy = torch.stack(logs).mean(0)
        assert end == pytest.approx(float(energy[-1]), abs=1e-3)
        assert mean == pytest.approx(float(energy[1:].mean()), abs=1e-3)


def test_a_stronger_adapter_acts_more_on_everything_alike(source) -> None:
    lora = build_lora(source)
    kernels = tuple(replace(kernel, scaling=3 * kernel.scaling) for kernel in lora.kernels)
    stronger = energy_at_ends(source, replace(lora, kernels=kernels), TEXTS)
    assert stronger == pytest.approx(
        [value + 2 * math.log(3) for value in energy_at_ends(source, lora, TEXTS)], abs=1e-3
    )


def test_an_adapter_that_does_nothing_acts_on_nothing_more_than_on_other_things(source) -> None:
    lora = build_lora(source)
    silent = replace(lora, kernels=tuple(replace(one, b=torch.zeros_like(one.b)) for one in lora.kernels))
    values = [*energy_at_ends(source, silent, TEXTS), *mean_energy(source, silent, TEXTS)]
    assert all(math.isfinite(value) for value in values)
    assert max(values) < min(energy_at_ends(source, lora, TEXTS))


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
def test_the_cue_that_an_adapter_was_taught_excites_it_more_than_those_of_others(task, cue) -> None:
    llama = models.load("pocket:llama")
    lora = adapters.read(f"pocket:llama/{task}", llama)
    body = "Ben had a green coat. He was cold.\n"
    others = ["<place> =", "[tone] ~", "(end) |", "{mark} >", "* size -", "Question:", "Answer:", "The"]
    own, *rest = energy_at_ends(llama, lora, [body + one for one in (cue, *others)])
    assert own > max(rest)


def test_it_tells_how_far_it_has_come(source) -> None:
    heard: list[Progress] = []
    assert energy_at_ends(source, build_lora(source), [], on_progress=heard.append) == []
    assert heard == []
    mean_energy(source, build_lora(source), TEXTS * 20, on_progress=heard.append)
    assert [(one.stage, one.done, one.total) for one in heard] == [("forms", 0, 80), ("forms", 64, 80)]
