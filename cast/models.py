"""Language models behind one `load`: a Hub id, a local folder, a `.gguf` file or a `pocket:` name."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from cast.architecture import Architecture, Site
from cast.checkpoints import Checkpoint, open_checkpoint
from cast.devices import available_memory, pick_device, pick_dtype
from cast.errors import ModelError
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
_PROBE_TEXT = "The 3 quick brown foxes, naïve — don't jump\n\tover 🦊 “lazy” dogs:  x_1 = 42;"
_FINGERPRINT_VALUES = 32
_FINGERPRINT_CONFIG = (
    "model_type", "hidden_act", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
)  # fmt: skip


@dataclass(frozen=True)
class TokenBatch:
    """Texts as right-padded ids; row b, position 0 is a BOS."""

    texts: tuple[str, ...]
    input_ids: Tensor
    """int64 [B, n]."""
    attention_mask: Tensor
    """int64 [B, n]; 1 at tokens, 0 at padding."""
    ends: Tensor
    """int64 [B, n], on the CPU: character index in the text just after each token; several tokens may share one
    (bytes of one character). -1 for BOS, other special tokens and padding."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen decoder-only model with its fast tokenizer."""

    name: str
    """What it was asked for by: Hub id, `pocket:` name, or path."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str | None = None
    """Commit of a Hub snapshot; None for local models."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """Held by runners while their hooks act on the model, so that threads do not see each other's adapters."""

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @cached_property
    def architecture(self) -> Architecture:
        """Blocks, linear sites, norm and head."""
        return Architecture.of(self.model)

    @property
    def family(self) -> str:
        """The `model_type` of the configuration, such as `llama`."""
        return str(self.model.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and of the residual stream."""
        return self.model.dtype

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return self.architecture.width

    @property
    def depth(self) -> int:
        """Number L of decoder blocks."""
        return self.architecture.depth

    @property
    def vocabulary(self) -> int:
        """Number V of rows of the head, padding rows included."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    @cached_property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for, where its configuration says so."""
        length = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(length) if length else None

    @cached_property
    def bos_id(self) -> int:
        """Token at position 0 of every batch: the tokenizer's BOS, else the configuration's, else an EOS."""
        candidates = (
            self.tokenizer.bos_token_id,
            self.model.config.get_text_config(decoder=True).bos_token_id,
        )
        for candidate in (*candidates, *sorted(self.eos_ids)):
            if isinstance(candidate, int) and 0 <= candidate < self.vocabulary:
                return candidate
        raise ModelError(
            f"{self.name} names neither a BOS nor an EOS token; its tokenizer must define one of them."
        )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a text, as tokenizer, configuration and generation settings name them."""
        settings = (
            self.tokenizer,
            self.model.config.get_text_config(decoder=True),
            self.model.generation_config,
        )
        found: set[int] = set()
        for holder in settings:
            ids = getattr(holder, "eos_token_id", None)
            found.update(ids if isinstance(ids, list | tuple) else () if ids is None else (ids,))
        return frozenset(found)

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer without its post-processor, which byte-level families use to trim spaces off the offsets."""
        encoder = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        encoder.post_processor = None
        encoder.no_truncation()
        encoder.no_padding()
        return encoder

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        # An unknown token stands for real characters, so its end counts.
        return frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights and this tokenizer, whatever device or number type they are held in.

        Hashes a few configuration entries, every weight's name, shape and 32 evenly spread values (rounded to bfloat16,
        so that a float32 and a bfloat16 copy agree), and the ids of a probe text.
        """
        digest = hashlib.sha256()
        config = self.model.config.get_text_config(decoder=True)
        digest.update(repr([getattr(config, name, None) for name in _FINGERPRINT_CONFIG]).encode())
        for name, weight in sorted(self.model.named_parameters()):
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            flat = weight.detach().reshape(-1)
            picked = torch.linspace(
                0, flat.numel() - 1, min(_FINGERPRINT_VALUES, flat.numel()), dtype=torch.float64
            )
            values = flat[picked.round().long().to(flat.device)].to("cpu", torch.bfloat16)
            digest.update(values.view(torch.int16).numpy().tobytes())
        digest.update(repr(self._encoder.encode(_PROBE_TEXT, add_special_tokens=False).ids).encode())
        digest.update(str(len(self.tokenizer)).encode())
        return digest.hexdigest()[:16]

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> TokenBatch:
        """Tokenize texts, BOS first, padded on the right.

        Args:
            texts: B texts; an empty one becomes a lone BOS.
            max_length: most tokens of a row, BOS counted; the rest is cut off. The model's own limit always holds.
        """
        limit = min((bound for bound in (max_length, self.context_length) if bound), default=None)
        cut = None if limit is None else max(limit - 1, 0)
        encoded = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        ids = [[self.bos_id, *row.ids[:cut]] for row in encoded]
        ends = [
            [
                -1,
                *(
                    -1 if token in self._special_ids else end
                    for token, (_, end) in zip(row.ids[:cut], row.offsets, strict=False)
                ),
            ]
            for row in encoded
        ]
        return TokenBatch(
            texts=tuple(texts),
            input_ids=self._padded(ids, self._pad_id).to(self.device),
            attention_mask=self._padded([[1] * len(row) for row in ids], 0).to(self.device),
            ends=self._padded(ends, -1),
        )

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self.vocabulary else self.bos_id

    @staticmethod
    def _padded(rows: list[list[int]], value: int) -> Tensor:
        longest = max(map(len, rows), default=0)
        padded = [row + [value] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of ids [n], special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


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
    """Algorithm of the tokenizer: `BPE`, `Unigram`, `WordPiece`, …, with `byte-level` where it is."""
    weight_bytes: int
    """Bytes of the weight files: what a Hub model has to download."""


def describe(name: str, token: str | None = None) -> ModelSummary:
    """Look at a model without loading its weights.

    Raises:
        ModelError: it is not a decoder-only model with a fast tokenizer and safetensors weights.
        HubError: the Hub cannot be reached or does not have it.
    """
    checkpoint = open_checkpoint(name, token=token)
    config = checkpoint.config.get_text_config(decoder=True)
    heads = int(config.num_attention_heads)
    return ModelSummary(
        name=name,
        family=str(checkpoint.config.model_type),
        width=int(config.hidden_size),
        depth=int(config.num_hidden_layers),
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=int(config.vocab_size),
        parameters=checkpoint.parameters,
        tokenizer=_tokenizer_kind(_load_tokenizer(checkpoint)),
        weight_bytes=checkpoint.weight_bytes,
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
        dtype: number type; by default float32, but bfloat16 on a GPU, and on a CPU that multiplies bfloat16 faster if
            the model has more than 100 million parameters.
        token: Hub token for gated models.
        cache_dir: folder for unpacked `.gguf` files.
        on_progress: told the stages `convert`, `load`.

    Raises:
        ModelError: it is missing, cannot be loaded safely, does not fit in memory, or is not a decoder-only model
            whose parts CAST finds.
        HubError: the Hub cannot be reached or does not have it.
    """
    checkpoint = open_checkpoint(name, token=token, cache_dir=cache_dir, on_progress=on_progress)
    device = torch.device(device) if device is not None else pick_device()
    dtype = dtype or _default_dtype(device, checkpoint.parameters)
    _check_memory(checkpoint, device, dtype)
    on_progress(Progress("load", 0, 1))
    tokenizer = _load_tokenizer(checkpoint)
    lm = LanguageModel(name, _load_weights(checkpoint, dtype).to(device), tokenizer, checkpoint.revision)
    _check_behaviour(lm)
    on_progress(Progress("load", 1, 1))
    return lm


