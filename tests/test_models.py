"""Architecture by structure, token ends, fingerprints, and the three places that models come from."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TOKENIZERS, build_model
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel

from cast.models import Architecture, LanguageModel, describe, load

SEPARATE = {"q", "k", "v", "o", "gate", "up", "down"}
ROLES = {
    "phi3": {"qkv", "o", "gate_up", "down"},
    "gpt2": {"qkv", "o", "up", "down"},
    "gpt_neox": {"qkv", "o", "up", "down"},
    "falcon": {"qkv", "o", "up", "down"},
    "opt": {"q", "k", "v", "o", "up", "down"},
}
TEXTS = [
    "",
    "Once upon a time",
    " two  spaces",
    "naïve café",
    "a 🙂‍↔️ b",
    "line\n\nline\t",
    "日本語 text",
    "x ",
]


@pytest.fixture
def saved(tiny_model, tmp_path):
    def save(family="llama", tokenizer="byte_bpe", **options):
        lm = tiny_model(family, tokenizer)
        lm.model.save_pretrained(tmp_path / "model", **options)
        lm.tokenizer.save_pretrained(tmp_path / "model")
        return lm, tmp_path / "model"

    return save


def last_hidden(lm: LanguageModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """h_L and the model's own logits."""
    kept = {}

    def keep(module, inputs, output):
        kept["h"] = output[0] if isinstance(output, tuple) else output

    handle = lm.architecture.blocks[-1].register_forward_hook(keep)
    logits = lm.model(input_ids=ids).logits
    handle.remove()
    return kept["h"], logits


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_depth_width_and_logits_of_the_last_state(self, tiny_model, family):
        lm = tiny_model(family)
        assert (lm.depth, lm.width) == (3, 32)
        hidden, logits = last_hidden(lm, lm.encode(["Once upon a time there was a fox"]).input_ids)
        assert hidden.shape[-1] == 32
        torch.testing.assert_close(lm.architecture.logits(hidden), logits)

    def test_the_decoder_returns_what_the_head_reads(self, tiny_model, family):
        lm = tiny_model(family)
        ids = lm.encode(["Once upon a time"]).input_ids
        normed = lm.architecture.decoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(lm.architecture.unembed(normed), lm.model(input_ids=ids).logits)

    def test_sites_have_roles_shapes_and_the_names_that_peft_sees(self, tiny_model, family):
        lm = tiny_model(family)
        sites = lm.architecture.sites
        assert {site.role for site in sites} == ROLES.get(family, SEPARATE)
        assert set(Counter((site.layer, site.role) for site in sites).values()) == {1}
        assert [site.layer for site in sites] == sorted(site.layer for site in sites)
        for site in sites:
            module = lm.architecture.module(site)
            assert module is lm.model.get_submodule(site.name)
            assert module(torch.zeros(1, site.in_features)).shape == (1, site.out_features)

    def test_what_peft_adapts_by_default_are_sites(self, tiny_model, family):
        lm = tiny_model(family)
        for name in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(lm.family, []):
            matching = [site for site in lm.architecture.sites if site.name.endswith(f".{name}")]
            assert len(matching) == lm.depth
            assert {site.role for site in matching} <= {"q", "v", "qkv"}


class TestArchitecture:
    def test_weights_are_frozen_and_dropout_is_off(self, tiny_model):
        lm = tiny_model("gpt2")
        assert not any(weight.requires_grad for weight in lm.model.parameters())
        assert not lm.model.training

    def test_residual_state_of_opt_is_projected_out_before_the_head(self, tiny_model):
        architecture = tiny_model("opt").architecture
        assert architecture.project_out is not None
        assert architecture.normed(torch.zeros(2, 32)).shape == (2, 24)

    def test_a_soft_cap_bounds_the_logits(self, tiny_model):
        assert tiny_model("gemma2").architecture.logits(torch.randn(4, 32) * 100).abs().max() <= 2.0


