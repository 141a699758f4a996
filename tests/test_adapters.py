"""LoRA adapters: applied as PEFT applies them, read as PEFT saves them, written as PEFT loads them."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, build_lora, build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open

from cast import adapters
from cast.adapters import Kernel, Lora, applied, inspect, read, summed, write
from cast.errors import AdapterError, OutputError

CARD = "---\nlicense: apache-2.0\nlibrary_name: peft\n---\n# A test\n"
TEXTS = ["Once upon a time there was a fox", "The owl said"]


def logits(lm, model=None):
    batch = lm.encode(TEXTS)
    return (model or lm.model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def peft_adapter(lm, folder, **config):
    """A PEFT model with random A and B, saved to `folder`; returns its logits."""
    model = get_peft_model(copy.deepcopy(lm.model), LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.save_pretrained(str(folder))
    return logits(lm, model.eval())


CONFIGS = {
    "plain": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 7},
    "all linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 6},
    "rank stabilised": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "use_rslora": True},
    "rank pattern": {
        "target_modules": "all-linear",
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 5},
        "alpha_pattern": {"up_proj": 3, r"layers\.\d\.mlp\.gate_proj": 1},
    },
    "rank pattern, rank stabilised": {
        "target_modules": ["o_proj", "up_proj"],
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"up_proj": 2},
    },
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 1},
    "expression": {"target_modules": r".*\.layers\.[12]\..*(k_proj|up_proj)"},
    "full names": {"target_modules": ["model.layers.1.mlp.down_proj"]},
    "excluded": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["model.layers.1.self_attn.q_proj"],
    },
}
FUSED = {
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    "phi3": {"target_modules": ["qkv_proj", "gate_up_proj"]},
    "gpt_neox": {"target_modules": ["query_key_value", "dense"]},
    "falcon": {"target_modules": ["query_key_value", "dense_4h_to_h"]},
    "opt": {"target_modules": ["q_proj", "fc1", "fc2"]},
}


class TestLikePeft:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_way_to_configure_a_lora(self, tiny_model, tmp_path, name):
        lm = tiny_model("llama")
        expected = peft_adapter(lm, tmp_path, **CONFIGS[name])
        with applied(lm, read(tmp_path, lm)):
            torch.testing.assert_close(logits(lm), expected)
        assert not torch.allclose(expected, logits(lm), atol=1e-2)

    @pytest.mark.parametrize("family", FUSED)
    def test_fused_and_transposed_sites(self, tiny_model, tmp_path, family):
        lm = tiny_model(family)
        expected = peft_adapter(lm, tmp_path, r=3, lora_alpha=5, **FUSED[family])
        with applied(lm, read(tmp_path, lm)):
            torch.testing.assert_close(logits(lm), expected)

    def test_a_bfloat16_model_with_a_float32_adapter(self, tmp_path):
        base = build_model("llama")
        lm = type(base)("half", copy.deepcopy(base.model).to(torch.bfloat16), base.tokenizer)
        expected = peft_adapter(lm, tmp_path, target_modules="all-linear", r=4)
        with applied(lm, read(tmp_path, lm)):
            torch.testing.assert_close(logits(lm), expected)


class TestApplied:
    def test_strength_zero_is_exactly_the_base(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        with applied(lm, tiny_lora(lm), 0.0):
            changed = logits(lm)
        assert torch.equal(changed, logits(lm))

    def test_nothing_is_left_behind(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        before = logits(lm)
        with pytest.raises(KeyError), applied(lm, tiny_lora(lm)):
            raise KeyError
        assert torch.equal(before, logits(lm))

    def test_strength_scales_the_change(self, tiny_model, tiny_lora):
        lm = tiny_model("gpt2")
        lora = tiny_lora(lm, scaling=1.0)
        stronger = Lora("x", "x", tuple(Kernel(k.site, k.a, k.b, 2.5) for k in lora.kernels))
        with applied(lm, lora, 2.5):
            scaled = logits(lm)
        with applied(lm, stronger):
            torch.testing.assert_close(logits(lm), scaled)

    def test_two_adapters_add_up(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        first, second = tiny_lora(lm, roles={"q", "up"}, seed=1), tiny_lora(lm, roles={"q", "down"}, seed=2)
        both = Lora("both", "x", first.kernels + second.kernels)
        with applied(lm, first), applied(lm, second):
            nested = logits(lm)
        with applied(lm, both):
            torch.testing.assert_close(logits(lm), nested)
        with applied(lm, first), applied(lm, first):
            twice = logits(lm)
        with applied(lm, first, 2.0):
            torch.testing.assert_close(logits(lm), twice)

    def test_gradients_reach_activations_and_kernels(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        lora = tiny_lora(lm)
        kernels = tuple(
            Kernel(k.site, k.a.clone().requires_grad_(), k.b.clone().requires_grad_(), k.scaling)
            for k in lora.kernels
        )
        embedded = lm.model.get_input_embeddings()(lm.encode(TEXTS).input_ids).requires_grad_()
        with applied(lm, Lora("trained", "x", kernels)):
            lm.model(inputs_embeds=embedded).logits.square().sum().backward()
        assert embedded.grad.abs().sum() > 0
        assert all(k.a.grad.abs().sum() > 0 and k.b.grad.abs().sum() > 0 for k in kernels)

    def test_the_change_of_a_site_is_its_delta(self, tiny_model, tiny_lora):
        lm = tiny_model("gpt2")
        lora = tiny_lora(lm, roles={"down"})
        kernel = lora.kernels[0]
        module, x = lm.architecture.module(kernel.site), torch.randn(5, kernel.site.in_features)
        before = module(x)
        with applied(lm, lora, 0.5):
            torch.testing.assert_close(module(x) - before, 0.5 * x @ kernel.delta.T, atol=1e-5, rtol=1e-4)


ROLES = ("q", "k", "v", "o", "gate", "up", "down")
DRAWN = st.tuples(st.integers(1, 4), st.floats(-3, 3), st.sets(st.sampled_from(ROLES), min_size=1))


class TestTogether:
    @given(st.lists(DRAWN, min_size=1, max_size=4))
    @settings(max_examples=30, deadline=None)
    def test_the_change_at_each_site_is_the_sum_at_the_sum_of_the_ranks(self, drawn):
        lm = build_model("llama")
        loras = [
            build_lora(lm, rank=rank, scaling=scaling, roles=roles, seed=seed)
            for seed, (rank, scaling, roles) in enumerate(drawn)
        ]
        changes = {site.name: [] for site in lm.architecture.sites}
        for lora in loras:
            for kernel in lora.kernels:
                changes[kernel.site.name].append(kernel)
        found = {kernel.site.name: kernel for kernel in summed(lm, loras).kernels}
        assert list(found) == [name for name, kernels in changes.items() if kernels]
        for name, kernel in found.items():
            torch.testing.assert_close(
                kernel.delta, sum(k.delta for k in changes[name]), atol=1e-5, rtol=1e-4
            )
            assert kernel.rank == sum(k.rank for k in changes[name])

    def test_names_with_a_plus_between_them_are_read_as_one_adapter(self, tiny_model, tmp_path):
        lm = tiny_model("llama")
        peft_adapter(lm, tmp_path / "a", target_modules=["q_proj", "up_proj"], r=3, lora_alpha=5)
        peft_adapter(lm, tmp_path / "b", target_modules=["q_proj", "down_proj"], r=2, use_rslora=True)
        both = read(f"{tmp_path / 'a'} + {tmp_path / 'b'}", lm)
        with applied(lm, read(tmp_path / "a", lm)), applied(lm, read(tmp_path / "b", lm)):
            expected = logits(lm)
        with applied(lm, both):
            torch.testing.assert_close(logits(lm), expected)
        assert (both.name, both.rank) == (f"{tmp_path / 'a'} + {tmp_path / 'b'}", 5)
        write(both, tmp_path / "c + d", lm, card=CARD)
        model = PeftModel.from_pretrained(copy.deepcopy(lm.model), str(tmp_path / "c + d"))
        torch.testing.assert_close(logits(lm, model), expected)
        # A folder that is really called so is one adapter.
        assert read(tmp_path / "c + d", lm).rank == 5

    def test_terms_that_differ_are_no_single_licence(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        free, same, other = (replace(tiny_lora(lm), licence=name) for name in ("mit", "mit", "gpl-3.0"))
        assert summed(lm, [free, same]).licence == "mit"
        assert summed(lm, [free, other]).licence == "other"

    @pytest.mark.parametrize("name", ["pocket:llama/mood + ", " + a/b", " + ".join(["a/b"] * 9)])
    def test_no_name_and_too_many_are_refused(self, tiny_model, name):
        with pytest.raises(AdapterError, match="two to 8"):
            read(name, tiny_model("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_adapter_is_the_same_to_cast_and_to_peft(family, tmp_path):
    lm = build_model(family)
    lora = build_lora(lm)
    with applied(lm, lora):
        expected = logits(lm)
    write(lora, tmp_path / "out", lm, card=CARD)
    with applied(lm, read(tmp_path / "out", lm)):
        torch.testing.assert_close(logits(lm), expected)
    model = PeftModel.from_pretrained(copy.deepcopy(lm.model), str(tmp_path / "out"))
    torch.testing.assert_close(logits(lm, model), expected)


# What a user without CAST does. Writes the logits beside each adapter.
PLAIN_PEFT = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM

assert not [name for name in sys.modules if name.split(".")[0] == "cast"]
for folder in map(Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = PeftModel.from_pretrained(model, folder / "adapter")
    torch.save(model(input_ids=torch.load(folder / "ids.pt")).logits, folder / "logits.pt")
assert "cast" not in sys.modules
"""