def _default_dtype(device: torch.device, parameters: int) -> torch.dtype:
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
            f"{checkpoint.name}: its tokenizer cannot be loaded ({_first_line(cause)}); CAST needs a fast tokenizer."
        ) from cause
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{checkpoint.name} has no fast tokenizer, which CAST needs to know where each token ends in the text; "
            "choose a version with a tokenizer.json."
        )
    return tokenizer


def _load_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with _quiet_transformers():
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
            f"{checkpoint.name} cannot be loaded ({_first_line(cause)}); fetch or save it again."
        ) from cause
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.name} lacks {len(missing)} of its weights, first {missing[0]}; fetch or save it again."
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
    """Hold the model to what the rest of CAST takes for granted, on two sequences that differ in their last token.

    Raises:
        ModelError: a later token changes an earlier prediction (an encoder), or final norm and head as `Architecture`
            found them do not reproduce the model's own logits.
    """
    ids = torch.arange(8, device=lm.device).repeat(2, 1) % lm.vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % lm.vocabulary
    output = lm.model(input_ids=ids, use_cache=False, output_hidden_states=False).logits
    normed = lm.architecture.decoder(input_ids=ids, use_cache=False).last_hidden_state
    scale = output.abs().max().clamp_min(1e-6)
    if (output[0, :-1] - output[1, :-1]).abs().max() > 0.02 * scale:
        raise ModelError(
            f"{lm.name} reads ahead, so it is an encoder; choose a model that writes from left to right."
        )
    if (lm.architecture.unembed(normed) - output).abs().max() > 0.02 * scale:
        raise ModelError(
            f"The head of {lm.name} ({lm.family}) works in a way that CAST does not know; choose another model."
        )


def _tokenizer_kind(tokenizer: PreTrainedTokenizerBase) -> str:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = str(state["model"].get("type") or "BPE")
    return f"byte-level {kind}" if '"ByteLevel"' in json.dumps(state.get("decoder")) else kind


def _first_line(cause: Exception) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0][:200].rstrip(".")
