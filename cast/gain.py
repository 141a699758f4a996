"""How strong a carried change must be: as strong in words as the adapter is in its own model.

Maps that are fitted for a whole pair do not know how much of one adapter's change they lose. What it does to
the next-token distribution on general text can be measured on both sides, in nats at the aligned pairs, and
the factor found at which the two are equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.adapters import Lora
from cast.alignment import NO_PAIRS, align
from cast.errors import CorpusError
from cast.models import LanguageModel, TokenBatch
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner, Runner

AtStrength = Callable[[float], Runner]
"""A model with a change acting at a strength; 0 is the model itself."""
# A divergence grows with about the square of a change, so these are near enough for a line between two.
_GAINS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


@torch.no_grad()
def matched_gain(
    source: LanguageModel,
    lora: Lora,
    carried: AtStrength,
    texts: Sequence[str],
    config: TranslationConfig | None = None,
) -> float:
    """The factor at which a carried change moves the target as far as the adapter moves the source.

    Both are measured as KL(adapted ‖ base) of the next-token distribution at aligned pairs, where both models
    have read the same text and predict its continuation.

    Args:
        source: the adapter's model.
        lora: the adapter.
        carried: the target with what was carried to it.
        texts: general text, which is read in batches.
        config: `batch_size`, `max_length` of a row, and `seed` of the positions that are looked at where the
            vocabulary is large.

    Raises:
        CorpusError: no token of the two models ends at the same place of the text.
    """
    config = config or TranslationConfig()
    target = carried(0.0).lm
    random = torch.Generator().manual_seed(config.seed)
    sides: tuple[list[_Looked], list[_Looked]] = ([], [])
    for start in range(0, len(texts), config.batch_size):
        some = texts[start : start + config.batch_size]
        tokens = [lm.encode(some, max_length=config.max_length) for lm in (source, target)]
        pairs = align(*tokens)
        if not len(pairs):
            continue
        for side, lm, batch, positions in zip(
            sides, (source, target), tokens, (pairs.source_position, pairs.target_position), strict=True
        ):
            chosen = torch.randperm(len(pairs), generator=random)[: lm.positions_at_once]
            side.append(_Looked(batch, pairs.row[chosen], positions[chosen], len(pairs)))
    if not sides[0]:
        raise CorpusError(NO_PAIRS)
    wanted = _effect(lambda strength: PlainRunner(source, lora, strength), sides[0])(1.0)
    return crossing(_GAINS, _effect(carried, sides[1]), wanted)


@dataclass(frozen=True)
class _Looked:
    """K places of a batch that stand for all of its aligned pairs."""

    batch: TokenBatch
    rows: Tensor
    positions: Tensor
    pairs: int

    def log_probs(self, runner: Runner) -> Tensor:
        """The next-token distributions there, [K, V]."""
        return runner.logits(self.batch, self.rows, self.positions).log_softmax(-1)


def _effect(at: AtStrength, looked: Sequence[_Looked]) -> Callable[[float], float]:
    """Nats a pair by which a change moves its model, as a function of its strength."""
    base = [some.log_probs(at(0.0)) for some in looked]
    count = sum(some.pairs for some in looked)

    # The same places at every strength, or their noise would hide the difference.
    def effect(strength: float) -> float:
        runner, total = at(strength), 0.0
        for some, before in zip(looked, base, strict=True):
            after = some.log_probs(runner)
            total += some.pairs * float((after.exp() * (after - before)).sum(-1).mean())
        return total / count

    return effect


def crossing(places: Sequence[float], value: Callable[[float], float], wanted: float) -> float:
    """Where a rising function reaches a value, by a line between two of the given places; else the last.

    It is computed no further than needed.
    """
    below: tuple[float, float] | None = None
    for place in places:
        found = value(place)
        if found >= wanted:
            if below is None:
                return place
            return below[0] + (wanted - below[1]) / max(found - below[1], 1e-12) * (place - below[0])
        below = place, found
    return places[-1]