def test_written_adapters_load_where_cast_is_not_installed(tmp_path):
    expected = {}
    for family in ("llama", "gpt2", "phi3", "gpt_neox"):
        lm, folder = build_model(family), tmp_path / family
        lora = build_lora(lm, rank=3)
        ragged = tuple(
            Kernel(k.site, k.a[: 1 + index % 3], k.b[:, : 1 + index % 3], 0.3 + index % 4)
            for index, k in enumerate(lora.kernels)
            if index % 5
        )
        lora = Lora("ragged", lm.name, ragged)
        write(lora, folder / "adapter", lm, card=CARD)
        lm.model.save_pretrained(folder / "model")
        ids = lm.encode(TEXTS[:1]).input_ids
        torch.save(ids, folder / "ids.pt")
        with applied(lm, lora):
            expected[folder] = lm.model(input_ids=ids).logits
    command = [sys.executable, "-P", "-c", PLAIN_PEFT, *map(str, expected)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, wanted in expected.items():
        torch.testing.assert_close(torch.load(folder / "logits.pt"), wanted)


class TestWrite:
    def test_card_extra_files_and_configuration(self, tiny_model, tiny_lora, tmp_path):
        lm = tiny_model("llama")
        write(tiny_lora(lm, roles={"q", "v"}), tmp_path / "a/b", lm, card=CARD, extra={"cast.json": "{}"})
        files = {path.name for path in (tmp_path / "a/b").iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors", "cast.json", "README.md"}
        config = json.loads((tmp_path / "a/b/adapter_config.json").read_text())
        assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
        assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 3, "LORA")
        assert config["base_model_name_or_path"] == lm.name
        assert read(tmp_path / "a/b", lm).licence == "apache-2.0"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_ambiguous_names_are_written_with_their_parents(self, tiny_model, tiny_lora, tmp_path):
        lm = tiny_model("gpt2")
        write(tiny_lora(lm, roles={"down"}), tmp_path / "out", lm, card=CARD)
        assert json.loads((tmp_path / "out/adapter_config.json").read_text())["target_modules"] == [
            "mlp.c_proj"
        ]

    def test_half_precision_halves_the_file(self, tiny_model, tiny_lora, tmp_path):
        lm = tiny_model("llama")
        lora = tiny_lora(lm)
        write(lora, tmp_path / "half", lm, card=CARD, dtype=torch.float16)
        with safe_open(tmp_path / "half/adapter_model.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
        for ours, theirs in zip(lora.kernels, read(tmp_path / "half", lm).kernels, strict=True):
            torch.testing.assert_close(ours.delta, theirs.delta, atol=1e-3, rtol=1e-2)

    def test_alpha_is_always_a_whole_number(self, tiny_model, tiny_lora, tmp_path):
        lm = tiny_model("llama")
        lora = tiny_lora(lm, scaling=0.37)
        write(lora, tmp_path / "out", lm, card=CARD)
        assert json.loads((tmp_path / "out/adapter_config.json").read_text())["lora_alpha"] == 2
        for ours, theirs in zip(lora.kernels, read(tmp_path / "out", lm).kernels, strict=True):
            torch.testing.assert_close(ours.delta, theirs.delta)

    def test_a_full_folder_is_left_alone(self, tiny_model, tiny_lora, tmp_path):
        (tmp_path / "mine.txt").write_text("precious")
        with pytest.raises(OutputError, match="not empty"):
            write(tiny_lora(tiny_model("llama")), tmp_path, tiny_model("llama"), card=CARD)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_full_disk_leaves_nothing(self, tiny_model, tiny_lora, tmp_path, monkeypatch):
        def full(*_args, **_kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(adapters, "save_file", full)
        with pytest.raises(OutputError, match="space"):
            write(tiny_lora(tiny_model("llama")), tmp_path / "out", tiny_model("llama"), card=CARD)
        assert list(tmp_path.iterdir()) == []

    def test_numbers_that_half_precision_cannot_hold_are_refused(self, tiny_model, tiny_lora, tmp_path):
        lm = tiny_model("llama")
        kernel = tiny_lora(lm).kernels[0]
        lora = Lora("huge", lm.name, (Kernel(kernel.site, kernel.a * 1e6, kernel.b, 1.0),))
        with pytest.raises(AdapterError, match="infinite"):
            write(lora, tmp_path / "out", lm, card=CARD, dtype=torch.float16)
        assert list(tmp_path.iterdir()) == []

    def test_extra_files_stay_inside(self, tiny_model, tiny_lora, tmp_path):
        lm = tiny_model("llama")
        with pytest.raises(OutputError, match="plain file names"):
            write(tiny_lora(lm), tmp_path / "out", lm, card=CARD, extra={"../escaped": ""})
        assert not Path(tmp_path / "escaped").exists()


class TestInspect:
    def test_a_summary_needs_no_model(self, tiny_model, tmp_path):
        lm = tiny_model("llama")
        config = {
            "target_modules": ["q_proj", "up_proj"],
            "r": 4,
            "rank_pattern": {"up_proj": 2},
            "use_rslora": True,
        }
        peft_adapter(lm, tmp_path, **config)
        summary = inspect(tmp_path)
        assert (summary.ranks, summary.layers, summary.modules) == ((2, 4), 3, ("q_proj", "up_proj"))
        assert summary.rank_stabilised
        assert summary.parameters == 3 * (4 * 64 + 2 * (32 + 48))
        assert summary.weight_bytes == 4 * summary.parameters

    def test_properties_of_what_was_read(self, tiny_model, tmp_path):
        lm = tiny_model("llama")
        peft_adapter(lm, tmp_path, target_modules=["q_proj"], layers_to_transform=[1, 2], r=3, lora_alpha=6)
        lora = read(tmp_path, lm)
        assert (lora.rank, lora.layers, lora.config["r"]) == (3, (2, 3), 3)
        assert {kernel.scaling for kernel in lora.kernels} == {2.0}
        assert all(kernel.a.dtype == torch.float32 for kernel in lora.kernels)
