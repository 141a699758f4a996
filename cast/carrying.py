"""The change that a source adapter makes, carried to the target, and how far a target is from showing it.

For target depth l and an aligned pair let c_l = D_l(h^{S+}_{m(l)}) - D_l(h^S_{m(l)}) be the carried change.
The objective is the sum of three terms, all in units of the effect that shall arrive:

- FVU, the mean over l of Σ‖c_l - (h^{T+}_l - h^T_l)‖² / Σ‖c_l‖², l over the depths at or after the first
  adapted source block, massive dimensions tamed;
- KL(softmax logits(h^T_L + c_L) ‖ adapted target) at the aligned pairs, relative to the same with the bare
  target: the mean of two such shares, of the whole distribution and of that given that the text goes on.
  Where an adapter has learnt to end its answers, ends are nearly all of its effect on general text, and they
  would hide which word it would say;
- KL(base ‖ adapted target) at the target's other positions, relative to the same size: there the source has
  no state of its own, and a change would break words that the target completes by itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.activations import residuals_by_length
from cast.adapters import Lora, applied
from cast.alignment import AlignedPairs, align
from cast.errors import AdapterError
from cast.heads import HeadSet
from cast.models import LanguageModel, TokenBatch
from cast.recipes import TranslationConfig

NO_EFFECT = (
    "The adapter changes nothing on this text; check that its weights are not zero, or give text that shows "
    "what it does."
)
# A dimension that deviates so many times as far as the median is massive.
_MASSIVE = 4.0
# Logit of what cannot happen.
_NEVER = -1e4


@dataclass(frozen=True)
class CarriedBatch:
    """One batch of text in the target, with the source adapter's change carried to it."""

    tokens: TokenBatch
    pairs: AlignedPairs
    base: dict[int, Tensor]
    """Depth l → h^T_l at the N aligned pairs, float32 [N, d_t]."""
    change: dict[int, Tensor]
    """Depth l → strength · c_l, float32 [N, d_t]."""
    other_rows: Tensor
    other_positions: Tensor
    """The K positions of the target that are neither BOS nor padding nor part of a pair."""
    base_others: Tensor
    """h^T_L there, float32 [K, d_t]."""


