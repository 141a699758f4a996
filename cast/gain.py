"""How strong a carried change must be: as strong in words as the adapter is in its own model.

Maps that are fitted for a whole pair do not know how much of one adapter's change they lose. What it does to
the next-token distribution on general text can be measured on both sides, in nats at the aligned pairs, and
the factor found at which the two are equal.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Lora, applied
from cast.alignment import NO_PAIRS, align
from cast.carrying import crossing, divergences
from cast.errors import CorpusError
from cast.models import LanguageModel, TokenBatch
from cast.recipes import TranslationConfig

# A divergence grows with about the square of a change, so these are near enough for a line between two.
_GAINS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


@torch.no_grad()
def matched_gain(
    source: LanguageModel,
    lora: Lora,
    target: LanguageModel,
    carried: Lora,
    texts: Sequence[str],
    config: TranslationConfig | None = None,
) -> float:
    """The factor at which a carried LoRA moves the target as far as the adapter moves the source.

    Both are measured as KL(adapted ‖ base) of the next-token distribution at aligned pairs, where both models
    have read the same text and predict its continuation.

    Args:
        source: the adapter's model.
        lora: the adapter.
        target: the model that the carried LoRA is for.
        carried: that LoRA.
        texts: a batch of general text.
        config: `max_length` of a row, and `seed` of the positions that are looked at where the vocabulary
            is large.

    Raises:
        CorpusError: no token of the two models ends at the same place of the text.
    """
    config = config or TranslationConfig()
    at_source, at_target = (lm.encode(texts, max_length=config.max_length) for lm in (source, target))
    pairs = align(at_source, at_target)
    if not len(pairs):
        raise CorpusError(NO_PAIRS)
    wanted = _effect(source, lora, at_source, pairs.row, pairs.source_position, config.seed)(1.0)
    effect = _effect(target, carried, at_target, pairs.row, pairs.target_position, config.seed)
    return crossing(_GAINS, effect, wanted)


def _effect(
    lm: LanguageModel, lora: Lora, tokens: TokenBatch, rows: Tensor, positions: Tensor, seed: int
) -> Callable[[float], float]:
    """Nats at chosen positions by which a LoRA moves its model, as a function of its strength."""

    def last(strength: float) -> Tensor:
        with applied(lm, lora, strength):
            return residuals(lm, tokens, [lm.depth])[lm.depth][rows, positions]

    base = last(0.0)
    # The same positions at every strength, or their noise would hide the difference.
    return lambda strength: float(
        divergences(lm, last(strength), base, torch.Generator().manual_seed(seed))[0]
    )
