"""What an adapter makes of general text by itself: no prompt, no label, no word of its task.

The source with its adapter is asked in two ways: at the places of general text where the adapter acts most
(`cast.moments`), which suits a way to answer that text calls for anyway, and behind the cues of `cast.forms`,
found by what its kernels act on and what it is sure of, which suits a skill with a cue of its own. A first
few of the places tell whether the others are needed. Much of what it says is noise of an adapter far from
what it was made for.
What is kept is what it finished, what the base would not have said, and of that what it was surest of, in
the way that makes it surer, or on whose answers its kernels act clearly more: there it does what it was
taught (docs/experiments.md). Where forms have headings in common, a base model writes more like the best of
them (`cast.exemplary`). Behind cues a few answers come often and others hardly ever; forms like those of
the rare ones are asked as well. Where an adapter is unsure of all that it says, and its kernels act about
as much on what it writes unasked as on its best answers, it was taught how to write: that is read instead.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, cycle, islice

import torch
from torch import Tensor

from cast.adapters import Lora
from cast.corpus import Passage
from cast.exciting import ANSWER_TOKENS, CUT, answered, by_answer
from cast.exemplary import more_of_the_best
from cast.forms import (
    asking,
    heading_tokens,
    line_tokens,
    reading_tokens,
    similar,
    similar_tokens,
)
from cast.headwords import words_of
from cast.kernel_energy import answering_log_energy, speaking
from cast.models import LanguageModel, TokenBatch
from cast.moments import last, moments
from cast.progress import OnProgress, Progress, ignore
from cast.recipes import TranslationConfig
from cast.sureness import sureness

_BATCH = 32
# Nats by which the adapter must have made an answer more likely.
_CHANGED = 2.0
# All answers are kept that are as sure as this, in nats a token, and the surest, as many as a fit reads.
_SURE = -0.3
# So many texts are read for each place that is wanted; and such a share of the places, but so many at least,
# tells whether prose is the better way, for reading the odds of a whole vocabulary everywhere costs more than
# all else.
_READ, _FIRST_PLACES, _FEWEST = 2, 0.25, 16
# For each answer that a fit reads: how many places are cut and forms are made at most, how many texts are
# answered to compare the two ways (of prose the above share of that), and how many of the better one in all.
_PLACES, _FORMS, _TRIED, _ANSWERED = 2.5, 7, 0.6, 1.5
# How many times more of what is answered rarely is asked.
_TURNS = 3
# The better way is the one whose answers are surer at this rank, as a share of those to be tried, unless the
# other's have so much more log energy: a skill of labels that says one at any place says it most surely where
# the text has just said it.
_COMPARED, _CLEARLY = 1 / 6, 0.5
# Where even these are less sure than this, in nats a token, it may be an adapter of prose: no skill with an
# answer is so unsure of it, and of prose there are always many ways to go on. It is one if what it writes
# unasked has at most this much less log energy than its best answers, which stand where the kernels act most.
_AT_WILL, _AS_MUCH = -0.9, 0.2
# Draws that tell whether it is one. Each begins with the first words of a general text, or, of one without
# spaces, its first few characters: behind nothing at all a model may write what web pages begin with, markup
# or code.
_UNASKED = 40
_BEGINNING = re.compile(r"\S{1,20}(?:\s+\S{1,20})?")
_SAYS_SOMETHING = re.compile(r"\w")


@torch.no_grad()
def unprompted(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    texts: Sequence[str],
    config: TranslationConfig,
    *,
    on_progress: OnProgress = ignore,
) -> list[Passage]:
    """General text, as it is and in forms that ask for something, with what the adapted source says there.

    Or how it goes on behind their first words, where it is unsure of its answers and its kernels act as
    much then.

    Args:
        source: the adapter's model.
        target: the model that the adapter shall go to; it writes the lines of forms, and it or the source
            more like the best of them.
        lora: the adapter.
        texts: general text.
        config: `moments`, `forms`, `max_length`, `seed`, and how many answers a fit reads.
        on_progress: gets the stages `moments`, `forms`, `generate` and `judge`.

    Returns:
        Passages with answers, the surest first, or draws of the adapted source; none where it says nothing of
        its own.
    """
    wanted = _Wanted.of(config)
    # Of each text one place is taken.
    most = min(wanted.places, len(texts))
    first = min(most, math.ceil(max(_FEWEST, _FIRST_PLACES * most)))
    prose, cues = (_Way(source, lora, wanted.few(most), on_progress) for most in (first, wanted.forms))
    prose.add(_places(source, lora, texts[: _READ * first], first, config, on_progress))
    forms = asking(source, lora, target, texts, wanted.forms, seed=config.seed, on_progress=on_progress)
    cues.add(forms)
    for way in (prose, cues):
        way.answer(way.tried)
    if drawn := _of_prose(source, lora, prose, cues, texts, wanted.kept, config.seed, on_progress):
        return drawn
    like_them = more_of_the_best(
        source, lora, target, forms, wanted.answered,
        words=words_of(texts, source), seed=config.seed, on_progress=on_progress,
    )  # fmt: skip
    if len(like_them) >= wanted.tried:
        cues = _Way(source, lora, cues.tried, on_progress)
    cues.add(like_them)
    cues.tried = max(_FEWEST, min(wanted.tried, wanted.forms))
    cues.answer(cues.tried - cues.asked)
    best = _better(source, lora, (prose, cues), on_progress)
    if best is prose:
        others = texts[_READ * first : _READ * most]
        best.add(_places(source, lora, others, most - first, config, on_progress))
    best.answer(wanted.answered - best.asked)
    if best is cues:
        for turn in range(_TURNS):
            more = partial(similar, target, seed=config.seed + turn, on_progress=on_progress)
            best.even(wanted.kept, more)
    kept = max(wanted.kept, sum(nats > _SURE for nats, _ in best.sure))
    return best.surest(kept)


@dataclass(frozen=True)
class _Wanted:
    """How much is asked for a fit that reads so many answers."""

    places: int
    forms: int
    tried: int
    answered: int
    kept: int

    @classmethod
    def of(cls, config: TranslationConfig) -> "_Wanted":
        read = config.lessons * config.answers_a_batch
        places = min(config.moments, math.ceil(_PLACES * read))
        forms = min(config.forms, _FORMS * read)
        return cls(places, forms, math.ceil(_TRIED * read), math.ceil(_ANSWERED * read), read)

    def few(self, most: int) -> int:
        """How many tell of a way whether the others are needed, where there are so many at most."""
        return math.ceil(max(_FEWEST, min(most, _FIRST_PLACES * self.tried)))


class _Way:
    """One way to ask: the answers worth keeping, the surest first.

    `tried` is how many should be asked to tell how sure it is, `asked` counts the texts that were answered,
    and `own` those whose answer the base would not give.
    """

    def __init__(self, source: LanguageModel, lora: Lora, tried: int, on_progress: OnProgress) -> None:
        self._source, self._lora, self._on_progress = source, lora, on_progress
        self.tried = tried
        self._waiting: dict[str, float] = {}
        self._heard: set[str] = set()
        self.sure: list[tuple[float, Passage]] = []
        self.asked = self.own = 0

    def add(self, promise: Mapping[str, float]) -> None:
        """Texts to ask, with what they promise: by sureness in prose, by energy behind cues."""
        self._waiting |= {text: promise[text] for text in self._new(list(promise))}

    def _new(self, texts: Sequence[str]) -> list[str]:
        """Those that were not heard yet, and that leave room for an answer."""
        return _with_room(self._source, [text for text in texts if text not in self._heard])

    def answer(self, count: int) -> None:
        """Answer the texts that promise most, so many of those that wait."""
        texts = sorted(self._waiting, key=self._waiting.__getitem__, reverse=True)[: max(0, count)]
        for text in texts:
            del self._waiting[text]
        self._hear(texts)

    def even(self, wanted: int, similar: Callable[[list[tuple[list[str], int]]], list[str]]) -> None:
        """Ask more of what is answered rarely, until each answer that is no noise comes about as often."""
        groups = by_answer([passage for _, passage in self.sure]).values()
        missing = [
            ([passage.text[: passage.answer] for passage in group], wanted // len(groups) - len(group))
            for group in groups
        ]
        if asked := [(prompts, count) for prompts, count in missing if count > 0]:
            self._hear(self._new(similar(asked)))

    def _hear(self, texts: Sequence[str]) -> None:
        self._heard.update(texts)
        self.asked += len(texts)
        said = answered(self._source, self._lora, texts, on_progress=self._on_progress)
        for nats, passage, ended in _judged(self._source, self._lora, said, self._on_progress):
            self.own += 1
            if ended and _SAYS_SOMETHING.search(passage.text, _start(passage)):
                self.sure.append((nats, passage))
        self.sure.sort(key=lambda pair: pair[0], reverse=True)

    def surest(self, count: int) -> list[Passage]:
        """So many of the answers, the surest first."""
        return [passage for _, passage in self.sure[:count]]

    @property
    def rank(self) -> int:
        """How many of the surest answers ways are compared by: a share of what should be tried."""
        return math.ceil(_COMPARED * self.tried)

    def sureness(self) -> tuple[float, int]:
        """How sure it is at that rank; too few answers are worth next to nothing."""
        count = len(self.sure)
        return (self.sure[self.rank - 1][0] if 0 < self.rank <= count else -math.inf, count)


def asking_tokens(config: TranslationConfig, length: int, vocabulary: int) -> tuple[int, int, int]:
    """About how many tokens the source reads or writes, the target writes, and one of them, for `unprompted`.

    Args:
        config: `moments`, `forms`, and what tells how many answers a fit reads.
        length: tokens of a text.
        vocabulary: entries of the source's.
    """
    wanted, texts = _Wanted.of(config), config.steps_a_round * config.batch_size
    # Where there are cues, they are mostly the better way, and the first places all that is read of prose.
    share, asked = (_FIRST_PLACES, wanted.tried) if wanted.forms else (1, wanted.answered)
    places, few = math.ceil(share * min(wanted.places, texts)), math.ceil(share * asked)
    # With the adapter and without.
    read = 2 * (min(_READ * places, texts) + places)
    # Written once, and judged both ways. What is answered rarely is about a third of what is kept, in each
    # turn.
    rare = _TURNS * min(wanted.kept, wanted.forms) // 3
    # A few forms are answered before more is written like them, and then that is answered.
    answered = 3 * (min(few, places) + min(few, wanted.forms) + min(wanted.answered, wanted.forms) + rare)
    like_them = min(wanted.answered, wanted.forms)
    written = line_tokens(wanted.forms) + similar_tokens(rare)
    found = heading_tokens(vocabulary) if wanted.forms else 0
    told = reading_tokens(wanted.forms, length) + (read + like_them) * length
    heard = told + answered * (length + ANSWER_TOKENS // 4)
    return found + heard, written, similar_tokens(like_them)


def _places(
    source: LanguageModel,
    lora: Lora,
    texts: Sequence[str],
    count: int,
    config: TranslationConfig,
    on_progress: OnProgress,
) -> dict[str, float]:
    """The places of these texts where the adapter acts most, and how sure it is there of what to say."""
    found = moments(source, lora, texts, count, max_length=config.max_length, on_progress=on_progress)
    nats = sureness(source, lora, found, on_progress=on_progress)
    return {place: sure for place, sure in zip(found, nats, strict=True) if sure > -math.inf}


def _better(source: LanguageModel, lora: Lora, ways: Sequence[_Way], on_progress: OnProgress) -> _Way:
    """The surer way, or the other if it does not guess and the kernels act clearly more on what it says."""
    surer, other = sorted(ways, key=_Way.sureness, reverse=True)
    if other.sureness()[0] < _AT_WILL:
        return surer
    energies = [_energy(source, lora, way.surest(way.rank), on_progress) for way in (surer, other)]
    return other if energies[1] > energies[0] + _CLEARLY else surer


def _of_prose(
    source: LanguageModel,
    lora: Lora,
    prose: _Way,
    cues: _Way,
    texts: Sequence[str],
    count: int,
    seed: int,
    on_progress: OnProgress,
) -> list[Passage]:
    """What it writes without being asked, if it was taught how to write rather than what to answer."""
    best = max(prose, cues, key=_Way.sureness)
    nats, _ = best.sureness()
    if nats >= _AT_WILL or prose.own + cues.own < _COMPARED * (prose.tried + cues.tried):
        return []
    found = [beginning.group() for text in texts if (beginning := _BEGINNING.search(text))]
    openings = list(islice(cycle(_with_room(source, found)), count))
    drawn = _unasked(source, lora, openings[:_UNASKED], seed, on_progress)
    compared = (drawn, best.surest(len(drawn)))
    unasked, answering = (_energy(source, lora, some, on_progress) for some in compared)
    if unasked == -math.inf or unasked < answering - _AS_MUCH:
        return []
    return [*drawn, *_unasked(source, lora, openings[_UNASKED:], seed + 1, on_progress)]


def _unasked(
    source: LanguageModel, lora: Lora, openings: Sequence[str], seed: int, on_progress: OnProgress
) -> list[Passage]:
    """Draws that begin with such words, all as the adapter's own; without those that say nothing more."""
    drawn = answered(source, lora, openings, temperature=1.0, seed=seed, on_progress=on_progress)
    more = [passage for passage in drawn if _SAYS_SOMETHING.search(passage.text, _start(passage))]
    return [replace(passage, answer=0) for passage in more]