class TestEncode:
    @pytest.mark.parametrize("kind", TOKENIZERS)
    def test_bos_first_and_ends_that_never_go_back(self, kind):
        batch = build_model("llama", kind).encode(TEXTS)
        for row, text in enumerate(TEXTS):
            length = int(batch.attention_mask[row].sum())
            ends = batch.ends[row, 1:length].tolist()
            assert batch.input_ids[row, 0] == build_model("llama", kind).bos_id
            assert batch.ends[row, 0] == -1
            assert ends == sorted(ends)
            assert (ends[-1] if ends else 0) == len(text)
            assert (batch.ends[row, length:] == -1).all()
            assert (batch.attention_mask[row] == (torch.arange(batch.ends.shape[1]) < length)).all()

    @settings(max_examples=40, deadline=None)
    @given(st.text(alphabet="abc e\n\tdéß☂日🙂🦊", max_size=30))
    def test_byte_level_ends_are_where_the_bytes_end(self, text):
        lm = build_model("llama", "byte_bpe")
        batch = lm.encode([text])
        ids, ends = batch.input_ids[0, 1:].tolist(), batch.ends[0, 1:].tolist()
        ends_in_bytes = np.cumsum([len(char.encode()) for char in text])
        sizes = [len(token) for token in lm.tokenizer.convert_ids_to_tokens(ids)]  # one character is one byte
        # A token that stops inside a character counts that character as its own.
        expected = [int(np.searchsorted(ends_in_bytes, done)) + 1 for done in np.cumsum(sizes)]
        assert ends == expected

    @settings(max_examples=40, deadline=None)
    @given(st.text(alphabet="abc deé\n☂.", max_size=30), st.sampled_from(["unigram", "char_bpe"]))
    def test_the_tokens_up_to_an_end_spell_the_text_up_to_it(self, text, kind):
        lm = build_model("llama", kind)
        batch = lm.encode([text])
        ids, ends = batch.input_ids[0, 1:].tolist(), batch.ends[0, 1:].tolist()
        last_at = {end: index for index, end in enumerate(ends)}
        pieces = lm.tokenizer.convert_ids_to_tokens(ids)
        for end, index in last_at.items():
            if any(piece.startswith("<") for piece in pieces[: index + 1]):
                break  # bytes and unknowns do not spell
            if pieces[index] == "▁" and pieces[index + 1 : index + 2] and pieces[index + 1].startswith("<"):
                break  # the mark of a word alone counts a byte behind it as its own
            spelled = "".join(pieces[: index + 1]).replace("▁", " ")
            assert spelled.removeprefix(" ") == text[:end].removeprefix(" ")

    def test_characters_of_several_byte_tokens_share_their_end(self):
        for kind in ("byte_bpe", "unigram"):
            ends = build_model("llama", kind).encode(["a🙂b"]).ends[0].tolist()
            assert ends.count(2) > 1
            assert ends[-1] == 3

    def test_a_leading_space_keeps_its_own_end_in_byte_level_tokenizers(self):
        assert 1 in build_model("llama", "byte_bpe").encode([" 🙂"]).ends[0].tolist()

    def test_a_special_token_in_the_text_has_no_end(self, tiny_model):
        batch = tiny_model("llama").encode(["a<|endoftext|>b"])
        special = batch.input_ids[0] == tiny_model("llama").bos_id
        assert special.sum() == 2
        assert (batch.ends[0][special] == -1).all()
        assert batch.ends[0, -1] == len("a<|endoftext|>b")

    def test_an_unknown_token_has_an_end(self):
        lm = build_model("llama", "char_bpe")
        batch = lm.encode(["猫 a"])
        assert lm.tokenizer.unk_token_id in batch.input_ids[0].tolist()
        assert batch.ends[0, -1] == 3

    @pytest.mark.parametrize("kind", ["byte_bpe", "unigram", "char_bpe"])
    def test_a_text_is_cut_between_characters(self, tiny_model, kind):
        lm, text = tiny_model("llama", kind), "a🦊é🙂 b日本"
        whole = lm.encode([text])
        for length in range(1, whole.input_ids.shape[1] + 1):
            cut = lm.encode([text], max_length=length)
            tokens = cut.input_ids.shape[1]
            assert tokens <= length
            assert tokens == length or len(set(whole.ends[0, tokens : length + 1].tolist())) == 1
            assert cut.input_ids.tolist() == whole.input_ids[:, :tokens].tolist()
            end = max(0, int(cut.ends.max()))
            # Every character that has an end is there with all its tokens.
            assert (cut.ends[0] == end).sum() == (whole.ends[0] == end).sum()

    def test_max_length_counts_the_bos(self, tiny_model):
        lm = tiny_model("llama")
        whole, cut = lm.encode(["Once upon a time"]), lm.encode(["Once upon a time"], max_length=3)
        assert cut.input_ids.tolist() == whole.input_ids[:, :3].tolist()
        assert cut.ends.tolist() == whole.ends[:, :3].tolist()

    def test_the_context_length_always_holds(self, tiny_model):
        assert tiny_model("llama").encode(["word " * 900]).input_ids.shape == (1, 256)

    def test_a_text_is_held_with_what_is_to_come_behind_it(self, tiny_model):
        lm = tiny_model("llama")
        length = len(lm.tokens(["word " * 20])[0][0])
        # The last is cut between characters, so that what is left of it does not fill the context.
        texts = ["", "word " * 20, "word " * 900, "🦉" * 300]
        assert lm.holds(texts) == [True, True, False, False]
        assert lm.holds(texts, 256 - length) == [True, True, False, False]
        assert lm.holds(texts, 256 - length + 1) == [True, False, False, False]

    def test_no_texts_make_an_empty_batch(self, tiny_model):
        assert tiny_model("llama").encode([]).input_ids.shape == (0, 0)

    @pytest.mark.parametrize("kind", TOKENIZERS)
    def test_decode_gives_the_text_back_without_specials(self, kind):
        lm = build_model("llama", kind)
        text = "Once upon a time, the owl smiled."
        assert lm.decode(lm.encode([text]).input_ids[0]) == text

    def test_the_tokenizer_itself_is_left_as_it_was(self, tiny_model):
        lm = tiny_model("llama", "unigram")
        lm.encode(["a"])
        assert lm.tokenizer("a")["input_ids"][0] == lm.bos_id

    def test_ends_of_texts_come_from_settings_of_every_kind(self, tiny_model):
        lm = LanguageModel(
            "m", tiny_model("llama", "char_bpe", seed=5).model, tiny_model("llama", "char_bpe").tokenizer
        )
        lm.model.generation_config.eos_token_id = [1, 7]
        assert lm.eos_ids == {1, 7}


