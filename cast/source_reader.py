"""The source reading, as its own tokens, texts that a target is still writing."""

import math
from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor

from cast.adapters import Lora, applied
from cast.boundaries import TokenGauge, Tokens, settled, tokens_of
from cast.models import LanguageModel
from cast.stepping import TokenStream
from cast.transcript import Transcript, common_prefix

# Ends of the target at which a text is cut to see how else the source might have read it.
_CUTS = 8


class SourceReader:
    """B growing texts in the source with its LoRA, and without, on caches that follow them.

    What is read first is a prompt, and its own tokens stand, as they do where the source reads it alone; an
    adapter may be far from sure of a prompt's words, and nobody goes on inside its last one. Behind it, which
    tokens stand is a matter of the text and of the target's own ends in it, not of what was read before: a
    text gives the same tokens however it was reached.

    Args:
        source: the model.
        lora: its adapter.
        gauge: of the source.
        target: the model that writes.
        rows: B.
        both: whether the texts are read without the LoRA as well.

    Attributes:
        transcripts: what the target's ids say.
    """

    def __init__(
        self,
        source: LanguageModel,
        lora: Lora,
        gauge: TokenGauge,
        target: LanguageModel,
        rows: int,
        *,
        both: bool,
    ) -> None:
        self._source, self._gauge = source, gauge
        self.transcripts = [Transcript(target) for _ in range(rows)]
        self._prompts: list[str | None] = [None] * rows
        # The weights are read once for both ways: the rows with the LoRA, then the same without.
        self._ways = 2 if both else 1
        self._stream = TokenStream(source, self._ways * rows, partial(applied, source, lora, first_half=both))

    @property
    def adapted(self) -> list[list[Tensor]]:
        """For each row and token that was read, the last residual h_L [d_s] with the LoRA."""
        return self._stream.states[: len(self.transcripts)]

    @property
    def plain(self) -> list[list[Tensor]]:
        """The same without it, where both are read."""
        return self._stream.states[len(self.transcripts) :]

    @property
    def passed(self) -> int:
        """Tokens that have run through the source so far, those of both ways."""
        return self._stream.passed

    def advance(self, rows: Sequence[Tokens | None]) -> None:
        """Read each row's tokens; a row given as None is left as it is."""
        ids = [None if tokens is None else tokens.ids for tokens in rows]
        self._stream.advance(ids * self._ways)

    def read(self, rows: Sequence[Sequence[int]]) -> list[Tokens]:
        """The source's tokens of each text, those left out that its next characters will probably change.

        Args:
            rows: for each text the target's ids so far; they may differ from the last ones anywhere.
        """
        for transcript, ids in zip(self.transcripts, rows, strict=True):
            transcript.read(ids)
        texts = [transcript.text for transcript in self.transcripts]
        own = tokens_of(self._source, texts)
        self._prompts = [
            text if prompt is None else prompt for text, prompt in zip(texts, self._prompts, strict=True)
        ]
        crossings = [
            [] if text == prompt else self._gauge.crossings(text, tokens)
            for text, prompt, tokens in zip(texts, self._prompts, own, strict=True)
        ]
        if any(crossings):
            self.advance(own)
        standing = [
            settled(tokens, found, cache(partial(self._log_probs, row))) if found else tokens
            for row, (tokens, found) in enumerate(zip(own, crossings, strict=True))
        ]
        return self._likeliest(own, standing, self.transcripts)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        count = len(self.transcripts)
        self._stream.select([way * count + row for way in range(self._ways) for row in rows])
        self.transcripts = [self.transcripts[row] for row in rows]
        self._prompts = [self._prompts[row] for row in rows]

    def log_probs(self, places: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
        """Log-probabilities [V] behind (row, token) places: with the LoRA and then, if read, without."""
        count = len(self.transcripts)
        ways = range(0, self._ways * count, count)
        said = self._stream.log_probs([(row + way, index) for row, index in places for way in ways])
        return [said[start : start + self._ways] for start in range(0, len(said), self._ways)]

    def _log_probs(self, row: int, index: int) -> Tensor:
        return self.log_probs([(row, index)])[0][0]

    def _likeliest(
        self, whole: Sequence[Tokens], standing: Sequence[Tokens], transcripts: Sequence[Transcript]
    ) -> list[Tokens]:
        """For each row the given tokens, or those of a cut at an end of the target's that explain it better.

        A target that writes `a` and `n` for the first half of a source's `a`, `ns` makes a text whose own
        last token is `an`: a place where the source, left to itself, would never stand.
        """
        choices, parting = [], []
        for tokens, stand, transcript, prompt in zip(
            whole, standing, transcripts, self._prompts, strict=True
        ):
            others = [] if transcript.text == prompt else self._cut(tokens, transcript)
            choices.append([stand, *others] if others else [])
            parting.append(min(common_prefix(found.ids, tokens.ids) for found in (stand, *others)))
        best = [(-math.inf, stand) for stand in standing]
        for turn in range(max(map(len, choices), default=0)):
            due = [found[turn] if turn < len(found) else None for found in choices]
            self.advance(due)
            for row, candidate in enumerate(due):
                if candidate is not None:
                    scored = self._scored(row, candidate, parting[row], transcripts[row].text)
                    best[row] = max(best[row], scored, key=lambda entry: entry[0])
        return [tokens for _, tokens in best]

    def _cut(self, whole: Tokens, transcript: Transcript) -> list[Tokens]:
        """Tokens of the text up to ends of the target's, where they are not the first of the whole text's."""
        text, texts = transcript.text, self._gauge.texts
        start = max(len(text) - texts.longest, 0)
        cuts = [end for end in transcript.ends[-_CUTS:] if start < end < len(text)]
        possible = [cut for cut in cuts if texts.beginning(text[cut:])]
        found = tokens_of(self._source, [text[:cut] for cut in possible])
        return [tokens for tokens in found if tokens.ids != whole.ids[: len(tokens)]]

    def _scored(self, row: int, tokens: Tokens, parting: int, text: str) -> tuple[float, Tokens]:
        """Log-probability of the text through tokens that were read, behind the first `parting` of them.

        With it the tokens, and one more where the rest of the text is likelier a whole token than a part.
        """
        score = sum(
            float(self._log_probs(row, index - 1)[tokens.ids[index]]) for index in range(parting, len(tokens))
        )
        rest = text[max(tokens.ends[-1], 0) :]
        if not rest:
            return score, tokens
        behind, texts = self._log_probs(row, len(tokens) - 1).cpu(), self._gauge.texts
        across, exact = torch.logsumexp(behind[texts.extending(rest)], 0), behind[texts.exactly(rest)]
        if len(exact) and exact.max() > across:
            last = int(texts.exactly(rest)[exact.argmax()])
            return score + float(exact.max()), Tokens((*tokens.ids, last), (*tokens.ends, len(text)))
        return score + float(across), tokens
