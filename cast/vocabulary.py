"""What one model's next-token distribution says in the tokens of another.

Two vocabularies cut text differently, but both are text. With p and q a source's next-token distributions
without and with a LoRA, and t a target's own, the target takes over the *moved mass*: with
μ = max(q - p, 0) and k = min(1, q / p), both read as target tokens,

    (1 - |μ|) · t·k / |t·k| + μ,

which is q itself where the target is the source (|·| is the sum), keeps the target's own judgement among what
the LoRA leaves alone, and needs no likeness of the two beyond the text. Proxy tuning (arXiv 2401.08565)
multiplies t by q / p instead; where the target thinks little of a word, no factor is large enough to say it.

Inside a source token the target goes on in pieces: behind ` ha` of ` happy` the same is done with the source
tokens that begin with ` ha`, each standing for the rest of its text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.models import LanguageModel
from cast.token_texts import TokenTexts

# Probabilities below this are noise: a ratio of two of them says nothing.
_NOISE = 1e-9
# What the target may still say where it is pooled with a source that would never say it.
_PATIENCE = 1e-6
# Probabilities held at once, in numbers: 128 MiB of float64.
_AT_ONCE = 1 << 24
# Bridges that are kept; each is one index over the tokens that begin with some characters.
_KEPT = 512


@dataclass(frozen=True)
class Bridge:
    """How the source tokens that begin with some characters go on, behind those, in the target's tokens.

    Attributes:
        ids: [K] int64, these source tokens.
        first: [K] int64, the target token with which the rest of each begins; V_t where nothing is left of
            it, or nothing that the target can say.
        orphans: [O] int64, target tokens with which no rest begins.
        stand_ins: [O] int64, for each the entry of `ids` that it is judged by: the longest one that it begins
            with. Without one, -1.
        whole: whether nothing has been written yet of the source token.
    """

    ids: Tensor
    first: Tensor
    orphans: Tensor
    stand_ins: Tensor
    whole: bool

    def crossed(self, own: Tensor, before: Tensor, after: Tensor, pooling: Tensor) -> Tensor:
        """The target's distributions with the moved mass taken over.

        Args:
            own: [N, V_t] log-probabilities of the target itself.
            before: [N, V_s] log-probabilities of the source without the LoRA.
            after: [N, V_s] the same with it.
            pooling: [N] in [0, 1], weight of the adapted source in a logarithmic pool with the outcome.

        Returns:
            [N, V_t] float32 log-probabilities.
        """
        p, q = (given.double()[:, self.ids].exp() for given in (before, after))
        begun = q.sum(-1, keepdim=True)
        moved = (q - p).clamp_min(0) / begun.clamp_min(_NOISE)
        p, q = p / p.sum(-1, keepdim=True).clamp_min(_NOISE), q / begun.clamp_min(_NOISE)
        size = own.shape[-1]
        said, was, taken = (self._as_target(given, size) for given in (q, p, moved))
        share = _ratio(said, was)
        keep = share[:, :size]
        standing = self.stand_ins >= 0
        judged = self.stand_ins[standing]
        keep[:, self.orphans[standing]] = _ratio(q[:, judged], p[:, judged])
        # Inside a token all that does not go on as the source would can only mean that the token is over.
        keep[:, self.orphans[~standing]] = 1.0 if self.whole else share[:, size:]
        kept = own.double().exp() * keep
        kept = kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
        taken, said = taken[:, :size], said[:, :size]
        mixed = ((1 - taken.sum(-1, keepdim=True)) * kept + taken).clamp_min(1e-30).log()
        known = said.sum(-1, keepdim=True)
        weight = torch.where(known > _PATIENCE, pooling.double()[:, None], 0.0)
        spoken = (said / known.clamp_min(_NOISE) + _PATIENCE).log()
        pooled = ((1 - weight) * mixed + weight * spoken).log_softmax(-1)
        return torch.where(begun > _NOISE, pooled, own.double()).float()

    def factor(self, before: Tensor, after: Tensor, size: int) -> Tensor:
        """The logarithm of q / p [N, size] of target tokens, from the source's log-probabilities [N, V_s]."""
        p, q = (given.double()[:, self.ids].exp() for given in (before, after))
        log_p, log_q = ((self._as_target(given, size)[:, :size] + _NOISE).log() for given in (p, q))
        found = log_q - log_p
        standing = self.stand_ins >= 0
        judged = self.stand_ins[standing]
        found[:, self.orphans[standing]] = (q[:, judged] + _NOISE).log() - (p[:, judged] + _NOISE).log()
        return found.float()

    def _as_target(self, given: Tensor, size: int) -> Tensor:
        """Mass [N, K] of source tokens as mass [N, size + 1] of target tokens."""
        mass = given.new_zeros(len(given), size + 1)
        return mass.index_add_(1, self.first, given)


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return ((after + _NOISE) / (before + _NOISE)).clamp(max=1.0)


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
        self, own: Tensor, before: Tensor, after: Tensor, pending: Sequence[str], pooling: Tensor
    ) -> Tensor:
        """The target's next-token distributions with the LoRA's moved mass taken over, at N places.

        Args:
            own: [N, V_t] logits of the target itself.
            before: [N, V_s] logits of the source without the LoRA, behind its last whole token.
            after: [N, V_s] the same with it.
            pending: N strings, what was written since that token.
            pooling: [N] in [0, 1]; see `Bridge.crossed`.

        Returns:
            [N, V_t] float32 log-probabilities, on the CPU.
        """
        own, before, after = (logits.float().cpu().log_softmax(-1) for logits in (own, before, after))
        result = own.clone()
        size = max(1, _AT_ONCE // max(own.shape[-1], before.shape[-1]))
        for text in dict.fromkeys(pending):
            places = torch.tensor([place for place, other in enumerate(pending) if other == text])
            bridge = self.bridge(text)
            for at in places.split(size) if len(bridge.ids) else ():
                result[at] = bridge.crossed(own[at], before[at], after[at], pooling[at])
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
        orphans = self._unnamed(first)
        ids = {text: token for token, text in texts.items()}
        stand_ins = {
            token: _longest_beginning(text, ids, self.source.longest, -1)
            for text, token in self._target.items()
        }
        if self._ends[0] and self._ends[1]:
            stand_ins |= dict.fromkeys(self._ends[1][1:], self._ends[0][0])
        return Bridge(
            ids=torch.arange(self._source_size),
            first=torch.tensor(first, dtype=torch.long),
            orphans=orphans,
            stand_ins=torch.tensor(
                [stand_ins.get(token, -1) for token in orphans.tolist()], dtype=torch.long
            ),
            whole=True,
        )

    def _behind(self, pending: str) -> Bridge:
        places = self.source.beginning(pending)
        first = [self.first(text[len(pending) :]) for _, text in self._texts_of(places)]
        orphans = self._unnamed(first)
        return Bridge(
            ids=self.source.ids[places.start : places.stop],
            first=torch.tensor(first, dtype=torch.long),
            orphans=orphans,
            stand_ins=torch.full_like(orphans, -1),
            whole=False,
        )

    def _texts_of(self, places: range) -> list[tuple[int, str]]:
        ids = self.source.ids[places.start : places.stop].tolist()
        return list(zip(ids, self.source.texts[places.start : places.stop], strict=True))

    def _unnamed(self, first: Sequence[int]) -> Tensor:
        """The target tokens that no rest begins with, in order."""
        unnamed = torch.ones(self._target_size + 1, dtype=torch.bool)
        unnamed[[*first, self._target_size]] = False
        return unnamed.nonzero()[:, 0]


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
