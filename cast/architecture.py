"""The parts of a decoder that CAST touches, found by structure and by PEFT's own tables, not by family.

Everything starts from one observation: a decoder-only language model holds one `nn.ModuleList` of
`num_hidden_layers` blocks of one class; what the module around it does after that list is the final norm (OPT
also projects out), and `get_output_embeddings()` is the head.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cast.errors import ModelError

ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "other")

# The last part of a module's name, where it tells the role by itself.
_ROLE_BY_NAME = {
    "q": ("q_proj", "query", "wq", "q", "q_lin"),
    "k": ("k_proj", "key", "wk", "k", "k_lin"),
    "v": ("v_proj", "value", "wv", "v", "v_lin"),
    "qkv": ("qkv_proj", "query_key_value", "c_attn", "wqkv", "qkv", "qkv_linear", "in_proj"),
    "o": ("o_proj", "out_proj", "wo", "o", "out_lin"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "lin1"),
    "gate_up": ("gate_up_proj", "w12"),
    "down": ("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h", "lin2"),
}
_ATTENTION_WORDS = ("attn", "attention")


@dataclass(frozen=True)
class Site:
    """A linear layer inside a decoder block, where a LoRA can act."""

    layer: int
    """The block, counted from 1 as in `h_l`."""
    name: str
    """Path of the module in the model as PEFT sees it, such as `model.layers.0.self_attn.q_proj`."""
    role: str
    """One of `ROLES`."""
    in_features: int
    out_features: int
    fan_in_fan_out: bool
    """The weight is stored [in, out], as in transformers' `Conv1D`."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A language model taken apart: blocks, linear sites, final norm and head.

    The residual stream is `h_0` (the input of block 1) … `h_depth` (the output of the last block, not
    normed yet).
    """

    decoder: nn.Module
    """Owner of the blocks; called with ids it returns the *normed* `h_depth` as `last_hidden_state`."""
    blocks: tuple[nn.Module, ...]
    path: str
    """Path of the block list in the model, such as `model.layers`."""
    width: int
    sites: tuple[Site, ...]
    final_norm: nn.Module | None
    project_out: nn.Module | None
    head: nn.Module
    logit_scale: float
    logit_cap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Architecture":
        """Find the parts of a decoder-only model.

        Raises:
            ModelError: the model has no list of equal decoder blocks, or no head that predicts tokens.
        """
        config = model.config.get_text_config(decoder=True)
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{type(model).__name__} has no head that predicts tokens; choose a decoder-only language "
                "model."
            )
        path, decoder, blocks = _find_blocks(model, config)
        sites = tuple(
            site for index, block in enumerate(blocks) for site in _sites(block, index + 1, f"{path}.{index}")
        )
        scale, cap = _logit_transform(config)
        return cls(
            decoder=decoder,
            blocks=tuple(blocks),
            path=path,
            width=config.hidden_size,
            sites=sites,
            final_norm=_final_norm(decoder, blocks),
            project_out=getattr(decoder, "project_out", None),
            head=head,
            logit_scale=scale,
            logit_cap=cap,
        )

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the decoder is told the positions of its tokens; ALiBi models count on the mask."""
        return "position_ids" in inspect.signature(self.decoder.forward).parameters

    def module(self, site: Site) -> nn.Module:
        """The linear module of a site of this model."""
        return self.blocks[site.layer - 1].get_submodule(
            site.name.removeprefix(f"{self.path}.{site.layer - 1}.")
        )

    def normed(self, hidden: Tensor) -> Tensor:
        """What the head reads: the final norm of `h_depth` [..., width], and OPT's projection after it."""
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        return hidden if self.project_out is None else self.project_out(hidden)

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits [..., V] of normed states: the head, the family's logit scale and its soft cap."""
        logits = self.head(normed) * self.logit_scale if self.logit_scale != 1.0 else self.head(normed)
        if self.logit_cap is not None:
            logits = torch.tanh(logits / self.logit_cap) * self.logit_cap
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., V] of the last residual state `h_depth` [..., width]."""
        return self.unembed(self.normed(hidden))


def _find_blocks(model: PreTrainedModel, config: Any) -> tuple[str, nn.Module, nn.ModuleList]:
    """Path, owner and list of the decoder blocks; the outermost list wins where several fit."""
    depth = config.num_hidden_layers
    fitting = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == depth
        and len({type(block) for block in module}) == 1
    ]
    # Vision and audio towers can have as many blocks as the text decoder: what the model calls its
    # decoder wins.
    inside = {id(module) for module in model.get_decoder().modules()}
    fitting.sort(key=lambda found: (id(found[1]) not in inside, found[0].count(".")))
    for path, blocks in fitting:
        if any(True for _ in _linear_modules(blocks[0])):
            return path, model.get_submodule(path.rpartition(".")[0]), blocks
    raise ModelError(
        f"{type(model).__name__} has no list of {depth} equal decoder blocks, which CAST needs; "
        "choose a decoder-only model whose blocks are all of one kind."
    )


def _final_norm(decoder: nn.Module, blocks: nn.ModuleList) -> nn.Module | None:
    """The norm that stands beside the block list; norms before it (on embeddings) are registered earlier."""
    after, norm = False, None
    for name, child in decoder.named_children():
        if child is blocks:
            after = True
        elif "norm" in type(child).__name__.lower() and (after or "final" in name):
            norm = child
    return norm


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """Factor on the logits (Cohere multiplies, Granite divides) and soft cap (Gemma 2)."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return scale, None if cap is None else float(cap)


def _linear_modules(block: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def _sites(block: nn.Module, layer: int, path: str) -> Iterator[Site]:
    for name, module in _linear_modules(block):
        transposed = isinstance(module, Conv1D)
        rows, columns = tuple(module.weight.shape)
        inputs, outputs = (rows, columns) if transposed else (columns, rows)
        yield Site(layer, f"{path}.{name}", _role(name, inputs, outputs), inputs, outputs, transposed)


def _role(name: str, inputs: int, outputs: int) -> str:
    """Role by the module's own name, else by where it stands and which way its shape goes."""
    leaf = name.rpartition(".")[2].lower()
    in_attention = any(word in name.lower() for word in _ATTENTION_WORDS)
    for role, leaves in _ROLE_BY_NAME.items():
        if leaf in leaves:
            return role
    if in_attention:
        fused = {
            entry for names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.values() for entry in names
        }
        return (
            "qkv" if leaf in fused and outputs > inputs else "o" if leaf in {"dense", "c_proj"} else "other"
        )
    if leaf in {"dense", "c_proj"} and inputs > outputs:
        return "down"
    return "other"
