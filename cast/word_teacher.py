"""What a target with a translated adapter shall say: the adapted source's words, in the target's tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cast.adapters import Lora
from cast.corpus import Passage
from cast.language_model import rows_in_cache
from cast.models import LanguageModel, TokenBatch
from cast.recipes import TranslationConfig
from cast.wording import Places, Reading, WordedRunner

# Share of the positions that are looked at which go to those where the LoRA moves most.
_MOVED_MOST = 0.75
# As many times more positions than have logits at once are told of long answers. Over a vocabulary of 262,144
# their logits are half of the work of a step.
_TOLD_MOST = 8
# Tokens of a distribution that are told apart. The rest counts as one, so that what is wanted of many texts
# can be kept; of prose the rest is a few hundredths, behind an answer nothing.
_TOLD_APART = 256
# Of a greedy answer, most that the very word that follows weighs, beside all that the source might have said.
# Above a half, so that it comes before whatever else the target takes for likelier.
_ANSWERED = 0.6
# Logit of what cannot happen.
_NEVER = -1e30


@dataclass(frozen=True)
class Wanted:
    """K next-token distributions, each by its likeliest k tokens and what is left for all others.

    Attributes:
        ids: int32 [K, k].
        log_probs: float32 [K, k + 1], that of all others last.
    """

    ids: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, log_probs: Tensor) -> "Wanted":
        """From whole log-probabilities [K, V_t]."""
        ids = log_probs.topk(min(_TOLD_APART, log_probs.shape[-1]), dim=-1).indices
        return cls(ids.int(), _folded(log_probs, ids))

    @classmethod
    def joined(cls, parts: Sequence["Wanted"]) -> "Wanted":
        """Several behind each other."""
        ids, log_probs = ([getattr(part, side) for part in parts] for side in ("ids", "log_probs"))
        return cls(torch.cat(ids), torch.cat(log_probs))

    def missing(self, logits: Tensor) -> Tensor:
        """KL(wanted ‖ said) [K] in nats, of logits [K, V_t]: never above that of the whole distributions."""
        said = _folded(logits, self.ids.long())
        return torch.nn.functional.kl_div(said, self.log_probs, log_target=True, reduction="none").sum(-1)


def _folded(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [K, k + 1] of some tokens and of all others together, from logits [K, V_t]."""
    named, others = _Fold.apply(logits, ids)
    return torch.cat([named, others], -1).log_softmax(-1)


class _Fold(torch.autograd.Function):
    """Logits [K, k] of some tokens, and that [K, 1] of all others together, both float32.

    Written out because what is as wide as a vocabulary takes most of a step: a few rows at a time stay in the
    processor's cache, and backwards the others' logits are read once, where PyTorch's own steps (scatter,
    logsumexp, gather) pass over all of them a dozen times.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        others = torch.cat(
            [
                logits[at].float().scatter(-1, ids[at], _NEVER).logsumexp(-1, keepdim=True)
                for at in rows_in_cache(*logits.shape)
            ]
        )
        ctx.save_for_backward(logits, ids, others)
        return logits.gather(-1, ids).float(), others

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (logits, ids, others), (by_named, by_others) = ctx.saved_tensors, grads
        result = torch.empty_like(logits)
        for at in rows_in_cache(*logits.shape):
            shares = (logits[at].float() - others[at]).exp_()
            result[at] = shares.mul_(by_others[at]).scatter_(-1, ids[at], by_named[at])
        return result, None


@dataclass(frozen=True)
class Told:
    """One batch of text, and what shall be said behind K of its positions."""

    tokens: TokenBatch
    rows: Tensor
    positions: Tensor
    """int64 [K] each."""
    weights: Tensor
    """float32 [K], how much each counts; their sum is the number of the batch's positions."""
    answering: Tensor
    """bool [K], which of them speak an answer, of those that end and of which no position is left out; none
    where answers are draws."""
    wanted: Wanted

    def missing(self, logits: Tensor) -> Tensor:
        """KL(wanted ‖ said) in nats a position, of logits [K, V_t] at the K positions."""
        return self.mean(self.wanted.missing(logits))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the batch's positions of what there is [K] at the K positions."""
        return values @ self.weights / self.weights.sum()

    def answers_said(self, likeliest: Tensor) -> list[bool]:
        """For each answer whether at all of its positions the likeliest token, of [K], is the one wanted."""
        right = (likeliest == self.wanted.ids[:, 0]).cpu()
        rows = self.rows.cpu()[self.answering]
        return [bool(right[self.answering][rows == row].all()) for row in rows.unique()]


