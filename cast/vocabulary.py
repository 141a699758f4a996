"""What one model's next-token distribution says in the tokens of another.

Two vocabularies cut text differently, but both are text. With p and q a source's next-token distributions
without and with a LoRA, and t a target's own, the target takes over the *moved mass*: with
μ = max(q - p, 0), min(p, q) and k = min(1, q / p) of its own tokens, and then read as target tokens,

    m = (1 - |μ|)² · t·k / |t·k| + |μ| · min(p, q) + μ,

which is q itself where the target is the source (|·| is the sum), keeps the target's own judgement among what
the LoRA leaves alone, and needs no likeness of the two beyond the text. The more the LoRA moves, the more
what it leaves is the source's too: of a word that it all but forbids, t·k would leave less still wherever
the target thinks more than the source of others. Proxy tuning (arXiv 2401.08565) multiplies t by q / p
instead; where the target thinks little of a word, no factor is large enough to say it.

But in the midst of a sentence, where no model is sure, μ is the source's choice of words and not its LoRA's.
There what the LoRA changes is the odds of words, and the target's own choice is weighed by it:

    w = t·(q / p)^a / |t·(q / p)^a|,    a = |min(t, p)|,

proxy tuning as far as the two models agree: a change of odds tells little to one that expects other words. As
likely as q's likeliest word is m is said, and w for the rest. Where the target is the source, w is q as well.

Inside a source token the target goes on in pieces: behind ` ha` of ` happy` the same is done with the source
tokens that begin with ` ha`, each standing for the rest of its text.

Beside the source the target says no more at once than the source's token does, so that the source goes on
with the word. A target that has to go on alone would be left with beginnings: for it p and q are first laid
out over its own tokens, each source token over those that begin with it and with no longer one, as likely as
t has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.language_model import rows_in_cache
from cast.models import LanguageModel
from cast.token_texts import TokenTexts

# Probabilities below this are noise: a ratio of two of them says nothing.
_NOISE = 1e-9
# What the target may still say where it is pooled with a source that would never say it.
_PATIENCE = 1e-6
# The least probability that has a logarithm.
_NEVER = 1e-30
# Probabilities held at once, in numbers: 64 MiB of float32.
_AT_ONCE = 1 << 24
# Bridges that are kept; each is one index over the tokens that begin with some characters.
_KEPT = 512


@dataclass(frozen=True)
class Bridge:
    """How the source tokens that begin with some characters go on, behind those, in the target's tokens.

    Attributes:
        ids: [K] int64, these source tokens.
        spoken: [U] int64, the target tokens with which the rest of one begins.
        first: [K] int64, the entry of `spoken` with which the rest of each begins; U where nothing is left of
            it, or nothing that the target can say.
        judges: [V_t] int64, what says how much of each target token stays, where nothing has been written yet
            of the source token: an entry of `spoken`; else U + the entry of `ids` that is the longest which
            it begins with; else U + K, all of it. None where something has been written.
        longest: [V_t] int64, the entry of `ids` that is the longest with which each target token begins; K
            where it begins with none. None where something has been written.
    """

    ids: Tensor
    spoken: Tensor
    first: Tensor
    judges: Tensor | None
    longest: Tensor | None

    def crossed(
        self, own: Tensor, before: Tensor, after: Tensor, pooling: Tensor, *, alone: bool = False
    ) -> Tensor:
        """The target's distributions with the moved mass taken over.

        Args:
            own: [N, V_t] log-probabilities of the target itself.
            before: [N, V_s] log-probabilities of the source without the LoRA.
            after: [N, V_s] the same with it.
            pooling: [N] in [0, 1], weight of the adapted source in a logarithmic pool with the outcome, as
                far as it is sure, max q, or less in doubt of the next word than the target: σ(H(t) - H(q)).
            alone: whether the target goes on without the source, which then counts only as far as it is sure.

        Returns:
            [N, V_t] float32 log-probabilities.
        """
        p, q = self._chances(before, after)
        was_begun, begun = (given.sum(-1, keepdim=True) for given in (p, q))
        begun_or_noise = begun.clamp_min(_NOISE)
        moved = (q - p).clamp_min(0).div_(begun_or_noise)
        # With the moved mass comes as large a share of what stays: 1 - (1 - |μ|)² in all.
        brought = torch.minimum(p, q).div_(begun_or_noise).mul_(moved.sum(-1, keepdim=True)).add_(moved)
        p, q = p / was_begun.clamp_min(_NOISE), q / begun_or_noise
        said, was = (self._as_target(given) for given in (q, p))
        ratio = self._spread(_ratio(said, was), _ratio(q, p), own.shape[-1])
        chances = own.exp()
        sure = said[:, :-1].amax(-1, keepdim=True)
        if self.judges is None:
            # That a word was begun may itself be what the LoRA has brought.
            sure = torch.maximum(sure, 1 - was_begun / begun_or_noise)
        known = said[:, :-1].sum(-1) > _PATIENCE
        if alone and self.longest is not None:
            at = torch.arange(own.shape[-1])
            heard, was, taken = (self._laid_out(given, chances) for given in (q, p, brought))
        else:
            at, heard = self.spoken, _shares(said[:, :-1])
            was, taken = was[:, :-1], self._as_target(brought)[:, :-1]
        heeded = sure[:, 0]
        if not alone:
            # Where it is not sure, it counts for more in the pool if the target is in more doubt. What shall
            # be said alone is asked of the source's own draws, which tell nothing of who doubts with reason.
            doubt = torch.special.entr(chances).sum(-1) - torch.special.entr(heard).sum(-1)
            heeded = torch.maximum(heeded, doubt.sigmoid())
        result = _taken_over(chances, ratio, taken, at)
        weighed = _weighed(chances, ratio, was, at)
        result = weighed.lerp_(result, sure).clamp_min_(_NEVER).log_()
        _pool(result, heard, pooling * heeded * known, at)
        return torch.where(begun > _NOISE, result, own)

    def _chances(self, *log_probs: Tensor) -> list[Tensor]:
        """Probabilities [N, K] of `ids`, of log-probabilities [N, V_s]; where nothing is written, of all."""
        whole = self.judges is not None
        return [(given if whole else given[:, self.ids]).exp() for given in log_probs]

    def _laid_out(self, mass: Tensor, chances: Tensor) -> Tensor:
        """Mass [N, K] of source tokens over target tokens of chances [N, V_t], longer ones as well."""
        assert self.longest is not None
        result = chances + _NOISE
        known = result.new_zeros(len(mass), len(self.ids) + 1).index_add_(1, self.longest, result)[:, :-1]
        shares = mass.where(known > 0, 0) / known.where(known > 0, 1)
        result *= torch.nn.functional.pad(shares, (0, 1)).index_select(1, self.longest)
        # What the target has no token to begin with is said from its own beginning.
        rest = self._as_target(mass.where(known == 0, 0))[:, :-1]
        return result.index_add_(1, self.spoken, rest)

    def factor(self, before: Tensor, after: Tensor, size: int) -> Tensor:
        """The logarithm of q / p [N, size] of target tokens, from the source's log-probabilities [N, V_s]."""
        p, q = self._chances(before, after)
        said, was = (self._as_target(given) for given in (q, p))
        return self._spread(_ratio(said, was), _ratio(q, p), size).log_()

    def _as_target(self, given: Tensor) -> Tensor:
        """Mass [N, K] of source tokens as mass [N, U + 1] of `spoken`, and of what begins with none."""
        mass = given.new_zeros(len(given), len(self.spoken) + 1)
        return mass.index_add_(1, self.first, given)

    def _spread(self, by_spoken: Tensor, by_source: Tensor, size: int) -> Tensor:
        """Factors [N, size] of all target tokens, from those [N, U + 1] of `spoken` and [N, K] of `ids`."""
        if self.judges is not None:
            judged = torch.cat([by_spoken[:, :-1], by_source, torch.ones_like(by_source[:, :1])], 1)
            return judged.index_select(1, self.judges)
        # Inside a token all that does not go on as the source would can only mean that the token is over.
        factors = by_spoken[:, -1:].repeat(1, size)
        return factors.index_copy_(1, self.spoken, by_spoken[:, :-1])