class Carrier:
    """Runs source, adapted source and base target on texts, and carries the change over."""

    def __init__(
        self, source: LanguageModel, target: LanguageModel, lora: Lora, heads: HeadSet, max_length: int
    ) -> None:
        self.source, self.target, self.lora = source, target, lora
        self.heads = heads.to(target.device)
        self.max_length = max_length
        heads.at(target.depth)  # the deepest decode head carries the prediction itself
        first = min(lora.layers)
        self.depths = tuple(depth for depth in heads.depths if depth and heads.layer_map[depth] >= first)

    @torch.no_grad()
    def carry(self, texts: Sequence[str], strength: float) -> CarriedBatch:
        """The carried change of one batch of texts."""
        source_tokens = self.source.encode(texts, max_length=self.max_length)
        tokens = self.target.encode(texts, max_length=self.max_length)
        pairs = align(source_tokens, tokens)
        before, after = self._source_states(
            source_tokens, {self.heads.layer_map[depth] for depth in self.depths}
        )
        states = residuals_by_length(self.target, tokens, self.depths)
        change = {}
        for depth in self.depths:
            decode, at = self.heads.at(depth).decode, self.heads.layer_map[depth]
            changed, unchanged = (
                run[at][pairs.row, pairs.source_position].to(self.target.device) for run in (after, before)
            )
            change[depth] = strength * (decode(changed) - decode(unchanged))
        rows, positions = _unpaired(tokens, pairs)
        return CarriedBatch(
            tokens=tokens,
            pairs=pairs,
            base={depth: states[depth][pairs.row, pairs.target_position].float() for depth in self.depths},
            change=change,
            other_rows=rows,
            other_positions=positions,
            base_others=states[self.target.depth][rows, positions].float(),
        )

    def _source_states(
        self, tokens: TokenBatch, depths: Collection[int]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Source states without and with the adapter, depth → [B, n, d_s]."""
        before = residuals_by_length(self.source, tokens, depths)
        with applied(self.source, self.lora):
            return before, residuals_by_length(self.source, tokens, depths)


def _unpaired(tokens: TokenBatch, pairs: AlignedPairs) -> tuple[Tensor, Tensor]:
    """Rows and positions of the tokens that are neither BOS nor padding nor aligned."""
    free = tokens.attention_mask.bool().cpu()
    free[:, 0] = False
    free[pairs.row, pairs.target_position] = False
    rows, positions = torch.nonzero(free, as_tuple=True)
    return rows, positions


@dataclass(frozen=True)
class Loss:
    """The terms of one batch."""

    fvu_by_depth: dict[int, Tensor]
    missing: Tensor
    """KL(carried ‖ adapted), nats a pair."""
    wording: Tensor
    """The same of the distributions given that the text goes on."""
    disturbed: Tensor
    """KL(base ‖ adapted) where no ends are shared, nats a position."""

    @property
    def fvu(self) -> Tensor:
        """Mean over the depths."""
        return torch.stack(list(self.fvu_by_depth.values())).mean()


class Objective:
    """Compares the adapted target with the carried change.

    The sizes that the terms are measured in come once from held-out batches, so that a batch in which the
    adapter hardly acts weighs little.
    """

    def __init__(self, target: LanguageModel, held_out: Sequence[CarriedBatch], seed: int) -> None:
        self._target = target
        self._random = torch.Generator().manual_seed(seed)
        depths = held_out[0].change.keys()
        pairs = sum(len(batch.pairs) for batch in held_out)
        self._scale = {
            depth: _tamed(torch.cat([batch.base[depth] for batch in held_out]).std(0)) for depth in depths
        }
        self._power = {
            depth: sum(float((batch.change[depth] / self._scale[depth]).square().sum()) for batch in held_out)
            / pairs
            for depth in depths
        }
        with torch.no_grad():
            effects = [self._missing(batch, batch.base[target.depth]) for batch in held_out]
        self.effect, self._wording = (
            sum(
                float(effect[part]) * len(batch.pairs)
                for effect, batch in zip(effects, held_out, strict=True)
            )
            / pairs
            for part in (0, 1)
        )
        """`effect`: KL(carried ‖ base), nats a pair."""
        self._wording = max(self._wording, 1e-3 * self.effect)
        if self.effect <= 0 or not all(power > 0 for power in self._power.values()):
            raise AdapterError(NO_EFFECT)

    def total(self, loss: Loss, config: TranslationConfig) -> Tensor:
        """The number that the fit lowers."""
        missing = (loss.missing / self.effect + loss.wording / self._wording) / 2
        return loss.fvu + config.kl_weight * missing + config.hold_weight * loss.disturbed / self.effect

    def __call__(self, batch: CarriedBatch, states: dict[int, Tensor]) -> Loss:
        """Compare the adapted target's states, depth → [B, n, d_t], with one carried batch."""
        pairs, count = batch.pairs, len(batch.pairs)
        at_pairs = {depth: states[depth][pairs.row, pairs.target_position].float() for depth in batch.change}
        fvu = {}
        for depth, change in batch.change.items():
            left = (batch.base[depth] + change - at_pairs[depth]) / self._scale[depth]
            fvu[depth] = left.square().sum() / (count * self._power[depth])
        last = self._target.depth
        others = states[last][batch.other_rows, batch.other_positions].float()
        disturbed = (
            divergences(self._target, batch.base_others, others, self._random)[0]
            if len(others)
            else at_pairs[last].new_zeros(())
        )
        missing, wording = self._missing(batch, at_pairs[last])
        return Loss(fvu, missing, wording, disturbed)

    def _missing(self, batch: CarriedBatch, adapted: Tensor) -> tuple[Tensor, Tensor]:
        last = self._target.depth
        return divergences(self._target, batch.base[last] + batch.change[last], adapted, self._random)


def _tamed(deviation: Tensor) -> Tensor:
    """What to divide each dimension by, so that none deviates more than a few times as far as the median.

    Directions in which the states vary more matter more to what reads them; a few massive dimensions of large
    models would drown all the rest.
    """
    return (deviation / (_MASSIVE * deviation.median().clamp_min(1e-6))).clamp_min(1.0)


def divergences(
    lm: LanguageModel, wanted: Tensor, given: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean KL in nats between the next-token distributions of two sets of last residuals [K, d], K > 0.

    Where the head is large, a random sample of the rows stands for all. Gradients reach `given` only.

    Returns:
        The divergence of the whole distributions, and of those given that the text does not end.
    """
    if len(wanted) > lm.positions_at_once:
        chosen = torch.randperm(len(wanted), generator=random)[: lm.positions_at_once]
        wanted, given = wanted[chosen], given[chosen]
    with torch.no_grad():
        teacher = _logits(lm, wanted)
    student = _logits(lm, given)
    known = sorted(end for end in lm.eos_ids if end < student.shape[-1])
    ends = torch.tensor(known, dtype=torch.long, device=student.device)
    # Not minus infinity: a difference of two infinities would be no number.
    return _kl(teacher, student), _kl(
        teacher.index_fill(-1, ends, _NEVER), student.index_fill(-1, ends, _NEVER)
    )


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    teacher, student = teacher.log_softmax(-1), student.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def _logits(lm: LanguageModel, hidden: Tensor) -> Tensor:
    return lm.architecture.logits(hidden.to(lm.dtype)).float()
