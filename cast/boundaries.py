"""Where a source token of the finished text will end, seen while the text is still being written.

A text cut anywhere can be tokenized, but its last tokens may not survive the next characters: after ` ha` a
tokenizer that knows ` happy` has nothing of its own to stand on, and a change taken from there breaks the
word. So the end of the text so far counts as a *settled* end only if the source itself, reading its own
tokens, finds it likelier that a token ends there than that one runs across it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.models import LanguageModel
from cast.token_texts import TokenTexts


@dataclass(frozen=True)
class Tokens:
    """One text as the tokens of a model.

    Attributes:
        ids: with the BOS in front.
        ends: for each id the character of the text at which it ends; -1 for the BOS and other special tokens.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        """Number of tokens, the BOS counted."""
        return len(self.ids)

    def first(self, count: int) -> "Tokens":
        """The first `count` tokens."""
        return Tokens(self.ids[:count], self.ends[:count])


def tokens_of(lm: LanguageModel, texts: Sequence[str]) -> list[Tokens]:
    """Each text as the model's own tokens."""
    return [Tokens(tuple(ids), tuple(ends)) for ids, ends in zip(*lm.tokens(texts), strict=True)]


class TokenGauge:
    """Knows which tokens of a model may run across the end of a text."""

    def __init__(self, lm: LanguageModel) -> None:
        self.texts = TokenTexts(lm)

    def crossings(self, text: str, tokens: Tokens) -> list[tuple[int, Tensor]]:
        """The tokens that may run across the end of a text.

        Returns:
            Pairs (k, ids [m]), last k first: behind the first k+1 tokens of the text, each of the ids writes
            the rest of the text and goes on.
        """
        end, found = tokens.ends[-1], []
        # A tokenizer that puts a space before every text shows it in the first token only.
        lead = " " if len(tokens) > 1 and self._text(tokens.ids[1]) == " " + text[: tokens.ends[1]] else ""
        for index in reversed(range(len(tokens) - 1)):
            start = max(tokens.ends[index], 0)
            if end - start >= self.texts.longest or (tokens.ends[index] < 0 < index):
                break  # No token is that long; none runs across a special token.
            if start < end and start != tokens.ends[index + 1]:  # Else the character is not yet whole.
                ids = self.texts.extending((lead if index == 0 else "") + text[start:end])
                if len(ids):
                    found.append((index, ids))
        return found

    def _text(self, token: int) -> str:
        texts = self.texts.by_token
        return texts[token] if token < len(texts) else ""


def settled(
    tokens: Tokens, crossings: Sequence[tuple[int, Tensor]], log_probs: Callable[[int], Tensor]
) -> Tokens:
    """Leave out the last tokens of an unfinished text that a longer token will probably swallow.

    With u the tokens of the text and m the last, the text's end is inside a token with odds
    Σ_k P(some token across the end | u_≤k) / P(u_k+1 … u_m | u_≤k), and settled if they are at most even.

    Args:
        tokens: the text so far.
        crossings: what `TokenGauge.crossings` found.
        log_probs: index of a token → the next token's log-probabilities [V] there.

    Returns:
        All tokens, or those before the likeliest crossing token.
    """
    odds: dict[int, float] = {}
    path, behind = 0.0, len(tokens) - 1  # log P(u_behind+1 … u_m | u_≤behind)
    for index, ids in crossings:
        while behind > index:
            behind -= 1
            path += float(log_probs(behind)[tokens.ids[behind + 1]])
        across = float(torch.logsumexp(log_probs(index)[ids.to(log_probs(index).device)], 0))
        odds[index] = math.exp(min(across - path, 700.0))
    if sum(odds.values()) <= 1.0:
        return tokens
    return tokens.first(max(odds, key=odds.__getitem__) + 1)