class TestFingerprint:
    def test_it_does_not_depend_on_the_number_type(self, saved):
        lm, folder = saved()
        assert load(str(folder)).fingerprint == lm.fingerprint
        assert load(str(folder), dtype=torch.bfloat16).fingerprint == lm.fingerprint

    def test_other_weights_and_other_tokenizers_have_another(self, tiny_model):
        found = {tiny_model("llama", kind, seed=seed).fingerprint for kind in TOKENIZERS for seed in (0, 1)}
        assert len(found) == 6

    def test_one_trained_matrix_is_enough(self, tiny_model):
        base = tiny_model("llama")
        weights = {name: weight.clone() for name, weight in base.model.state_dict().items()}
        weights["model.layers.1.mlp.up_proj.weight"] *= 1.1
        model = type(base.model)(base.model.config)
        model.load_state_dict(weights)
        assert LanguageModel("changed", model, base.tokenizer).fingerprint != base.fingerprint


class TestLoad:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
    def test_a_local_folder_gives_the_same_logits(self, saved, family):
        lm, folder = saved(family)
        again = load(str(folder))
        batch = lm.encode(["Once upon a time"])
        torch.testing.assert_close(
            again.model(input_ids=batch.input_ids).logits, lm.model(input_ids=batch.input_ids).logits
        )
        assert (again.name, again.revision, again.dtype) == (str(folder), None, torch.float32)

    def test_weights_in_several_files(self, saved):
        lm, folder = saved(max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        assert load(str(folder)).fingerprint == lm.fingerprint

    def test_a_progress_callback_hears_of_it(self, saved):
        heard = []
        load(str(saved()[1]), on_progress=heard.append)
        assert [(step.stage, step.done) for step in heard] == [("load", 0), ("load", 1)]

    def test_a_summary_needs_no_weights(self, saved):
        lm, folder = saved("qwen3")
        summary = describe(str(folder))
        assert (summary.family, summary.width, summary.depth) == ("qwen3", 32, 3)
        assert (summary.heads, summary.key_value_heads) == (4, 2)
        assert summary.parameters == sum(weight.numel() for weight in lm.model.parameters())
        assert summary.weight_bytes == 4 * summary.parameters
        assert summary.tokenizer == "byte-level BPE"

    def test_the_structure_is_found_in_a_saved_model_too(self, saved):
        lm, folder = saved("phi3")
        assert Architecture.of(load(str(folder)).model).sites == lm.architecture.sites


def write_gguf(lm: LanguageModel, path) -> None:
    """A float32 GGUF file of a tiny byte-level Llama, laid out as llama.cpp's converter does."""
    config, state = lm.model.config, lm.model.state_dict()
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    state_of_tokenizer = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]
    vocab = sorted(state_of_tokenizer["vocab"].items(), key=lambda entry: entry[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocab])
    writer.add_token_merges([" ".join(pair) for pair in state_of_tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    def halves_interleaved(weight, heads):
        rows = weight.shape[0]
        return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"].numpy()
            if theirs in {"attn_q", "attn_k"}:
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = halves_interleaved(weight, heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestGguf:
    def test_a_gguf_file_becomes_a_folder_once_and_loads_like_one(self, tiny_model, tmp_path):
        lm = tiny_model("llama")
        path = tmp_path / "tiny.gguf"
        write_gguf(lm, path)
        heard = []
        first = load(str(path), cache_dir=tmp_path / "cache", on_progress=heard.append)
        again = load(str(path), cache_dir=tmp_path / "cache", on_progress=heard.append)
        assert [step.stage for step in heard].count("convert") == 3
        assert "quantization_config" not in json.loads(
            next((tmp_path / "cache/gguf").glob("*/config.json")).read_text()
        )
        batch = first.encode(["Once upon a time"])
        assert batch.input_ids.tolist() == lm.encode(["Once upon a time"]).input_ids.tolist()
        logits = first.model(input_ids=batch.input_ids).logits
        torch.testing.assert_close(logits, again.model(input_ids=batch.input_ids).logits)
        torch.testing.assert_close(logits, lm.model(input_ids=batch.input_ids).logits, atol=0.1, rtol=0.1)


def test_models_that_are_loaded_at_once_are_whole_and_leave_the_library_as_it_was() -> None:
    tie_weights = PreTrainedModel.tie_weights
    names = ["pocket:llama", "pocket:mistral", "pocket:qwen", "pocket:neox"] * 2
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(load, names))
    assert [lm.name for lm in loaded] == names
    assert PreTrainedModel.tie_weights is tie_weights
