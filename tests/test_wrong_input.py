"""One table of everything wrong that can be asked for: each gets its typed error with one sentence.

A row prepares a wrong thing and asks for it; `said` are words that the sentence must hold.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import build_model
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from cast import adapters, models
from cast.adapters import Kernel, Lora
from cast.errors import AdapterError, CastError, HubError, ModelError, OutputError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Wrong:
    """A row of the table."""

    name: str
    error: type[CastError]
    said: tuple[str, ...]
    prepare: Callable[[Path], None]


def check(row: Wrong, ask: Callable[[], object]) -> None:
    with pytest.raises(row.error) as caught:
        ask()
    message = str(caught.value)
    assert message.count("\n") == 0
    assert 20 < len(message) < 400
    assert message.endswith((".", ")"))
    for words in row.said:
        assert words in message, message


# --- adapters: each row spoils a good adapter


def config(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        change(loaded)
        save_file(loaded, folder / WEIGHTS)

    return spoil


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))

    return spoil


def header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def rewrite(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        table = json.loads(data[8 : 8 + length])
        change(table)
        text = json.dumps(table).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return raw(rewrite)


def only_pickles(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def first(table: dict) -> str:
    return min(name for name in table if name != "__metadata__")


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda loaded: loaded[first(loaded)].view(-1)[3].fill_(value)


def zero_every(side: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda loaded: [weight.zero_() for name, weight in loaded.items() if f"lora_{side}" in name]


def rename_first(new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda loaded: loaded.update({new: loaded.pop(first(loaded))})


HEAD = "base_model.model.lm_head.lora_{}.weight"

ADAPTERS = (
    Wrong("DoRA", AdapterError, ("DoRA",), config(use_dora=True)),
    Wrong("another PEFT type", AdapterError, ("IA3", "LoRA"), config(peft_type="IA3")),
    Wrong("no PEFT type", AdapterError, ("LoRA",), config(peft_type=None)),
    Wrong("modules_to_save", AdapterError, ("modules_to_save",), config(modules_to_save=["lm_head"])),
    Wrong("token indices", AdapterError, ("trainable_token_indices",), config(trainable_token_indices=[1])),
    Wrong("target_parameters", AdapterError, ("target_parameters",), config(target_parameters=["experts"])),
    Wrong("bias", AdapterError, ("bias",), config(bias="all")),
    Wrong("lora_bias", AdapterError, ("lora_bias",), config(lora_bias=True)),
    Wrong("replicated layers", AdapterError, ("layer_replication",), config(layer_replication=[[0, 2]])),
    Wrong("PiSSA", AdapterError, ("pissa",), config(init_lora_weights="pissa")),
    Wrong("aLoRA", AdapterError, ("aLoRA",), config(alora_invocation_tokens=[1])),
    Wrong("unknown modules", AdapterError, ("'Wqkv'",), config(target_modules=["q_proj", "Wqkv"])),
    Wrong("no modules", AdapterError, ("target_modules",), config(target_modules=[])),
    Wrong("modules not text", AdapterError, ("target_modules",), config(target_modules=[7])),
    Wrong("untargeted weights", AdapterError, ("does not target",), config(target_modules=["q_proj"])),
    Wrong("lacking weights", AdapterError, ("lacks",), config(target_modules=["q_proj", "v_proj", "o_proj"])),
    Wrong("a slow pattern", AdapterError, ("pattern",), config(target_modules=r"(a+)+b")),
    Wrong("a broken pattern", AdapterError, ("pattern",), config(alpha_pattern={"(": 3})),
    Wrong("rank 0", AdapterError, ("rank", "above 0"), config(r=0)),
    Wrong("rank 0 of a module", AdapterError, ("rank", "above 0"), config(rank_pattern={"q_proj": 0})),
    Wrong("rank not a number", AdapterError, ("rank",), config(r="8")),
    Wrong("alpha not a number", AdapterError, ("alpha",), config(lora_alpha="NaN")),
    Wrong("pattern not a table", AdapterError, ("alpha_pattern",), config(alpha_pattern=[1])),
    Wrong("alpha 0", AdapterError, ("changes nothing",), config(lora_alpha=0)),
    Wrong("another rank", AdapterError, ("rank 3", "2×32"), config(r=3)),
    Wrong("not JSON", AdapterError, ("not JSON",), lambda folder: (folder / CONFIG).write_text("{r: 8")),
    Wrong(
        "JSON, but a list", AdapterError, ("JSON object",), lambda folder: (folder / CONFIG).write_text("[]")
    ),
    Wrong(
        "JSON without end",
        AdapterError,
        ("not JSON",),
        lambda folder: (folder / CONFIG).write_text("[" * 10**5),
    ),
    Wrong("no configuration", AdapterError, (CONFIG,), lambda folder: (folder / CONFIG).unlink()),
    Wrong("no weights", AdapterError, (WEIGHTS,), lambda folder: (folder / WEIGHTS).unlink()),
    Wrong("pickle", AdapterError, ("pickle",), only_pickles),
    Wrong("NaN", AdapterError, ("NaN", "lora_A"), tensors(fill(float("nan")))),
    Wrong("infinite", AdapterError, ("infinite",), tensors(fill(float("inf")))),
    Wrong("B is zero", AdapterError, ("changes nothing",), tensors(zero_every("B"))),
    Wrong("A is zero", AdapterError, ("changes nothing",), tensors(zero_every("A"))),
    Wrong("half a module", AdapterError, ("incomplete",), tensors(lambda loaded: loaded.pop(first(loaded)))),
    Wrong("no tensors", AdapterError, ("incomplete",), tensors(dict.clear)),
    Wrong(
        "a strange tensor", AdapterError, ("lora_embedding_A",), tensors(rename_first("x.lora_embedding_A"))
    ),
    Wrong(
        "the head is adapted",
        AdapterError,
        ("lm_head",),
        tensors(
            lambda loaded: loaded.update(
                {HEAD.format("A"): torch.ones(2, 32), HEAD.format("B"): torch.ones(9, 2)}
            )
        ),
    ),
    Wrong(
        "whole numbers",
        AdapterError,
        ("I32",),
        tensors(lambda loaded: loaded.update(x=torch.ones(2, dtype=torch.int32))),
    ),
    Wrong(
        "another width",
        AdapterError,
        ("another model", "2×48"),
        tensors(lambda loaded: loaded.update({first(loaded): torch.ones(2, 48)})),
    ),
    Wrong("empty file", AdapterError, ("too short",), raw(lambda data: b"")),
    Wrong("cut off", AdapterError, ("promises",), raw(lambda data: data[:-100])),
    Wrong("cut off in the header", AdapterError, ("claims",), raw(lambda data: data[:100])),
    Wrong("longer than it says", AdapterError, ("promises",), raw(lambda data: data + b"\0" * 64)),
    Wrong(
        "an endless header", AdapterError, ("claims",), raw(lambda data: struct.pack("<Q", 2**62) + data[8:])
    ),
    Wrong("header not JSON", AdapterError, ("not JSON",), raw(lambda data: data[:8] + b"\xff" + data[9:])),
    Wrong("header a list", AdapterError, ("table",), raw(lambda data: struct.pack("<Q", 2) + b"[]")),
    Wrong(
        "a lying shape",
        AdapterError,
        ("contradicts",),
        header(lambda t: t[first(t)].update(shape=[10**9, 10**9])),
    ),
    Wrong(
        "a negative shape",
        AdapterError,
        ("whole numbers",),
        header(lambda t: t[first(t)].update(shape=[-2, -32])),
    ),
    Wrong("overlapping ranges", AdapterError, ("overlap",), header(lambda t: t.update(again=t[first(t)]))),
    Wrong("an entry without a shape", AdapterError, ("lacks",), header(lambda t: t[first(t)].pop("shape"))),
    Wrong(
        "an unknown number type", AdapterError, ("F13",), header(lambda t: t[first(t)].update(dtype="F13"))
    ),
)


@pytest.mark.parametrize("row", ADAPTERS, ids=lambda row: row.name)
def test_wrong_adapters(row, tiny_lora, tmp_path):
    lm = build_model("llama")
    folder = tmp_path / "adapter"
    adapters.write(tiny_lora(lm, roles={"q", "v"}), folder, lm, card="")
    assert adapters.read(folder, lm).layers == (1, 2, 3)
    row.prepare(folder)
    check(row, lambda: adapters.read(folder, lm))


NAMES_OF_ADAPTERS = (
    Wrong("no such folder", AdapterError, ("does not exist",), lambda folder: None),
    Wrong("a file", AdapterError, ("is a file",), lambda folder: folder.write_text("x")),
    Wrong("an empty folder", AdapterError, (CONFIG,), lambda folder: folder.mkdir()),
)


@pytest.mark.parametrize("row", NAMES_OF_ADAPTERS, ids=lambda row: row.name)
def test_wrong_names_of_adapters(row, tmp_path):
    row.prepare(tmp_path / "adapter")
    check(row, lambda: adapters.read(tmp_path / "adapter", build_model("llama")))


def test_an_adapter_of_another_model(tiny_lora, tmp_path):
    lm, other = build_model("llama"), build_model("gpt2")
    adapters.write(tiny_lora(lm), tmp_path / "adapter", lm, card="")
    row = Wrong("", AdapterError, ("tiny-gpt2", "'down_proj'"), lambda folder: None)
    check(row, lambda: adapters.read(tmp_path / "adapter", other))


# --- models: each row makes or spoils a model folder


def save_llama(folder: Path) -> None:
    lm = build_model("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def llama_with(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        save_llama(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def llama_without(*patterns: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        save_llama(folder)
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return spoil


def llama_with_pickles(folder: Path) -> None:
    save_llama(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def llama_cut_off(folder: Path) -> None:
    save_llama(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def llama_lacking_a_block(folder: Path) -> None:
    save_llama(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layers.2." not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def llama_with_an_index(*parts: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        llama_without("model.safetensors")(folder)
        index = {"weight_map": {f"weight {number}": part for number, part in enumerate(parts)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def bert(model: type, **options: object) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        build_model("llama").tokenizer.save_pretrained(folder)
        small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 400}
        model(BertConfig(hidden_size=32, initializer_range=0.3, **small, **options)).save_pretrained(folder)

    return save


def t5(folder: Path) -> None:
    build_model("llama").tokenizer.save_pretrained(folder)
    T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=1, vocab_size=400)).save_pretrained(
        folder
    )


def slow_tokenizer(folder: Path) -> None:
    llama_without("tokenizer*", "special_tokens*")(folder)
    (folder / "vocab.json").write_text(json.dumps({"<unk>": 0, "a": 1}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    (folder / "merges.txt").write_text("#version\n")


MODELS = (
    Wrong("no such folder", ModelError, ("does not exist",), lambda folder: None),
    Wrong("an empty folder", ModelError, ("config.json",), lambda folder: folder.mkdir()),
    Wrong("a file", ModelError, ("is a file",), lambda folder: folder.write_text("x")),
    Wrong(
        "configuration not JSON",
        ModelError,
        ("not JSON",),
        lambda f: (save_llama(f), (f / "config.json").write_text("{")),
    ),
    Wrong(
        "configuration a list",
        ModelError,
        ("JSON object",),
        lambda f: (save_llama(f), (f / "config.json").write_text("[]")),
    ),
    Wrong("configuration of nonsense", ModelError, ("config.json",), llama_with(num_attention_heads="many")),
    Wrong("a family unknown here", ModelError, ("'llama9'",), llama_with(model_type="llama9")),
    Wrong(
        "code of its own",
        ModelError,
        ("trust_remote_code",),
        llama_with(model_type="own", auto_map={"AutoModelForCausalLM": "modeling.Own"}),
    ),
    Wrong(
        "quantised",
        ModelError,
        ("quantised",),
        llama_with(quantization_config={"quant_method": "gptq", "bits": 4}),
    ),
    Wrong("an encoder", ModelError, ("decoder-only",), bert(BertForMaskedLM)),
    Wrong(
        "an encoder with a decoder's name",
        ModelError,
        ("reads ahead",),
        bert(BertLMHeadModel, is_decoder=False),
    ),
    Wrong("an encoder with a decoder", ModelError, ("decoder-only",), t5),
    Wrong("no tokenizer", ModelError, ("tokenizer",), llama_without("tokenizer*", "special_tokens*")),
    Wrong("no fast tokenizer", ModelError, ("fast tokenizer",), slow_tokenizer),
    Wrong("pickle only", ModelError, ("pickle",), llama_with_pickles),
    Wrong("no weights", ModelError, ("model.safetensors",), llama_without("model.safetensors")),
    Wrong("weights cut off", ModelError, ("promises",), llama_cut_off),
    Wrong("weights lack a block", ModelError, ("lacks", "layers.2."), llama_lacking_a_block),
    Wrong("other shapes", ModelError, ("cannot be loaded",), llama_with(intermediate_size=64)),
    Wrong(
        "a part is missing", ModelError, ("part-1.safetensors",), llama_with_an_index("part-1.safetensors")
    ),
    Wrong("a part elsewhere", ModelError, ("index.json",), llama_with_an_index("../../etc/passwd")),
    Wrong("an empty index", ModelError, ("index.json",), llama_with_an_index()),
)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_wrong_models(row, tmp_path):
    row.prepare(tmp_path / "model")
    before = {path.name for path in tmp_path.rglob("*")}
    check(row, lambda: models.load(str(tmp_path / "model")))
    assert {path.name for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "row", [row for row in MODELS if row.name in {"pickle only", "an encoder", "no such folder"}]
)
def test_a_summary_refuses_the_same(row, tmp_path):
    row.prepare(tmp_path / "model")
    check(row, lambda: models.describe(str(tmp_path / "model")))


GGUF = (
    Wrong("no such file", ModelError, ("does not exist",), lambda path: None),
    Wrong(
        "not GGUF", ModelError, ("not a GGUF file",), lambda path: path.write_bytes(b"PK\3\4" + b"\0" * 64)
    ),
    Wrong(
        "GGUF cut off",
        ModelError,
        ("cannot be read",),
        lambda path: path.write_bytes(b"GGUF\3\0\0\0" + b"\1\0\0\0"),
    ),
)


@pytest.mark.parametrize("row", GGUF, ids=lambda row: row.name)
def test_wrong_gguf_files(row, tmp_path):
    row.prepare(tmp_path / "model.gguf")
    check(row, lambda: models.load(str(tmp_path / "model.gguf"), cache_dir=tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_model_larger_than_the_memory(tmp_path, monkeypatch):
    save_llama(tmp_path / "model")
    monkeypatch.setattr(models, "available_memory", lambda device: 1000)
    row = Wrong("", ModelError, ("memory", "GiB"), lambda folder: None)
    check(row, lambda: models.load(str(tmp_path / "model")))


@pytest.mark.parametrize("ask", [models.load, models.describe], ids=["load", "describe"])
def test_the_hub_while_offline(ask, tmp_path, monkeypatch):
    assert constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check(Wrong("", HubError, ("Hub", "owner/model"), lambda folder: None), lambda: ask("owner/model"))


def test_an_adapter_on_the_hub_while_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    row = Wrong("", HubError, ("Hub", "owner/adapter"), lambda folder: None)
    check(row, lambda: adapters.read("owner/adapter", build_model("llama")))


@pytest.mark.parametrize("name", ["pocket:dinosaur", "pocket:llama/dancing"])
def test_the_pocket_zoo_has_no_such_thing(name):
    ask = adapters.inspect if "/" in name else models.load
    with pytest.raises(CastError, match="pocket zoo has no"):
        ask(name)


# --- writing


def test_an_adapter_that_changes_nothing_is_not_written(tiny_lora, tmp_path):
    lm = build_model("llama")
    still = tuple(Kernel(k.site, k.a, torch.zeros_like(k.b), k.scaling) for k in tiny_lora(lm).kernels)
    row = Wrong("", AdapterError, ("changes nothing",), lambda folder: None)
    check(row, lambda: adapters.write(Lora("still", lm.name, still), tmp_path / "out", lm, card=""))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tiny_lora, tmp_path):
    lm = build_model("llama")
    (tmp_path / "out").write_text("mine")
    row = Wrong("", OutputError, ("is a file",), lambda folder: None)
    check(row, lambda: adapters.write(tiny_lora(lm), tmp_path / "out", lm, card=""))
    assert (tmp_path / "out").read_text() == "mine"