def _taken_over(chances: Tensor, ratio: Tensor, brought: Tensor, at: Tensor) -> Tensor:
    """The m [N, V_t] of the module, from t and q / p [N, V_t] and what is brought [N, U] of tokens `at`."""
    left = _shares(ratio.clamp(max=1).mul_(chances)).mul_(1 - brought.sum(-1, keepdim=True))
    return left.index_add_(1, at, brought)


def _weighed(chances: Tensor, ratio: Tensor, was: Tensor, at: Tensor) -> Tensor:
    """The w [N, V_t] of the module, from t and q / p [N, V_t], used up here, and p [N, U] of tokens `at`."""
    agreed = torch.minimum(chances[:, at], was).sum(-1, keepdim=True)
    chances[:, at] += _NOISE
    return _shares(ratio.pow_(agreed).mul_(chances))


def _pool(mixed: Tensor, heard: Tensor, pooling: Tensor, at: Tensor) -> None:
    """Pool log-probabilities [N, V_t], in place, with the source's distributions [N, U] of tokens `at`."""
    pooled_rows = (pooling > 0).nonzero()[:, 0]
    for some in rows_in_cache(len(pooled_rows), mixed.shape[-1]):
        rows = pooled_rows[some]
        weights = pooling[rows, None].float()
        spoken = mixed.new_zeros(len(rows), mixed.shape[-1]).index_copy_(1, at, heard[rows])
        pooled = spoken.add_(_PATIENCE).log_().mul_(weights).add_((1 - weights) * mixed[rows])
        mixed[rows] = pooled.log_softmax(-1)


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return (after + _NOISE) / (before + _NOISE)


