"""Tiny random models of many families with real fast tokenizers; they test the plumbing only."""

import functools
import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from fake_backend import FakeBackend, recording
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from app.jobs import Jobs
from app.workspace import Selection
from cast import adapters
from cast.adapters import Kernel, Lora
from cast.models import LanguageModel, load
from cast.runners import Runner

TRAINING_TEXT = [
    "Once upon a time there was a little fox who lived near the river with an old owl.",
    'The owl said: "You\'re late again, my friend!" and the fox smiled, for it was true.',
    "In the morning they walked 12 miles to the market, bought 3 apples, and came home.",
    "A café in a small village; a naïve painter; “quotes”, dashes — and a ☂ or two.",
    "Every evening the river sang, the moon rose over the hills, and the village slept.",
]
# Family → configuration beyond the common one; every odd corner that a family brings is kept on.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": 6},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 10},
    "gemma2": {
        "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6,
        "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8,
    },
    "gemma3": {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2},
    "gpt2": {"model_type": "gpt2"},
    "gpt_neox": {"model_type": "gpt_neox", "use_parallel_residual": True},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 24},
    "falcon": {"model_type": "falcon", "multi_query": True, "parallel_attn": True},
    "granite": {"model_type": "granite", "num_key_value_heads": 2, "logits_scaling": 3.0},
    "cohere": {"model_type": "cohere", "num_key_value_heads": 2, "logit_scale": 0.25},
}  # fmt: skip
TOKENIZERS = ("byte_bpe", "unigram", "char_bpe")


def _byte_bpe() -> PreTrainedTokenizerFast:
    """GPT-2's kind: byte-level BPE, no BOS put before a text, several tokens to a rare character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: Unigram with a metaspace, byte fallback, BOS by a template."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=560, special_tokens=specials[:3], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    # The trainer finds the same pieces each time, in another order; so the likelier is told by counting.
    text = "".join(f" {sentence}" for sentence in TRAINING_TEXT).replace(" ", "▁")
    ranked = sorted(
        set(tokenizer.get_vocab()) - set(specials), key=lambda piece: (-len(piece) * text.count(piece), piece)
    )
    learnt = [(token, -float(rank)) for rank, token in enumerate(ranked, start=10)]
    pieces = [(token, 0.0) for token in specials] + learnt
    tokenizer.model = models.Unigram(pieces, unk_id=0, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def _char_bpe() -> PreTrainedTokenizerFast:
    """Gemma's kind: BPE over characters whose spaces a normalizer replaced; unknown ones become one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


@functools.cache
def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `TOKENIZERS`, trained once."""
    return {"byte_bpe": _byte_bpe, "unigram": _unigram, "char_bpe": _char_bpe}[kind]()


@functools.cache
def build_model(
    family: str, tokenizer: str = "byte_bpe", width: int = 32, depth: int = 3, seed: int = 0
) -> LanguageModel:
    """A random model of a family; the same arguments give the same object."""
    fast = build_tokenizer(tokenizer)
    extra = dict(FAMILIES[family])
    config = AutoConfig.for_model(
        extra.pop("model_type"),
        **{
            "vocab_size": len(fast),
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "intermediate_size": width * 3 // 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": fast.bos_token_id,
            "eos_token_id": fast.eos_token_id,
            "pad_token_id": fast.pad_token_id,
            "initializer_range": 0.15,
            **extra,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return LanguageModel(f"tiny-{family}", model, fast)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LanguageModel]:
    """`tiny_model(family, tokenizer="byte_bpe", width=32, depth=3, seed=0)`, built once and shared."""
    return build_model


def fresh_logits(runner: Runner, ids: list[int]) -> torch.Tensor:
    """Logits behind a text, by a session that has read nothing but an empty prompt before."""
    session = runner.session()
    session.next_logits(ids[:1])
    return session.next_logits(ids)


def build_lora(
    lm: LanguageModel, *, rank: int = 2, scaling: float = 1.5, roles: set[str] | None = None, seed: int = 0
) -> Lora:
    """A random LoRA at every site of `lm`, or at those of the given roles."""
    generator = torch.Generator().manual_seed(seed)
    kernels = tuple(
        Kernel(
            site,
            torch.randn(rank, site.in_features, generator=generator) / site.in_features**0.5,
            torch.randn(site.out_features, rank, generator=generator) * 0.2,
            scaling,
        )
        for site in lm.architecture.sites
        if roles is None or site.role in roles
    )
    return Lora("random", lm.name, kernels)


@pytest.fixture(scope="session")
def tiny_lora() -> Callable[..., Lora]:
    """`tiny_lora(lm, rank=2, scaling=1.5, roles=None, seed=0)`: a random LoRA of a model."""
    return build_lora


# --- the page; what needs Gradio is imported late, for most tests do without


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    """The bundled one."""
    return load("pocket:llama")


@pytest.fixture(scope="module")
def mood(llama) -> Lora:
    """A bundled adapter of `llama`."""
    return adapters.read("pocket:llama/mood", llama)


@pytest.fixture
def backend():
    """A stand-in for the library, of this test alone."""
    return FakeBackend()


@pytest.fixture
def jobs():
    made = Jobs()
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    from pages import chromium

    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def stand_in():
    """What stands in for the library behind `address`; slow enough for its work to be looked at."""
    return FakeBackend(pace=0.02)


@pytest.fixture(scope="module")
def address(request, stand_in, tmp_path_factory):
    """A page that opens with a recorded run, unless the module is marked `unrecorded`."""
    from pages import served

    folder = tmp_path_factory.mktemp("page")
    recorded = folder / "recording.json"
    if request.node.get_closest_marker("unrecorded") is None:
        chosen = Selection("pocket:llama", "pocket:mistral", "pocket:llama/pirate")
        recording(stand_in, chosen).save(recorded)
    with served(stand_in, folder, recorded) as running:
        yield running


@pytest.fixture
def visit(browser, address):
    """Opens the page for one more visitor."""
    from pages import CastPage

    contexts = []

    def visitor(width=1440, height=900, look="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        return CastPage(contexts[-1], address, look)

    yield visitor
    for context in contexts:
        context.close()