class WordTeacher:
    """Next-token distributions of the hosted source (`cast.wording`) on texts.

    Args:
        source: the adapter's model.
        target: the model that shall learn them.
        lora: the adapter.
        config: `max_length`, at which a text is cut, in tokens of the target; `seed`, of the positions that
            are looked at where there are too many; and `answer_share`: of a batch's weight, what falls on
            answers, where it holds some. A label is one token behind a whole prompt, and what an adapter does
            to a prompt is hardly ever what it is for.
        strength: factor on what the adapter changes.
        drawn: whether answers are draws. What follows in a greedy answer is what the source is likeliest to
            say, and tells how a word goes on of which it says the beginning; what follows in a draw tells of
            the draw.
    """

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        lora: Lora,
        config: TranslationConfig,
        *,
        strength: float = 1.0,
        drawn: bool = False,
    ) -> None:
        self.target, self._config, self._drawn = target, config, drawn
        # Answers are written at strength 1; at another the source would say others.
        self._as_answered = not drawn and strength == 1
        self._runner = WordedRunner(source, lora, target, strength)
        self._random = torch.Generator().manual_seed(config.seed)

    def tell(self, passages: Sequence[Passage]) -> Told:
        """What shall be said behind every token of the texts, or behind those that tell most of it."""
        tokens = self.target.encode(
            [passage.text for passage in passages], max_length=self._config.max_length
        )
        reading = self._runner.reading(tokens.texts)
        rows, positions = tokens.attention_mask.bool().cpu().nonzero(as_tuple=True)
        starts = [len(passage.text) + 1 if passage.answer is None else passage.answer for passage in passages]
        answering = tokens.ends[rows, positions] >= torch.tensor(starts)[rows]
        moved = _moved(reading, tokens, rows, positions)
        chosen, weights = self._chosen(torch.where(answering, 2.0, moved), self._budget(answering))
        weights *= self._importance(answering)[chosen]
        whole = _all_chosen(rows, answering, chosen)
        rows, positions, answering = rows[chosen], positions[chosen], answering[chosen]
        states = self._runner.states(tokens)
        wanted = Wanted.joined(
            [
                self._wanted(reading, tokens, states, *part)
                for part in self.target.portions(rows, positions, answering)
            ]
        )
        over = torch.isin(wanted.ids[:, 0].cpu(), torch.tensor(sorted(self.target.eos_ids)))
        whole &= _at_last(rows, positions, over)[rows] & (not self._drawn)
        return Told(tokens, rows, positions, weights.to(states.device), whole, wanted)

    def _wanted(
        self,
        reading: Reading,
        tokens: TokenBatch,
        states: Tensor,
        rows: Tensor,
        positions: Tensor,
        answering: Tensor,
    ) -> Wanted:
        """What shall be said behind a few positions, of which some speak an answer."""
        logits = self._runner.logits_beside(reading, tokens, states, rows, positions, alone=self._drawn)
        log_probs = logits.log_softmax(-1)
        if self._as_answered:
            log_probs = _answered(log_probs, tokens, rows, positions, answering)
        return Wanted.of(log_probs)

    def missing(self, told: Told, last: Tensor) -> Tensor:
        """KL(wanted ‖ said) in nats a position, of the target's last residuals [B, n, d_t].

        Where the vocabulary is large, some positions at a time, and once more for the gradient.
        """
        states, wanted = last[told.rows, told.positions], told.wanted
        parts = self.target.by_portions(self._missing, states, wanted.ids, wanted.log_probs)
        return told.mean(torch.cat(parts))

    def _missing(self, states: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
        """`Wanted.missing` [K] of last residuals [K, d_t]."""
        return Wanted(ids, log_probs).missing(self.target.architecture.logits(states))

    @torch.no_grad()
    def answers_said(self, told: Told, last: Tensor) -> list[bool]:
        """`Told.answers_said` of the target's last residuals [B, n, d_t]."""
        if not told.answering.any():
            return []
        likeliest = told.wanted.ids.new_full((len(told.rows),), -1)
        speaking = told.answering.nonzero()[:, 0].to(likeliest.device)
        states = last[told.rows, told.positions][speaking]
        for at, part in self.target.portions(speaking, states):
            likeliest[at] = self.target.architecture.logits(part).argmax(-1).to(likeliest.dtype)
        return told.answers_said(likeliest)

    def _importance(self, answering: Tensor) -> Tensor:
        """How much each of N positions counts, from whether it speaks an answer; the mean is 1."""
        share = float(answering.float().mean())
        if share in (0.0, 1.0):
            return torch.ones(len(answering))
        wanted = self._config.answer_share
        return torch.where(answering, wanted / share, (1 - wanted) / (1 - share))

    def _budget(self, answering: Tensor) -> int:
        """At how many of N positions a batch is told: where its answers are long, at more of them."""
        at_once, needed = self.target.positions_at_once, math.ceil(int(answering.sum()) / _MOVED_MOST)
        return max(at_once, min(needed, _TOLD_MOST * at_once))

    def _chosen(self, moved: Tensor, budget: int) -> tuple[Tensor, Tensor]:
        """Of N positions those that are told, and for how many each stands.

        Where most mass is moved every position is taken; of the others a random few stand for all. So the
        mean over the chosen ones is that over all, with little of the noise of an even draw: a label is one
        token of a whole prompt.
        """
        count = len(moved)
        if count <= budget:
            return torch.arange(count), torch.ones(count)
        most = round(_MOVED_MOST * budget)
        # Of equals, such as all that speak answers, a random choice: not those of the first texts.
        mixed = torch.randperm(count, generator=self._random)
        order = mixed[moved[mixed].argsort(descending=True, stable=True)]
        others = order[most:][torch.randperm(count - most, generator=self._random)[: budget - most]]
        chosen = torch.cat([order[:most], others])
        weights = torch.ones(len(chosen))
        weights[most:] = (count - most) / len(others)
        return chosen, weights


def _answered(
    log_probs: Tensor, tokens: TokenBatch, rows: Tensor, positions: Tensor, answering: Tensor
) -> Tensor:
    """Log-probabilities [K, V_t] with what follows in the text made likelier at the positions that answer.

    As in distillation of sequences beside that of words (Kim and Rush, arXiv 1606.07947): a target that
    learns a little wrong how unsure the source is of what it says says something else. The word weighs
    λ·(1 - min / max), of its probability and of that of the likeliest other: nothing where they are level,
    for there, as of two labels, the source's doubt tells more than its choice; most where either is far
    ahead, the other where the target would cut the text in other pieces.
    """
    following = (positions + 1).clamp_max(tokens.input_ids.shape[1] - 1)
    ends = tokens.attention_mask.cpu()[rows, following] == 0
    at = (answering & ~ends & (following > positions)).nonzero()[:, 0]
    words = tokens.input_ids.cpu()[rows[at], following[at]].to(log_probs.device)[:, None]
    at = at.to(log_probs.device)
    said = log_probs[at]
    chance = said.gather(1, words)
    rival = said.scatter(1, words, -torch.inf).amax(1, keepdim=True)
    weight = _ANSWERED * -torch.expm1(-(chance - rival).abs())
    answered = said + torch.log1p(-weight)
    answered.scatter_(1, words, torch.logaddexp(answered.gather(1, words), weight.log()))
    return log_probs.index_copy(0, at, answered)


def _all_chosen(rows: Tensor, answering: Tensor, chosen: Tensor) -> Tensor:
    """Which of the chosen positions [K] speak an answer that was chosen whole, from the rows [N] of all."""
    every, held = (
        torch.bincount(rows[at], minlength=int(rows.max()) + 1)
        for at in (answering, chosen[answering[chosen]])
    )
    return answering[chosen] & (every == held)[rows[chosen]]


def _at_last(rows: Tensor, positions: Tensor, what: Tensor) -> Tensor:
    """What [K] says at the last position of each row, bool [R]."""
    size = int(rows.max()) + 1
    last = torch.zeros(size, dtype=torch.long).scatter_reduce(0, rows, positions, "amax")
    at = positions == last[rows]
    return torch.zeros(size, dtype=torch.bool).index_put((rows[at],), what[at])


def _moved(reading: Reading, tokens: TokenBatch, rows: Tensor, positions: Tensor) -> Tensor:
    """The mass [K] that the LoRA moves at positions of the target."""
    places = Places.of(tokens, reading.tokens, rows, positions)
    moved = torch.zeros(len(rows))
    moved[places.entry] = reading.moved[places.row, places.position]
    return moved
