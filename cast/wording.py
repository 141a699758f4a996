"""The whole source stack beside the target, read as words: no heads, only both models' text.

The source reads its own tokens of the target's text, with and without the LoRA; what the LoRA moves in its
next-token distribution, the target takes over (`cast.vocabulary`). Unlike a change of the residual stream,
this reaches words that the target has hardly ever seen, and places inside the source's tokens.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cast.activations import residuals, residuals_by_length
from cast.adapters import Lora, applied
from cast.alignment import positions_by_end
from cast.boundaries import TokenGauge, Tokens
from cast.language_model import rows_in_cache
from cast.models import LanguageModel, TokenBatch
from cast.source_reader import SourceReader
from cast.stepping import LOG_PROBS_KEPT, SingleSession, TokenStream, locked
from cast.transcript import common_prefix
from cast.vocabulary import VocabularyMap

# How much of the trust in the adapted source lasts from one of its tokens to the next. Behind words that it
# has put into the target's mouth, the target's own judgement is that of a stranger.
_LASTING = 0.95


class WordedRunner:
    """The target with a source adapter beside it, whose words it takes over; see `cast.runners.Runner`.

    Args:
        source: the adapter's model.
        lora: the adapter.
        target: the model that takes its words.
        strength: the source's distribution counts as p·(q/p)^strength, p without and q with the LoRA; at 0
            the runner is exactly the target.
        vocabulary: of this pair; made where it is not given.
    """

    def __init__(
        self,
        source: LanguageModel,
        lora: Lora,
        target: LanguageModel,
        strength: float = 1.0,
        vocabulary: VocabularyMap | None = None,
    ) -> None:
        self.source, self.lora, self.lm, self.strength = source, lora, target, strength
        self._given = vocabulary

    @cached_property
    def vocabulary(self) -> VocabularyMap:
        """The two vocabularies over each other."""
        return self._given or VocabularyMap(self.source, self.lm)

    @cached_property
    def gauge(self) -> TokenGauge:
        """What the source's tokens say."""
        return TokenGauge(self.source)

    def session(self) -> SingleSession:
        """A fresh session."""
        return SingleSession(self.batch_session(1))

    def batch_session(self, rows: int) -> "WordedBatch":
        """A session of several texts that are stepped together."""
        return WordedBatch(self, rows)

    @torch.no_grad()
    def logits(
        self, batch: TokenBatch, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """See `Runner.logits`; the texts count as finished, so the source's tokens are those of the whole.

        Where the token that follows in the text is not the one with which the target would begin the source's
        next token, it gets the probability of its text. It may span several of the source's; or be shorter,
        where the target writes the whole word in other pieces.
        """
        if rows is None or positions is None:
            every = torch.ones(batch.input_ids.shape).nonzero(as_tuple=True)
            return self.logits(batch, *every).unflatten(0, batch.input_ids.shape)
        reading = self.reading(batch.texts) if self.strength else None
        return self.logits_beside(reading, batch, self.states(batch), rows, positions)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> Tensor:
        """The target's own last residuals [B, n, d_t]."""
        with locked(self.lm):
            return residuals(self.lm, batch, [self.lm.depth])[self.lm.depth]

    @torch.no_grad()
    def reading(self, texts: Sequence[str]) -> "Reading":
        """The source's reading of whole texts, with and without the LoRA."""
        with locked(self.source):
            tokens, depth = self.source.encode(texts), self.source.depth
            plain = residuals_by_length(self.source, tokens, [depth])[depth]
            with applied(self.source, self.lora):
                adapted = residuals_by_length(self.source, tokens, [depth])[depth]
            said, moved = torch.zeros(*tokens.input_ids.shape, 2), torch.zeros(tokens.input_ids.shape)
            mask = tokens.attention_mask.cpu().bool()
            lengths, (rows, positions) = mask.sum(1), mask.nonzero(as_tuple=True)
            # The places of all texts together: a large head is read as a whole each time.
            for at, before, after in self._behind(plain[rows, positions], adapted[rows, positions]):
                row, position = rows[at], positions[at]
                moved[row, position] = (after.exp() - before.exp()).clamp_min(0).sum(-1).cpu()
                going_on = position + 1 < lengths[row]
                row, following = row[going_on], position[going_on] + 1
                ids = tokens.input_ids[row, following]
                said[row, following] = _likelihoods(before[going_on], after[going_on], ids)
        return Reading(tokens, plain, adapted, said, moved)

    @torch.no_grad()
    def logits_beside(
        self,
        reading: "Reading | None",
        batch: TokenBatch,
        states: Tensor,
        rows: Tensor,
        positions: Tensor,
        *,
        alone: bool = False,
    ) -> Tensor:
        """`logits` at chosen positions, beside a reading of the same texts and `states`.

        Without a reading, the target's own. With `alone`, what a target shall say that goes on without the
        source, and nothing of it from what follows in the text.
        """
        rows, positions = rows.cpu(), positions.cpu()
        with locked(self.source, self.lm):
            result = self.lm.architecture.logits(states[rows, positions]).float()
            if reading is not None:
                places = Places.of(batch, reading.tokens, rows, positions)
                if len(places.entry):
                    result[places.entry] = self._taken_over(
                        reading, places, result[places.entry], alone=alone
                    )
        return result

    def _taken_over(self, reading: "Reading", places: "Places", own: Tensor, *, alone: bool) -> Tensor:
        at = places.row, places.position
        pooling = torch.tensor([list(lasting(gains(row))) for row in reading.said])[at]
        parts = []
        # Some at a time: the source's vocabulary may be far larger than the one that so many places are for.
        for some, before, after in self._behind(reading.plain[at], reading.adapted[at]):
            pending = [places.pending[place] for place in some.tolist()]
            parts.append(
                self.vocabulary.take_over(own[some], before, after, pending, pooling[some], alone=alone)
            )
        taken = torch.cat(parts)
        for place in () if alone else places.looking_ahead():
            begun, follows = self._begun(places, place), int(places.next_token[place])
            if begun not in (follows, len(taken[place])):
                share, brought, most = self._said_beyond(reading, places, place)
                _move(taken[place], own[place], begun, follows, share, brought, most)
        return taken.to(own.device)

    def _begun(self, places: "Places", place: int) -> int:
        """The target token that begins the rest of the source's next one."""
        text, end = places.read.texts[places.row[place]], int(places.end[place])
        return self.vocabulary.first(text[end : places.next_source_end(place)])

    def _said_beyond(self, reading: "Reading", places: "Places", place: int) -> tuple[float, float, float]:
        """What `_move` takes: how surely the target's next token is what the adapted source says."""
        row, position = int(places.row[place]), int(places.position[place]) + 1
        ends, stop = places.read.ends[row], int(places.next_end[place])
        if stop <= ends[position]:
            return 1.0, 0.0, math.exp(float(reading.said[row, position, 1]))
        log_shares = torch.zeros(2)
        while position + 1 < len(ends) and 0 <= ends[position + 1] <= stop:
            position += 1
            log_shares += reading.said[row, position]
        if ends[position] < stop:
            at = slice(position, position + 1)
            ways = self.distributions(reading.plain[row, at], reading.adapted[row, at])
            ids = self.vocabulary.bridge(places.read.texts[row][int(ends[position]) : stop]).ids
            log_shares += torch.stack([way[0].cpu()[ids].logsumexp(0) for way in ways])
        before, after = log_shares.exp().tolist()
        return after, max(after - before, 0.0), 1.0

    def distributions(self, plain: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """The source's next-token log-probabilities [N, V_s] without the LoRA and at the strength with it."""
        return self._from_logits(*(self.source.architecture.logits(states) for states in (plain, adapted)))

    def _from_logits(self, plain: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """`distributions` from logits [N, V_s]."""
        return self.at_strength(*(logits.float().log_softmax(-1) for logits in (plain, adapted)))

    def at_strength(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [..., V_s] without the LoRA as they are, those with it at the strength."""
        if self.strength != 1:
            after = (before + self.strength * (after - before)).log_softmax(-1)
        return before, after

    def said(self, plain: Tensor, adapted: Tensor, ids: Sequence[int]) -> Tensor:
        """Log-probabilities [n, 2] of a text's tokens without and with the LoRA; 0 for the first.

        Args:
            plain: [n, d_s] last residuals without the LoRA.
            adapted: [n, d_s] the same with it.
            ids: the n tokens.
        """
        result, tokens = torch.zeros(len(ids), 2), torch.tensor(ids, device=plain.device)
        for at, before, after in self._behind(plain[:-1], adapted[:-1]):
            result[at + 1] = _likelihoods(before, after, tokens[at + 1])
        return result

    def _behind(self, plain: Tensor, adapted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Few of n positions at a time, and the `distributions` behind them.

        Logits are worked out for many, what is made of them for as many as stay in the processor's cache.
        """
        for at in torch.arange(len(plain)).split(self.source.positions_at_once):
            logits = [self.source.architecture.logits(states[at]) for states in (plain, adapted)]
            for some in rows_in_cache(len(at), self.source.vocabulary):
                yield at[some], *self._from_logits(*(held[some] for held in logits))


def _likelihoods(before: Tensor, after: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [n, 2] of n tokens in as many distributions without and with a LoRA."""
    chosen = [given.gather(1, ids[:, None]) for given in (before, after)]
    return torch.cat(chosen, 1).cpu()


def _move(
    taken: Tensor, own: Tensor, begun: int, follows: int, share: float, brought: float, most: float
) -> None:
    """Give what was taken over as the beginning of a word to the token that follows in the text.

    Args:
        taken: [V_t] log-probabilities, changed in place.
        own: [V_t] logits of the target itself.
        begun: the token that stands for the beginning.
        follows: the token with which the target writes the word of the text.
        share: in [0, 1], how much of what the source has put there.
        brought: in [0, 1], the same of what the target says of itself: the part of `share` that the LoRA has
            brought.
        most: no more than this probability.
    """
    said = taken[begun].exp()
    shared = torch.minimum(said, own.softmax(-1)[begun].to(taken.device))
    over = ((said - shared) * share + shared * brought).clamp_max(most)
    taken[follows] = (taken[follows].exp() + over).log()
    taken[begun] = (said - over).clamp_min(1e-30).log()


def gains(said: Tensor) -> list[float]:
    """For each token of a text the share of its probability that the LoRA has brought, from `said` [n, 2]."""
    return (1 - (said[:, 0] - said[:, 1]).exp()).clamp_min(0).tolist()


def lasting(shares: Iterable[float], trust: float = 0.0) -> Iterator[float]:
    """The trust in the adapted source behind each token: h_n = λ · max(share_n, h_n-1)."""
    for share in shares:
        trust = _LASTING * max(share, trust)
        yield trust


@dataclass(frozen=True)
class Reading:
    """B whole texts as a source reads them, with and without its LoRA.

    Attributes:
        tokens: the texts in the source's tokens, n at most.
        plain: [B, n, d_s] last residuals without the LoRA.
        adapted: [B, n, d_s] the same with it.
        said: [B, n, 2] float32 log-probabilities of the tokens, without and with; 0 for first ones and
            padding.
        moved: [B, n] float32 in [0, 1], the mass that the LoRA moves in the distribution behind each token.
    """

    tokens: TokenBatch
    plain: Tensor
    adapted: Tensor
    said: Tensor
    moved: Tensor


@dataclass(frozen=True)
class Places:
    """Where the source stands at K chosen positions of the target.

    Attributes:
        read: the texts in the source's tokens.
        entry: [K] which of the chosen positions; left out are those inside a character and special tokens.
        row: [K] their texts.
        end: [K] the character at which the target's token ends.
        position: [K] the source's last whole token there.
        pending: K strings, the characters since.
        next_token: [K] the target's next token in the text.
        next_end: [K] where it ends; -1 if it is none, or ends inside a character.
    """

    read: TokenBatch
    entry: Tensor
    row: Tensor
    end: Tensor
    position: Tensor
    pending: tuple[str, ...]
    next_token: Tensor
    next_end: Tensor

    @classmethod
    def of(cls, batch: TokenBatch, read: TokenBatch, rows: Tensor, positions: Tensor) -> "Places":
        """From the target's batch, the same texts in the source, and the chosen positions."""
        size = 1 + max(int(batch.ends.max()), int(read.ends.max()), 0)
        by_end = positions_by_end(batch.ends, size)
        ends = batch.ends[rows, positions].clamp_min(0)
        # Of several tokens with one end only the last has written the whole character.
        entry = ((positions == 0) | (by_end[rows, ends] == positions)).nonzero()[:, 0]
        row, end = rows[entry], ends[entry]
        position = positions_by_end(read.ends, size).clamp_min(0).cummax(1).values[row, end]
        starts = read.ends[row, position].clamp_min(0)
        texts = zip(row.tolist(), starts.tolist(), end.tolist(), strict=True)
        following = (positions[entry] + 1).clamp_max(batch.ends.shape[1] - 1)
        next_end = batch.ends[row, following]
        whole = by_end[row, next_end.clamp_min(0)] == following
        return cls(
            read=read,
            entry=entry,
            row=row,
            end=end,
            position=position,
            pending=tuple(read.texts[text][start:stop] for text, start, stop in texts),
            next_token=batch.input_ids.cpu()[row, following],
            next_end=torch.where(whole, next_end, -1),
        )

    def next_source_end(self, place: int) -> int:
        """Where the source's token ends behind its last whole one; -1 without one."""
        position = int(self.position[place]) + 1
        ends = self.read.ends[int(self.row[place])]
        return int(ends[position]) if position < len(ends) else -1

    def looking_ahead(self) -> list[int]:
        """The places at which both models go on with a token of the text."""
        ends = zip(self.end.tolist(), self.next_end.tolist(), strict=True)
        return [
            place
            for place, (end, stop) in enumerate(ends)
            if end < stop and end < self.next_source_end(place)
        ]


class WordedBatch:
    """B texts that grow together, each with its own caches of the target and of the source."""

    def __init__(self, runner: WordedRunner, rows: int) -> None:
        self._runner = runner
        self._trust: list[list[float]] = [[] for _ in range(rows)]
        self._read: list[tuple[int, ...]] = [() for _ in range(rows)]
        self.target = TokenStream(runner.lm, rows)
        self.reader = SourceReader(runner.source, runner.lora, runner.gauge, runner.lm, rows, both=True)

    @torch.no_grad()
    def next_logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] (float32) after each of B rows of ids, the full ids so far with BOS."""
        runner = self._runner
        with locked(runner.source, runner.lm):
            self.target.advance(rows)
            hidden = torch.stack([states[-1] for states in self.target.states])
            logits = runner.lm.architecture.logits(hidden).float()
            if not runner.strength:
                return logits
            own = self.reader.read(rows)
            self.reader.advance(own)
            starts = [self._read_before(row, tokens) for row, tokens in enumerate(own)]
            # All at once, for the head's weights are read for one place nearly as long as for many.
            self.reader.log_probs(
                [
                    (row, place)
                    for row, (start, tokens) in enumerate(zip(starts, own, strict=True))
                    for place in range(start, len(tokens))[-LOG_PROBS_KEPT:]
                ]
            )
            for row, (start, tokens) in enumerate(zip(starts, own, strict=True)):
                self._follow(row, start, tokens)
            acting = [row for row in range(len(rows)) if self._whole_character(row)]
            if acting:
                logits[acting] = self._taken_over(acting, own, logits[acting])
        return logits

    def _taken_over(self, acting: Sequence[int], own: Sequence[Tokens], logits: Tensor) -> Tensor:
        before, after = self._behind([(row, len(own[row]) - 1) for row in acting])
        pending = [self.reader.transcripts[row].text[max(own[row].ends[-1], 0) :] for row in acting]
        pooling = torch.tensor([self._trust[row][-1] for row in acting])
        taken = self._runner.vocabulary.take_over(logits, before, after, pending, pooling)
        return taken.to(logits.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        self._trust = [self._trust[row] for row in rows]
        self._read = [self._read[row] for row in rows]
        self.target.select(rows)
        self.reader.select(rows)

    def _read_before(self, row: int, tokens: Tokens) -> int:
        """The last of the tokens that were there before; what it says next may be new."""
        return max(common_prefix(self._read[row], tokens.ids) - 1, 0)

    def _follow(self, row: int, start: int, tokens: Tokens) -> None:
        """Keep the trust behind each of the source's tokens, of which those behind `start` may be new."""
        trust = self._trust[row][: start + 1]
        new = gains(self._said(row, start, tokens.ids))[len(trust) - start :]
        trust += lasting(new, trust[-1] if trust else 0.0)
        self._trust[row], self._read[row] = trust, tokens.ids

    def _said(self, row: int, start: int, ids: Sequence[int]) -> Tensor:
        """`WordedRunner.said` of a row's tokens from `start` on."""
        places = range(start, len(ids) - 1)
        if len(places) > LOG_PROBS_KEPT:
            plain, adapted = (
                torch.stack(states[row][start:]) for states in (self.reader.plain, self.reader.adapted)
            )
            return self._runner.said(plain, adapted, ids[start:])
        first = torch.zeros(1, 2)
        if not places:
            return first
        before, after = self._behind([(row, place) for place in places])
        following = torch.tensor(ids[start + 1 :], device=before.device)
        return torch.cat([first, _likelihoods(before, after, following)])

    def _behind(self, places: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """`WordedRunner.distributions` [N, V_s] behind N (row, token) places, at least one."""
        adapted, plain = (torch.stack(way) for way in zip(*self.reader.log_probs(places), strict=True))
        return self._runner.at_strength(plain, adapted)

    def _whole_character(self, row: int) -> bool:
        ends = self.reader.transcripts[row].ends
        return len(ends) == 1 or ends[-1] >= 0
