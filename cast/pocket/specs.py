"""The base models of the pocket zoo: shapes, tokenizers, seeds, and the weights that training starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from cast.pocket.tokenization import MAX_POSITIONS, TokenizerKind


@dataclass(frozen=True)
class PocketSpec:
    """How one pocket model is made."""

    name: str
    tokenizer: TokenizerKind
    vocabulary: int
    config: type[PreTrainedConfig]
    shape: dict[str, object]
    seed: int


SPECS: Mapping[str, PocketSpec] = MappingProxyType({
    spec.name: spec
    for spec in (
        PocketSpec(
            "llama", "byte-bpe", 800, LlamaConfig,
            {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352,
             "tie_word_embeddings": True}, 11,
        ),
        PocketSpec(
            "mistral", "metaspace-bpe", 1200, MistralConfig,
            {"hidden_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 40, "intermediate_size": 320, "sliding_window": None,
             "tie_word_embeddings": True}, 12,
        ),
        PocketSpec(
            "qwen", "unigram", 680, Qwen3Config,
            {"hidden_size": 144, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 32, "intermediate_size": 384, "tie_word_embeddings": True}, 13,
        ),
        PocketSpec(
            "neox", "byte-bpe", 900, GPTNeoXConfig,
            {"hidden_size": 112, "num_hidden_layers": 7, "num_attention_heads": 4, "intermediate_size": 448,
             "rotary_pct": 0.5, "use_parallel_residual": True, "tie_word_embeddings": True}, 14,
        ),
    )
})  # fmt: skip


def build_config(spec: PocketSpec, vocabulary: int) -> PreTrainedConfig:
    """The configuration of a pocket model."""
    return spec.config(
        **spec.shape, vocab_size=vocabulary, max_position_embeddings=MAX_POSITIONS, initializer_range=0.03,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """Draw the starting weights so that copying is found early.

    Embeddings start wide against the step size, so that words of one kind keep apart while their common
    direction is learned. Each attention output starts as the transpose of its values (mimetic
    initialisation, arXiv 2305.09828), so a head passes on what it looks at, and tied embeddings name it.
    """
    config = model.config
    heads, depth = config.num_attention_heads, config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if "embed" in name:
            parameter.normal_(0.0, 0.12)
        else:
            narrow = (2 * depth) ** -0.5 if name.endswith(("down_proj.weight", "4h_to_h.weight")) else 1.0
            parameter.normal_(0.0, narrow * parameter.shape[1] ** -0.5)
    for module in model.modules():
        if hasattr(module, "query_key_value"):
            fused = module.query_key_value.weight
            values = fused.view(heads, 3, -1, fused.shape[1])[:, 2]
            module.dense.weight.copy_(0.5 * values.flatten(0, 1).T)
        elif hasattr(module, "v_proj"):
            values = module.v_proj.weight.view(config.num_key_value_heads, -1, config.hidden_size)
            shared = values.repeat_interleave(heads // config.num_key_value_heads, dim=0)
            module.o_proj.weight.copy_(0.5 * shared.flatten(0, 1).T)
