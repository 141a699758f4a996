"""Baselines against the formulas that they are named for."""

import pytest
import torch
from conftest import build_lora, build_model

from cast.adapters import Lora
from cast.alignment import LayerMap
from cast.baselines import BASELINES, naive_copy, proxy_tuning, truncate_and_pad
from cast.errors import AdapterError
from cast.models import LanguageModel
from cast.runners import PlainRunner

TEXTS = ["Once upon a time there was a little fox.", "The owl smiled"]


def kernels_of(runner: object) -> dict[tuple[int, str], torch.Tensor]:
    assert isinstance(runner, PlainRunner)
    assert runner.lora
    return {(kernel.site.layer, kernel.site.role): kernel.delta for kernel in runner.lora.kernels}


@pytest.fixture(scope="module")
def same_width() -> tuple[LanguageModel, LanguageModel, Lora]:
    source, target = build_model("llama", depth=2), build_model("llama", "unigram", depth=4)
    return source, target, build_lora(source)


def test_a_copy_has_the_kernels_themselves_at_the_same_relative_depth(same_width) -> None:
    source, target, lora = same_width
    layer_map, copied = LayerMap.by_relative_depth(2, 4), kernels_of(naive_copy(source, target, lora))
    assert len(copied) == len(lora.kernels)
    for kernel in lora.kernels:
        place = layer_map.host_of(kernel.site.layer), kernel.site.role
        torch.testing.assert_close(copied[place], kernel.delta)


def test_a_copy_that_fits_nowhere_is_refused() -> None:
    source, target = build_model("llama", width=24), build_model("mistral", width=40)
    with pytest.raises(AdapterError, match="has the shape"):
        naive_copy(source, target, build_lora(source))


@pytest.mark.parametrize("width", [24, 48])
def test_truncate_and_pad_keeps_the_common_corner_and_nothing_else(width: int) -> None:
    source, target = build_model("llama", width=32), build_model("llama", width=width)
    lora = build_lora(source)
    made = kernels_of(truncate_and_pad(source, target, lora))
    assert len(made) == len(lora.kernels)
    for kernel in lora.kernels:
        delta = made[kernel.site.layer, kernel.site.role]
        rows, columns = (min(pair) for pair in zip(delta.shape, kernel.delta.shape, strict=True))
        torch.testing.assert_close(delta[:rows, :columns], kernel.delta[:rows, :columns])
        assert not delta[rows:].any()
        assert not delta[:, columns:].any()


def test_proxy_tuning_adds_the_change_of_the_logits_where_the_vocabulary_is_one() -> None:
    """s_T + s_S+ - s_S, eq. 1 of arXiv 2401.08565, here with S and T of one tokenizer."""
    source, target = build_model("llama", "byte_bpe"), build_model("mistral", "byte_bpe")
    lora, batch = build_lora(source), target.encode(TEXTS)
    real = batch.attention_mask.bool()
    got = proxy_tuning(source, target, lora).logits(batch)[real].softmax(-1)
    logits = [
        runner.logits(batch)[real]
        for runner in (PlainRunner(target), PlainRunner(source, lora), PlainRunner(source))
    ]
    wanted = (logits[0] + logits[1] - logits[2]).softmax(-1)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-2)


def test_each_is_known_by_name_with_its_reference() -> None:
    assert set(BASELINES) == {"naive-copy", "truncate-and-pad", "proxy-tuning"}
    assert all(entry.reference and entry.name == name for name, entry in BASELINES.items())
    assert BASELINES["proxy-tuning"].make is proxy_tuning