def _shares(mass: Tensor) -> Tensor:
    """Mass [N, V] as distributions, in place."""
    return mass.div_(mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny))


class VocabularyMap:
    """The tokens of a source and of a target, laid over each other by their text.

    Args:
        source: the model whose distributions are to be read.
        target: the model in whose tokens they are said.
    """

    def __init__(self, source: LanguageModel, target: LanguageModel) -> None:
        self._source_size, self._target_size = source.vocabulary, target.vocabulary
        self.source = TokenTexts(source)
        self._target = _ids_by_text(target)
        self._longest = max(map(len, self._target), default=0)
        self._ends = _ends(source), _ends(target)
        self._pieces = _bare_pieces(source), {piece: token for token, piece in _bare_pieces(target).items()}
        self._bridges: dict[str, Bridge] = {}

    def bridge(self, pending: str = "") -> Bridge:
        """The bridge behind the characters that were written of a source token so far."""
        if pending not in self._bridges:
            if len(self._bridges) >= _KEPT:
                self._bridges.pop(next(iter(self._bridges)))
            self._bridges[pending] = self._behind(pending) if pending else self._whole()
        return self._bridges[pending]

    def take_over(
        self,
        own: Tensor,
        before: Tensor,
        after: Tensor,
        pending: Sequence[str],
        pooling: Tensor,
        *,
        alone: bool = False,
    ) -> Tensor:
        """The target's next-token distributions with the LoRA's moved mass taken over, at N places.

        Args:
            own: [N, V_t] logits of the target itself.
            before: [N, V_s] logits of the source without the LoRA, behind its last whole token.
            after: [N, V_s] the same with it.
            pending: N strings, what was written since that token.
            pooling: [N] in [0, 1]; see `Bridge.crossed`.
            alone: what a target shall say that goes on without the source.

        Returns:
            [N, V_t] float32 log-probabilities, on the CPU.
        """
        own, before, after = (logits.float().cpu().log_softmax(-1) for logits in (own, before, after))
        result = own.clone()
        size = max(1, _AT_ONCE // max(own.shape[-1], before.shape[-1]))
        for text in dict.fromkeys(pending):
            places = torch.tensor([place for place, other in enumerate(pending) if other == text])
            bridge = self.bridge(text)
            for at in places.split(size) if len(bridge.spoken) else ():
                result[at] = bridge.crossed(own[at], before[at], after[at], pooling[at], alone=alone)
        return result

    def first(self, text: str) -> int:
        """The longest target token that begins a text; V_t where there is none."""
        return _longest_beginning(text, self._target, self._longest, self._target_size)

    def _whole(self) -> Bridge:
        texts, nothing = dict(self._texts_of(range(len(self.source.texts)))), self._target_size
        first = [self.first(texts.get(token, "")) for token in range(self._source_size)]
        for token, piece in self._pieces[0].items():
            first[token] = self._pieces[1].get(piece, nothing)
        for end in self._ends[0]:
            first[end] = self._ends[1][0] if self._ends[1] else nothing
        spoken, entries = self._spoken(first)
        longest = self._longest_source(texts)
        judges = self._judges(longest, spoken)
        return Bridge(torch.arange(self._source_size), spoken, entries, judges, longest)

    def _behind(self, pending: str) -> Bridge:
        places = self.source.beginning(pending)
        first = [self.first(text[len(pending) :]) for _, text in self._texts_of(places)]
        return Bridge(self.source.ids[places.start : places.stop], *self._spoken(first), None, None)

    def _longest_source(self, texts: Mapping[int, str]) -> Tensor:
        """See `Bridge.longest`, from the source's tokens and their texts."""
        ids = {text: token for token, text in texts.items()}
        found = [
            _longest_beginning(text, ids, self.source.longest, self._source_size) for text in self._target
        ]
        result = torch.full([self._target_size], self._source_size)
        result[torch.tensor(list(self._target.values()))] = torch.tensor(found)
        return result

    def _judges(self, longest: Tensor, spoken: Tensor) -> Tensor:
        """See `Bridge.judges`."""
        judges = len(spoken) + longest
        if self._ends[0] and self._ends[1]:
            judges[self._ends[1][1:]] = len(spoken) + self._ends[0][0]
        judges[spoken] = torch.arange(len(spoken))
        return judges

    def _texts_of(self, places: range) -> list[tuple[int, str]]:
        ids = self.source.ids[places.start : places.stop].tolist()
        return list(zip(ids, self.source.texts[places.start : places.stop], strict=True))

    def _spoken(self, first: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The target tokens among `first`, in order, and for each of `first` its entry there."""
        spoken, entries = torch.tensor(first, dtype=torch.long).unique(return_inverse=True)
        # What no target token stands for comes last, with the highest number.
        return spoken[spoken < self._target_size], entries


def _longest_beginning(text: str, ids: Mapping[str, int], longest: int, none: int) -> int:
    """The id of the longest token that a text begins with; `none` where there is none."""
    lengths = range(min(len(text), longest), 0, -1)
    return next((ids[text[:length]] for length in lengths if text[:length] in ids), none)


def _ids_by_text(lm: LanguageModel) -> dict[str, int]:
    """One token for each text, the first where several tokens are the same text."""
    found: dict[str, int] = {}
    for token, text in enumerate(lm.token_texts):
        if text:
            found.setdefault(text, token)
    return found


def _bare_pieces(lm: LanguageModel) -> dict[int, str]:
    """The tokens without a text of their own, such as single bytes, by how their tokenizer writes them."""
    tokens = [token for token, text in enumerate(lm.token_texts) if not text]
    return dict(zip(tokens, lm.tokenizer.convert_ids_to_tokens(tokens), strict=True))


def _ends(lm: LanguageModel) -> list[int]:
    """Tokens that end a text, the tokenizer's own first."""
    own = lm.tokenizer.eos_token_id
    return sorted((end for end in lm.eos_ids if end < lm.vocabulary), key=lambda end: (end != own, end))
