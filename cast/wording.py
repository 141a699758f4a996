"""The whole source stack beside the target, read as words: no heads, only both models' text.

The source reads its own tokens of the target's text, with and without the LoRA; what the LoRA moves in its
next-token distribution, the target takes over (`cast.vocabulary`). Unlike a change of the residual stream,
this reaches words that the target has hardly ever seen, and places inside the source's tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Lora, applied
from cast.alignment import positions_by_end
from cast.boundaries import TokenGauge, Tokens
from cast.models import LanguageModel, TokenBatch
from cast.source_reader import SourceReader
from cast.stepping import SingleSession, TokenStream, locked
from cast.transcript import Transcript, common_prefix
from cast.vocabulary import VocabularyMap

# How much of the trust in the adapted source lasts from one of its tokens to the next. Behind words that it
# has put into the target's mouth, the target's own judgement is that of a stranger.
_LASTING = 0.95
# Logits of the source held at once, in numbers: 128 MiB of float32.
_LOGITS_AT_ONCE = 1 << 25


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
        """See `Runner.logits`; the texts count as finished, so the source's tokens are those of the whole."""
        if rows is None or positions is None:
            every = torch.ones(batch.input_ids.shape).nonzero(as_tuple=True)
            return self.logits(batch, *every).unflatten(0, batch.input_ids.shape)
        rows, positions = rows.cpu(), positions.cpu()
        with locked(self.source, self.lm):
            hidden = residuals(self.lm, batch, [self.lm.depth])[self.lm.depth]
            result = self.lm.architecture.logits(hidden[rows, positions]).float()
            if self.strength:
                places = Places.of(batch, self.source.encode(batch.texts), rows, positions)
                if len(places.entry):
                    result[places.entry] = self._taken_over(places, result[places.entry])
        return result

    def _taken_over(self, places: "Places", own: Tensor) -> Tensor:
        depth, read = self.source.depth, places.read
        plain = residuals(self.source, read, [depth])[depth]
        with applied(self.source, self.lora):
            adapted = residuals(self.source, read, [depth])[depth]
        length = read.input_ids.shape[1]
        at = places.row, places.position
        pooling = torch.zeros(len(read.texts), length)
        for row in set(places.row.tolist()):
            gains = self._gains(plain[row], adapted[row], read.input_ids[row].tolist())
            pooling[row] = torch.tensor(list(lasting(gains)))
        before, after = self.distributions(plain[at], adapted[at])
        return self.vocabulary.take_over(own, before, after, places.pending, pooling[at]).to(own.device)

    def distributions(self, plain: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """The source's next-token log-probabilities [N, V_s] without the LoRA and at the strength with it."""
        before, after = (
            self.source.architecture.logits(states).float().log_softmax(-1) for states in (plain, adapted)
        )
        return before, (before + self.strength * (after - before)).log_softmax(-1)

    def _gains(self, plain: Tensor, adapted: Tensor, ids: Sequence[int]) -> Iterator[float]:
        """For each token of a text the share of its probability that the LoRA has brought; 0 for the BOS.

        Args:
            plain: [n, d_s] last residuals without the LoRA.
            adapted: [n, d_s] the same with it.
            ids: the n tokens.
        """
        yield 0.0
        size = max(1, _LOGITS_AT_ONCE // self.source.vocabulary)
        for start in range(0, len(ids) - 1, size):
            stop = min(start + size, len(ids) - 1)
            before, after = self.distributions(plain[start:stop], adapted[start:stop])
            said = torch.tensor(ids[start + 1 : stop + 1], device=before.device)[:, None]
            gained = 1 - (before.gather(1, said) - after.gather(1, said)).exp()
            yield from gained.clamp_min(0)[:, 0].tolist()


def lasting(gains: Iterable[float], trust: float = 0.0) -> Iterator[float]:
    """The trust in the adapted source behind each token: h_n = λ · max(gain_n, h_n-1)."""
    for gain in gains:
        trust = _LASTING * max(gain, trust)
        yield trust


class Places:
    """Where the source stands at K chosen positions of the target.

    Args:
        read: the texts in the source's tokens.
        entry: [K] which of the chosen positions; left out are those inside a character and special tokens.
        row: [K] their texts.
        position: [K] the source's last whole token there.
        pending: K strings, the characters since.
    """

    def __init__(
        self, read: TokenBatch, entry: Tensor, row: Tensor, position: Tensor, pending: Sequence[str]
    ) -> None:
        self.read, self.entry, self.row, self.position, self.pending = read, entry, row, position, pending

    @classmethod
    def of(cls, batch: TokenBatch, read: TokenBatch, rows: Tensor, positions: Tensor) -> "Places":
        """From the target's batch, the same texts in the source, and the chosen positions."""
        size = 1 + max(int(batch.ends.max()), int(read.ends.max()), 0)
        ends = batch.ends[rows, positions].clamp_min(0)
        # Of several tokens with one end only the last has written the whole character.
        there = positions_by_end(batch.ends, size)[rows, ends] == positions
        entry = ((positions == 0) | there).nonzero()[:, 0]
        row, end = rows[entry], ends[entry]
        last = positions_by_end(read.ends, size).clamp_min(0).cummax(1).values
        position = last[row, end]
        starts = read.ends[row, position].clamp_min(0)
        texts = zip(row.tolist(), starts.tolist(), end.tolist(), strict=True)
        return cls(read, entry, row, position, [read.texts[text][start:stop] for text, start, stop in texts])


class WordedBatch:
    """B texts that grow together, each with its own caches of the target and of the source."""

    def __init__(self, runner: WordedRunner, rows: int) -> None:
        self._runner = runner
        self._transcripts = [Transcript(runner.lm) for _ in range(rows)]
        self._trust: list[list[float]] = [[] for _ in range(rows)]
        self._read: list[tuple[int, ...]] = [() for _ in range(rows)]
        self.target = TokenStream(runner.lm, rows)
        self.reader = SourceReader(runner.source, runner.lora, runner.gauge, rows)

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
            for transcript, ids in zip(self._transcripts, rows, strict=True):
                transcript.read(ids)
            own = self.reader.settled(self._transcripts)
            for stream in (self.reader.adapted, self.reader.plain):
                stream.advance([tokens.ids for tokens in own])
            for row, tokens in enumerate(own):
                self._follow(row, tokens)
            acting = [row for row in range(len(rows)) if self._whole_character(row)]
            if acting:
                logits[acting] = self._taken_over(acting, own, logits[acting])
        return logits

    def _taken_over(self, acting: Sequence[int], own: Sequence[Tokens], logits: Tensor) -> Tensor:
        plain, adapted = (
            torch.stack([stream.states[row][-1] for row in acting])
            for stream in (self.reader.plain, self.reader.adapted)
        )
        before, after = self._runner.distributions(plain, adapted)
        pending = [self._transcripts[row].text[max(own[row].ends[-1], 0) :] for row in acting]
        pooling = torch.tensor([self._trust[row][-1] for row in acting])
        taken = self._runner.vocabulary.take_over(logits, before, after, pending, pooling)
        return taken.to(logits.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        self._transcripts = [self._transcripts[row] for row in rows]
        self._trust = [self._trust[row] for row in rows]
        self._read = [self._read[row] for row in rows]
        self.target.select(rows)
        self.reader.select(rows)

    def _follow(self, row: int, tokens: Tokens) -> None:
        """Keep the trust behind each of the source's tokens, of which some may be new."""
        kept = common_prefix(self._read[row], tokens.ids)
        trust = self._trust[row][:kept]
        start = max(kept - 1, 0)
        plain, adapted = (
            torch.stack(stream.states[row][start:]) for stream in (self.reader.plain, self.reader.adapted)
        )
        gains = list(self._runner._gains(plain, adapted, tokens.ids[start:]))
        trust += lasting(gains[kept - start :], trust[-1] if trust else 0.0)
        self._trust[row], self._read[row] = trust, tokens.ids

    def _whole_character(self, row: int) -> bool:
        ends = self._transcripts[row].ends
        return len(ends) == 1 or ends[-1] >= 0
