"""A loaded language model: its parts, its tokens, and the fingerprint that names it."""

import hashlib
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cast.architecture import Architecture
from cast.errors import ModelError

_PROBE_TEXT = "The 3 quick brown foxes, naïve — don't jump\n\tover 🦊 “lazy” dogs:  x_1 = 42;"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_FINGERPRINT_VALUES = 32
SMALL = 30_000_000
"""Parameters below which a model is small."""
# Logits held at once, in numbers.
_LOGITS_AT_ONCE = 2**24
# Logits that are worked on together, in numbers: 4 MiB stay in a processor's cache.
_IN_CACHE = 2**20
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
    """int64 [B, n], on the CPU: character index in the text just after each token; -1 for BOS, other special
    tokens and padding. A token that stops inside a character, as a byte may, has that character's end too:
    of several tokens with one end only the last has written it (`alignment.positions_by_end`)."""

    def take(self, rows: Sequence[int]) -> "TokenBatch":
        """The given rows in their order, no longer than the longest of them."""
        chosen = list(rows)
        mask = self.attention_mask[chosen]
        length = int(mask.sum(1).amax()) if chosen else 0
        return TokenBatch(
            texts=tuple(self.texts[row] for row in chosen),
            input_ids=self.input_ids[chosen, :length],
            attention_mask=mask[:, :length],
            ends=self.ends[chosen, :length],
        )


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
    """Held by runners while their hooks act, so that threads do not see each other's adapters."""

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

    @property
    def positions_at_once(self) -> int:
        """At how many positions logits are held together: 64 for a head of 262,144 rows, 64 MiB."""
        return max(1, _LOGITS_AT_ONCE // self.vocabulary)

    def portions(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Tensors [N, …] side by side, cut along N to what may have logits at once."""
        return zip(*(side.split(self.positions_at_once) for side in rows), strict=True)

    def by_portions(self, work: Callable[..., Tensor], *rows: Tensor) -> list[Tensor]:
        """What is made of each of the `portions`; where there are several, once more for the gradient."""
        if len(rows[0]) <= self.positions_at_once:
            return [work(*rows)]
        return [checkpoint(work, *part, use_reentrant=False) for part in self.portions(*rows)]

    @property
    def is_small(self) -> bool:
        """Whether it has a few million parameters: such models bear, and need, other fits."""
        return bool(self.model.num_parameters() < SMALL)

    @cached_property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for, where its configuration says so."""
        length = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(length) if length else None

    def holds(self, texts: Sequence[str], beside: int = 1) -> list[bool]:
        """Whether each text leaves room for so many tokens more, one at least, in what the model can read."""
        # The BOS is one of them.
        room = (self.context_length or math.inf) - 1 - beside
        encoded = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        return [len(row.ids) <= room for row in encoded]

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
    def token_texts(self) -> tuple[str, ...]:
        """The characters that each token stands for inside a text; none for special tokens and bare bytes."""
        # Decoded behind a letter, a token shows its leading space, whichever way its tokenizer writes spaces.
        anchor = int(self.encode(["a"]).input_ids[0, -1])
        pairs = [[anchor, token] for token in range(min(self.vocabulary, len(self.tokenizer)))]
        decoded = self.tokenizer.batch_decode(
            pairs, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        start = len(self.decode([anchor]))
        pieces = self.tokenizer.convert_ids_to_tokens(list(range(len(pairs))))
        bare = (
            _INCOMPLETE in text or _BYTE.fullmatch(piece or "")
            for text, piece in zip(decoded, pieces, strict=True)
        )
        return tuple("" if is_bare else text[start:] for text, is_bare in zip(decoded, bare, strict=True))

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer without its post-processor, which in byte-level families cuts spaces off offsets."""
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
        """16 hex digits that name weights and tokenizer, whatever device and number type hold them.

        Hashes a few configuration entries, every weight's name, shape and 32 evenly spread values (rounded to
        bfloat16, so that a float32 and a bfloat16 copy agree), and the ids of a probe text.
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
            max_length: most tokens of a row, BOS counted; the rest is cut off, and with it the first tokens
                of a character that would be cut in two. The model's own limit always holds.
        """
        ids, ends = self.tokens(texts, max_length)
        return TokenBatch(
            texts=tuple(texts),
            input_ids=self._padded(ids, self._pad_id).to(self.device),
            attention_mask=self._padded([[1] * len(row) for row in ids], 0).to(self.device),
            ends=self._padded(ends, -1),
        )

    def tokens(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of B texts and the characters at which they end, as `encode` has them, without padding."""
        limit = min((bound for bound in (max_length, self.context_length) if bound), default=None)
        cut = None if limit is None else max(limit - 1, 0)
        encoded = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        ids, ends = [], []
        for row in encoded:
            row_ends = [end for _, end in row.offsets]
            length = _between_characters(row_ends, cut)
            known = zip(row.ids[:length], row_ends, strict=False)
            ids.append([self.bos_id, *row.ids[:length]])
            ends.append([-1, *(-1 if token in self._special_ids else end for token, end in known)])
        return ids, ends

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


def by_length(texts: Sequence[str], size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of texts of like length, which have little padding: how many were before, and their indices."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    return ((start, order[start : start + size]) for start in range(0, len(order), size))


def rows_in_cache(rows: int, width: int) -> Iterator[slice]:
    """Portions of rows of so many logits each that stay in the processor's cache, a row at least."""
    size = max(1, _IN_CACHE // width)
    return (slice(start, start + size) for start in range(0, rows, size))


def _between_characters(ends: Sequence[int], cut: int | None) -> int:
    """How many of a row's tokens, at most `cut`, leave no character in two."""
    if cut is None or cut >= len(ends):
        return len(ends)
    length = cut
    while length and ends[length - 1] == ends[cut]:
        length -= 1
    return length