def _with_room(source: LanguageModel, texts: Sequence[str]) -> list[str]:
    """The texts that leave room for an answer."""
    return list(compress(texts, source.holds(texts, ANSWER_TOKENS)))


def _energy(source: LanguageModel, lora: Lora, answers: Sequence[Passage], on_progress: OnProgress) -> float:
    """How much the kernels act where these answers are said, in the mean; nothing is less than any."""
    energies = answering_log_energy(source, speaking(lora), answers, on_progress=on_progress)
    found = [energy for energy in energies if energy > -math.inf]
    return sum(found) / len(found) if found else -math.inf


def _judged(
    source: LanguageModel, lora: Lora, said: Sequence[Passage], on_progress: OnProgress
) -> Iterator[tuple[float, Passage, bool]]:
    """The answers that the base would not give: how sure the source is, in nats a token; whether it ended."""
    for start in range(0, len(said), _BATCH):
        on_progress(Progress("judge", start, len(said)))
        some = said[start : start + _BATCH]
        tokens = source.encode([passage.text for passage in some])
        starts = torch.tensor([_start(passage) for passage in some])
        rows, positions = (tokens.ends[:, 1:] > starts[:, None]).nonzero(as_tuple=True)
        after, before = (
            _spoken(source, last(source, tokens, side), tokens, rows, positions) for side in (lora, None)
        )
        for row, passage in enumerate(some):
            own = rows == row
            if float((after - before)[own].sum()) > _CHANGED:
                yield float(after[own].mean()), passage, int(own.sum()) < CUT


def _spoken(
    source: LanguageModel, states: Tensor, tokens: TokenBatch, rows: Tensor, positions: Tensor
) -> Tensor:
    """Log-probabilities [N] of the tokens behind the given positions."""
    found = []
    for some, places in source.portions(rows, positions):
        logits = source.architecture.logits(states[some, places]).float().log_softmax(-1)
        following = tokens.input_ids[some, places + 1].to(logits.device)
        found.append(logits.gather(-1, following[:, None])[:, 0])
    return torch.cat(found).cpu() if found else torch.zeros(0)


def _start(passage: Passage) -> int:
    assert passage.answer is not None
    return passage.answer
