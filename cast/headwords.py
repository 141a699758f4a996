"""Words that new prompts may begin with, so that they are about many things, and fitting ones."""

import re
from collections.abc import Sequence

import torch

from cast.models import LanguageModel
from cast.runners import PlainRunner
from cast.scoring import next_log_probs

_WORD = re.compile(r"\b[^\W\d_]{4,}\b")
_WORD_OF_VOCABULARY = re.compile(r" [^\W\d_]{4,}")
# Share of the words that are taken, and how many are taken at least; more must differ in their first tokens.
_SUITING, _FEWEST = 0.2, 100
_BATCH = 4


def words_of(texts: Sequence[str], lm: LanguageModel) -> list[str]:
    """The distinct longer words of texts, in the order in which they come, and those of a vocabulary.

    Texts are about a few things; a vocabulary holds the words of everything that was ever written.
    """
    own = (text[1:] for text in lm.token_texts if _WORD_OF_VOCABULARY.fullmatch(text) and text.islower())
    return list(dict.fromkeys([*(word.lower() for text in texts for word in _WORD.findall(text)), *own]))


def suiting(
    writer: LanguageModel, groups: Sequence[Sequence[str]], start: str, words: Sequence[str]
) -> list[list[str]]:
    """The words that a model expects behind examples much more than without them, the best first.

    Examples that begin with animals' and tools' names call for more such names, where most words of a
    vocabulary are verbs, adjectives and beginnings of words. Judged by a word's first token: the mean of its
    probability over the examples, against that without any.

    Args:
        writer: the model.
        groups: examples that belong together, as they stand before a new one.
        start: how each example begins. Without a common beginning a word is the first of any text, and a
            model's first words tell little.
        words: as they shall stand behind `start`.

    Returns:
        For each group a fifth of the words, but a hundred at least; all where they cannot be told apart so:
        where `start` is blank, where it runs into the words' first tokens, or where examples fill the
        model's context.
    """
    # A blank start leaves none to tell apart, nor does one that fills the context by itself.
    firsts = _first_tokens(writer, start, words) if start.strip() else {}
    if len(set(firsts.values())) <= _FEWEST:
        return [list(words) for _ in groups]
    runner, opening = PlainRunner(writer), start.rstrip(" ")
    alone = next_log_probs(runner, [opening])[0]
    found = []
    for shown in groups:
        if not all(writer.holds([some + start for some in shown])):
            found.append(list(words))
            continue
        read = [some + opening for some in shown]
        portions = [read[at : at + _BATCH] for at in range(0, len(read), _BATCH)]
        behind = torch.cat([next_log_probs(runner, some) for some in portions]).logsumexp(0)
        gain = (behind - alone).tolist()
        ranked = sorted(firsts, key=lambda word: gain[firsts[word]], reverse=True)
        found.append(ranked[: max(_FEWEST, round(_SUITING * len(words)))])
    return found


def _first_tokens(writer: LanguageModel, start: str, words: Sequence[str]) -> dict[str, int]:
    """The first token of each word behind `start`; without those that run into it."""
    begun = writer.tokens([start.rstrip(" ")])[0][0]
    return {
        word: ids[len(begun)]
        for word, ids in zip(words, writer.tokens([start + word for word in words])[0], strict=True)
        if ids[: len(begun)] == begun and len(ids) > len(begun)
    }
