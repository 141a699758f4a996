"""A *runner* is a model with whatever acts on it, behind one interface: logits of a batch, and a session."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from cast.adapters import Lora, applied
from cast.errors import RequestError
from cast.models import LanguageModel, TokenBatch


class Session(Protocol):
    """One growing text; keeps its own caches."""

    def next_logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits [V] (float32) of the token after `token_ids`, the full ids so far with BOS.

        Ids may differ from the last call anywhere: what is cached is used up to the first difference.
        """


class Runner(Protocol):
    """What generation and evaluation know of a model."""

    @property
    def lm(self) -> LanguageModel:
        """The model whose tokens go in and out."""

    def logits(
        self, batch: TokenBatch, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced next-token logits, float32.

        Args:
            batch: B texts of n tokens.
            rows: [K] rows of the batch, together with `positions`.
            positions: [K] positions; logits of the token *after* each.

        Returns:
            [B, n, V], or [K, V] where rows and positions are given: the head then runs only there.
        """

    def session(self) -> Session:
        """A fresh session."""


class PlainRunner:
    """The model itself, or with a LoRA."""

    def __init__(self, lm: LanguageModel, lora: Lora | None = None, strength: float = 1.0) -> None:
        self.lm = lm
        self.lora = lora
        self.strength = strength

    @torch.no_grad()
    def logits(
        self, batch: TokenBatch, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """See `Runner.logits`.

        Raises:
            RequestError: only one of rows and positions is given.
        """
        if (rows is None) != (positions is None):
            raise RequestError("Rows and positions name places together; give both or neither.")
        normed = self.normed(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        if rows is not None and positions is not None:
            normed = normed[rows.to(normed.device), positions.to(normed.device)]
        return self.lm.architecture.unembed(normed).float()

    def normed(self, input_ids: Tensor, **arguments: object) -> Tensor:
        """What the head reads [B, n, d] of ids [B, n], the LoRA acting; `arguments` go to the decoder."""
        with self.lm.lock:
            if self.lora is None:
                return self.lm.architecture.decoder(input_ids=input_ids, **arguments).last_hidden_state
            with applied(self.lm, self.lora, self.strength):
                return self.lm.architecture.decoder(input_ids=input_ids, **arguments).last_hidden_state

    def session(self) -> "PlainSession":
        """A fresh session with an empty cache."""
        return PlainSession(self)


class PlainSession:
    """Key-value cache of one text."""

    def __init__(self, runner: PlainRunner) -> None:
        self._runner = runner
        self._ids: list[int] = []
        self._cache = DynamicCache()

    @torch.no_grad()
    def next_logits(self, token_ids: Sequence[int]) -> Tensor:
        """See `Session.next_logits`.

        Raises:
            RequestError: no ids, or more than the model's context holds.
        """
        ids = list(token_ids)
        lm = self._runner.lm
        if not ids:
            raise RequestError("There is no token to go on from; begin with the BOS token.")
        if lm.context_length is not None and len(ids) > lm.context_length:
            raise RequestError(
                f"{lm.name} holds {lm.context_length} tokens and the text has {len(ids)}; shorten it."
            )
        kept = self._shared_prefix(ids)
        self._cache.crop(kept - len(self._ids))  # minus how many tokens shall go
        new = torch.tensor([ids[kept:]], device=lm.device)
        try:
            normed = self._runner.normed(new, past_key_values=self._cache, use_cache=True)
        except BaseException:
            # Some blocks have the new tokens by now and others do not.
            self._ids, self._cache = [], DynamicCache()
            raise
        self._ids = ids
        return lm.architecture.unembed(normed[0, -1]).float()

    def _shared_prefix(self, ids: list[int]) -> int:
        """Cached tokens that still hold; the last token always runs again, since its logits are asked for."""
        shared = 0
        for old, new in zip(self._ids, ids[:-1], strict=False):
            if old != new:
                break
            shared += 1
        return shared
