"""Language models behind one `load`: a Hub id, a local folder, a `.gguf` file or a `pocket:` name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from cast import hub
from cast.architecture import Architecture, Site
from cast.building import ONE_AT_A_TIME
from cast.checkpoints import Checkpoint, Outline, is_remote, open_checkpoint, open_remote
from cast.devices import available_memory, pick_device, pick_dtype
from cast.errors import ModelError, first_line
from cast.language_model import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore

__all__ = [
    "Architecture",
    "LanguageModel",
    "ModelSummary",
    "Site",
    "TokenBatch",
    "describe",
    "load",
]
# Below this size float32 costs little, and its results do not depend on the CPU's bfloat16 support.
_SMALL_PARAMETERS = 100_000_000


@dataclass(frozen=True)
class ModelSummary:
    """What can be said of a model before its weights are loaded."""

    name: str
    family: str
    width: int
    depth: int
    heads: int
    key_value_heads: int
    vocabulary: int
    parameters: int
    tokenizer: str
    """Algorithm, such as `Unigram` or `byte-level BPE`; for a Hub model its class."""
    weight_bytes: int
    """Bytes of the weight files: what a Hub model has to download."""
    licence: str | None = None
    """As its card states it."""


def describe(name: str, token: str | None = None) -> ModelSummary:
    """Look at a model without loading its weights; of a Hub model only the configuration is fetched.

    Raises:
        ModelError: it is not a decoder-only model with safetensors weights.
        HubError: the Hub cannot be reached or does not have it.
    """
    outline: Outline
    if is_remote(name):
        outline, tokenizer = open_remote(name, token=token)
        card = hub.fetch_card(name, token=token)
    else:
        outline = checkpoint = open_checkpoint(name, token=token)
        tokenizer = checkpoint.tokenizer_kind
        card = hub.read_card(checkpoint.folder)
    config = outline.config.get_text_config(decoder=True)
    heads = int(config.num_attention_heads)
    return ModelSummary(
        name=name,
        family=str(outline.config.model_type),
        width=int(config.hidden_size),
        depth=int(config.num_hidden_layers),
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=int(config.vocab_size),
        parameters=outline.parameters,
        tokenizer=tokenizer,
        weight_bytes=outline.weight_bytes,
        licence=hub.licence_of(card),
    )


def load(
    name: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    on_progress: OnProgress = ignore,
) -> LanguageModel:
    """Load a decoder-only language model with its tokenizer, frozen and in eval mode.

    Args:
        name: Hub id, local folder, `.gguf` file, or `pocket:llama`.
        device: where to put it; the fastest here by default.
        dtype: number type; by default float32, but bfloat16 on a GPU, and on a CPU that multiplies bfloat16
            faster if the model has more than 100 million parameters.
        token: Hub token for gated models.
        cache_dir: folder for unpacked `.gguf` files.
        on_progress: told the stages `convert`, `load`.

    Raises:
        ModelError: it is missing, cannot be loaded safely, does not fit in memory, or is not a decoder-only
            model whose parts CAST finds.
        HubError: the Hub cannot be reached or does not have it.
    """
    checkpoint = open_checkpoint(name, token=token, cache_dir=cache_dir, on_progress=on_progress)
    device = torch.device(device) if device is not None else pick_device()
    dtype = dtype or default_dtype(device, checkpoint.parameters)
    _check_memory(checkpoint, device, dtype)
    on_progress(Progress("load", 0, 1))
    tokenizer = _load_tokenizer(checkpoint)
    lm = LanguageModel(name, _load_weights(checkpoint, dtype).to(device), tokenizer, checkpoint.revision)
    _check_behaviour(lm)
    on_progress(Progress("load", 1, 1))
    return lm


def default_dtype(device: torch.device, parameters: int) -> torch.dtype:
    """The number type in which `load` holds a model of so many parameters."""
    if device.type == "cpu" and parameters <= _SMALL_PARAMETERS:
        return torch.float32
    return pick_dtype(device)


def _check_memory(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    needed, available = checkpoint.parameters * dtype.itemsize, available_memory(device)
    if needed > available:
        raise ModelError(
            f"{checkpoint.name} needs {needed / 2**30:.1f} GiB as {str(dtype).removeprefix('torch.')} and "
            f"{available / 2**30:.1f} GiB are free; choose a smaller model or a machine with more memory."
        )


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, config=checkpoint.config, local_files_only=True, trust_remote_code=False
        )
    except Exception as cause:  # files from elsewhere can make transformers raise anything
        raise ModelError(
            f"{checkpoint.name}: its tokenizer cannot be loaded ({first_line(cause)}); CAST needs a fast "
            "tokenizer."
        ) from cause
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{checkpoint.name} has no fast tokenizer, which CAST needs to know where each token ends in "
            "the text; choose a version with a tokenizer.json."
        )
    return tokenizer


def _load_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with ONE_AT_A_TIME, _quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as cause:  # files from elsewhere can make transformers raise anything
        raise ModelError(
            f"{checkpoint.name} cannot be loaded ({first_line(cause)}); fetch or save it again."
        ) from cause
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.name} lacks {len(missing)} of its weights, first {missing[0]}; fetch or save it "
            "again."
        )
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal: progress is told by `on_progress`."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


@torch.no_grad()
def _check_behaviour(lm: LanguageModel) -> None:
    """Hold the model to what CAST takes for granted, on two sequences that differ in their last token.

    Raises:
        ModelError: a later token changes an earlier prediction (an encoder), or the decoder and head that
            `Architecture` found do not reproduce the model's own logits.
    """
    ids = torch.arange(8, device=lm.device).repeat(2, 1) % lm.vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % lm.vocabulary
    logits = lm.model(input_ids=ids, use_cache=False).logits
    tolerance = 0.02 * logits.abs().max().clamp_min(1e-6)
    if (logits[0, :-1] - logits[1, :-1]).abs().max() > tolerance:
        raise ModelError(
            f"{lm.name} reads ahead, so it is an encoder; choose a model that writes from left to right."
        )
    normed = lm.architecture.decoder(input_ids=ids, use_cache=False).last_hidden_state
    if (lm.architecture.unembed(normed) - logits).abs().max() > tolerance:
        raise ModelError(
            f"The head of {lm.name} ({lm.family}) works in a way that CAST does not know; choose another."
        )
