"""What a target with a translated adapter shall say: the adapted source's words, in the target's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.adapters import Lora
from cast.models import LanguageModel, TokenBatch
from cast.wording import WordedRunner

# Logits held at once, in numbers: 128 MiB of float32. A head of 262,144 rows gets 128 positions a step.
_LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Told:
    """One batch of text, and what shall be said behind K of its positions."""

    tokens: TokenBatch
    rows: Tensor
    positions: Tensor
    """int64 [K] each."""
    wanted: Tensor
    """float32 [K, V_t] log-probabilities."""


class WordTeacher:
    """Next-token distributions of the hosted source (`cast.wording`) on texts.

    Args:
        source: the adapter's model.
        target: the model that shall learn them.
        lora: the adapter.
        strength: factor on what it changes.
        max_length: tokens of the target at which a text is cut.
        seed: of the positions that are looked at where there are too many.
    """

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        lora: Lora,
        *,
        strength: float,
        max_length: int,
        seed: int,
    ) -> None:
        self.target = target
        self._runner = WordedRunner(source, lora, target, strength)
        self._max_length = max_length
        self._random = torch.Generator().manual_seed(seed)

    def tell(self, texts: Sequence[str]) -> Told:
        """What shall be said behind every token of the texts, or behind a random sample of them."""
        tokens = self.target.encode(texts, max_length=self._max_length)
        rows, positions = tokens.attention_mask.bool().cpu().nonzero(as_tuple=True)
        budget = max(16, _LOGITS_AT_ONCE // self.target.vocabulary)
        if len(rows) > budget:
            chosen = torch.randperm(len(rows), generator=self._random)[:budget].sort().values
            rows, positions = rows[chosen], positions[chosen]
        wanted = self._runner.logits(tokens, rows, positions).log_softmax(-1)
        return Told(tokens, rows, positions, wanted)

    def missing(self, told: Told, last: Tensor) -> Tensor:
        """KL(wanted ‖ said) in nats a position, of the target's last residuals [B, n, d_t]."""
        said = self.target.architecture.logits(last[told.rows, told.positions]).float().log_softmax(-1)
        return torch.nn.functional.kl_div(said, told.wanted, log_target=True, reduction="batchmean")
