"""General text in the forms in which people ask a model for something: records, entries, a cue behind a text.

A skill that was taught behind a cue of its own hardly shows in prose. It does show behind cues that are like
it, and of those there are few kinds: a heading with a colon, or a word in brackets with a sign. Both are made
of what every model knows; nothing of a task is needed. Which headings, in which places, and which words
records are about is read off the adapter: its kernels act most on what it was trained on
(`cast.kernel_energy`). Signs are few and alike; behind its own it is surest of what to say (`cast.sureness`).
What it says there: `cast.unprompted`.
"""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from cast.adapters import Lora
from cast.exciting import SEPARATOR, SHOTS
from cast.generation import generate_many
from cast.headwords import words_of
from cast.kernel_energy import log_energy_at_ends, mean_log_energy, speaking
from cast.models import LanguageModel
from cast.progress import OnProgress, ignore
from cast.runners import PlainRunner
from cast.sureness import sureness

_BATCH = 64
_HEADING = re.compile(r" ?[A-Z][a-z]{2,}")
# Of so many words of a vocabulary, the first of which are common, so many are taken for headings. So many
# words, of the texts and the vocabulary, are tried as what a record is about.
_CANDIDATES, _HEADINGS, _WORDS = 10_000, 64, 10_000
# Places of headings in a record, in the order in which headings are looked for that suit them; each that was
# chosen before the others were known is looked for again. With how many bodies each is tried.
_PLACES, _BODIES_TRIED = ("last", "second", "first", "second", "last"), 4
# A heading or word whose energy is a standard deviation above another's is drawn e to this power as often.
_PREFERENCE = 1.5
# A deviation of log energies below this is that of rounding.
_ALIKE = 1e-3
_BRACKETS = ("[]", "<>", "()", "{}", "**", '""', "__", "#", "@", "")
_SIGNS = ("->", "=>", "=", ":", ">", "#", "@", "~", "-", "|", "?", ".", "")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SENTENCE_LENGTHS = range(15, 200)
# How often each frame, body and kind of cue is drawn at first.
_FRAMES = {"text": 0.45, "record": 0.3, "entry": 0.1, "headed": 0.1, "instruction": 0.05}
_CUES = {"heading": 0.5, "sign": 0.5}
_BODIES = {"passage": 0.7, "sentence": 0.3}
# To the tries of a part so many more are added, of which the usual share was good.
_PRIOR = 4.0
_ROUNDS = 4
# Share of the forms that are good: those whose ends have the most energy. But what merely resembles an
# adapter's own sign may excite it more: of those with a sign it is the surer half of twice as many.
_EXCITING = 0.2
_HEARD, _SURER = 2 * _EXCITING, 0.5
_OF_SIGNS = frozenset({"brackets", "sign"})
_LINE_TOKENS, _LINE_CHARACTERS, _TEMPERATURE = 40, 200, 0.7
_OPENING_TOKENS = 8
# The last line of a form, behind which it is answered.
_CUE = re.compile(r"\n+[^\n]+\n?\Z")
_BODY_TOKENS = 64
# About how many entries of a vocabulary there are for each that may be a heading, and for each word of a text
# and the vocabulary; and tokens of a heading.
_ENTRIES_A_HEADING, _ENTRIES_A_WORD, _HEADING_TOKENS = 5, 2, 4


def headings(
    lm: LanguageModel, lora: Lora, count: int = _HEADINGS, *, on_progress: OnProgress = ignore
) -> list[str]:
    """The words of the vocabulary on which the adapter acts most as headings, the strongest first."""
    known = (text.strip() for text in lm.token_texts if _HEADING.fullmatch(text))
    words = list(dict.fromkeys(known))[:_CANDIDATES]
    energies = mean_log_energy(lm, lora, [f"\n{word}:" for word in words], on_progress=on_progress)
    return sorted(words, key=dict(zip(words, energies, strict=True)).__getitem__, reverse=True)[:count]


def suiting_headings(
    lm: LanguageModel,
    lora: Lora,
    heads: Sequence[str],
    bodies: Sequence[tuple[str, str]],
    *,
    on_progress: OnProgress = ignore,
) -> dict[str, dict[str, float]]:
    """How often each heading shall be drawn for each place of a record, the best being in the others.

    Args:
        lm: the adapter's model.
        lora: the adapter.
        heads: headings, at least one.
        bodies: words and lines of a few records, the same for each heading.
        on_progress: gets the stage `forms`.

    Returns:
        For the places `first`, `second` and `last` each heading's weight; 1 of the best.
    """
    best, weights, cues = dict.fromkeys(_PLACES, heads[0]), {}, speaking(lora)
    for place in _PLACES:
        tried = [best | {place: head} for head in heads]
        records = [
            f"{record['first']}: {word}\n{record['second']}: {line}\n{record['last']}:"
            for record in tried for word, line in bodies
        ]  # fmt: skip
        found = torch.tensor(log_energy_at_ends(lm, cues, records, on_progress=on_progress))
        weights[place] = _preferred(heads, found.view(len(heads), -1).mean(1))
        best[place] = _best(weights[place])
    return weights


def suiting_words(
    lm: LanguageModel,
    lora: Lora,
    heads: tuple[str, str],
    words: Sequence[str],
    *,
    on_progress: OnProgress = ignore,
) -> dict[str, float]:
    """How often each word shall be drawn for records: by the energy where a line is to be said about it.

    Args:
        lm: the adapter's model.
        lora: the adapter.
        heads: the headings of a word and of its line.
        words: at least one.
        on_progress: gets the stage `forms`.

    Returns:
        Each word's weight; 1 of the best.
    """
    first, second = heads
    openings = [f"{first}: {word}\n{second}:" for word in words]
    return _preferred(words, torch.tensor(log_energy_at_ends(lm, lora, openings, on_progress=on_progress)))


def _preferred(values: Sequence[str], energies: Tensor) -> dict[str, float]:
    """Weights by which values with these log energies are drawn; 1 of the best."""
    # Of values that are all alike none is preferred for what rounding makes of it.
    scale = energies.std(correction=0).clamp_min(_ALIKE)
    drawn = ((energies - energies.max()) * _PREFERENCE / scale).exp()
    return dict(zip(values, drawn.tolist(), strict=True))


def _others(weights: Mapping[str, float], given: Set[str]) -> Mapping[str, float]:
    """The weights without those of given values, or as they are where there are no others."""
    return {value: weight for value, weight in weights.items() if value not in given} or weights


def _best(weights: Mapping[str, float]) -> str:
    return max(weights, key=weights.__getitem__)


def heading_tokens(vocabulary: int) -> int:
    """About how many tokens a model with so many entries reads to find headings, their places and words."""
    heads = min(_CANDIDATES, vocabulary // _ENTRIES_A_HEADING)
    words = min(_WORDS, vocabulary // _ENTRIES_A_WORD)
    tried = len(_PLACES) * min(_HEADINGS, heads) * _BODIES_TRIED
    return heads * _HEADING_TOKENS + words * _OPENING_TOKENS + tried * _BODY_TOKENS // 2


def reading_tokens(count: int, length: int) -> int:
    """About how many tokens the adapter's model reads to tell so many forms of such a length apart."""
    signed = (1 - _FRAMES["instruction"] / sum(_FRAMES.values())) * _CUES["sign"] / sum(_CUES.values())
    # By the kernels once, and with the adapter and without behind the signs that are compared.
    return round(count * length * (1 + 2 * _HEARD * signed))


def line_tokens(count: int) -> int:
    """About how many tokens a writer reads and writes for so many forms."""
    missing = (_FRAMES["record"] + _FRAMES["entry"]) / sum(_FRAMES.values())
    return round(count * missing * (_OPENING_TOKENS + _LINE_TOKENS / 2))


def similar_tokens(count: int) -> int:
    """About how many tokens a writer reads and writes for so many similar forms."""
    return count * (SHOTS + 1) * _BODY_TOKENS // 2


def similar(
    writer: LanguageModel,
    groups: Sequence[tuple[Sequence[str], int]],
    *,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> list[str]:
    """New forms like those of each group: a model goes on behind a few of one.

    Args:
        writer: a model without an adapter.
        groups: forms that have something in common, and how many more are tried.
        seed: of all that is drawn.
        on_progress: gets the stage `generate`.

    Returns:
        Distinct forms that are in no group.
    """
    order, known = random.Random(seed), {form for group, _ in groups for form in group}
    shown = [order.sample(group, min(SHOTS, len(group))) for group, count in groups for _ in range(count)]
    prompts = [_shown(writer, some) for some in shown]
    fits = writer.holds(prompts)
    shown = list(compress(shown, fits))
    written = generate_many(
        PlainRunner(writer), list(compress(prompts, fits)), max_new_tokens=_BODY_TOKENS, stop=SEPARATOR,
        temperature=_TEMPERATURE, seed=seed, batch_size=_BATCH, on_progress=on_progress,
    )  # fmt: skip
    made = [
        text.strip() + _parted(some[-1])[1] for text, some in zip(written, shown, strict=True) if text.strip()
    ]
    return [form for form in dict.fromkeys(made) if form not in known]


def _shown(writer: LanguageModel, forms: Sequence[str]) -> str:
    """Bodies as examples, as many of the last as leave room to write."""
    bodies = [_parted(form)[0] for form in forms]
    while True:
        text = SEPARATOR.join([*bodies, ""])
        if len(bodies) == 1 or all(writer.holds([text], _BODY_TOKENS)):
            return text
        bodies = bodies[1:]


def _parted(form: str) -> tuple[str, str]:
    """A form's body and its cue."""
    cue = _CUE.search(form)
    return (form[: cue.start()], cue.group()) if cue else (form, "")


@dataclass(frozen=True)
class _Form:
    """A text that asks for something; where its opening ends in a colon, a line is missing behind it."""

    opening: str
    ending: str
    parts: tuple[tuple[str, str], ...]
    """What was drawn for it: (part, value)."""

    @property
    def has_sign(self) -> bool:
        """Whether its cue is a word with a sign."""
        return any(part in _OF_SIGNS for part, _ in self.parts)


def asking(
    reader: LanguageModel,
    lora: Lora,
    writer: LanguageModel,
    texts: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> dict[str, float]:
    """General text in forms that ask for something, with the energy of their ends (`cast.kernel_energy`).

    It is the energy of the kernels that speak. Headings are drawn by that which records with them have, words
    of records by that of all kernels where a line is to follow. In rounds, and each but the first is drawn by
    what was found in those before too: a frame or a heading comes the more often, the more of the forms with
    it had much energy, a sign, the more of them the adapter was sure behind (as in the cross-entropy method,
    Rubinstein 1999).

    Args:
        reader: the adapter's model, whose vocabulary gives words and headings.
        lora: the adapter.
        writer: writes the lines of records and entries behind their headings and words.
        texts: general text.
        count: how many are made; some come out alike, or empty, and are left out.
        seed: of all that is drawn.
        on_progress: gets the stages `forms` and `generate`.
    """
    found: dict[str, float] = {}
    if not texts or not count:
        return found
    cues = speaking(lora)
    heads = headings(reader, lora, on_progress=on_progress) or ["Text"]
    order, words = random.Random(seed), words_of(texts, reader) or heads
    draw = _Draw(order, texts, words)
    weights = suiting_headings(reader, lora, heads, draw.bodies(_BODIES_TRIED), on_progress=on_progress)
    second = _best(weights["second"])
    record = _best(_others(weights["first"], {second})), second
    some = order.sample(words, min(_WORDS, len(words)))
    draw.prefer(weights, suiting_words(reader, lora, record, some, on_progress=on_progress))
    for turn in range(_ROUNDS):
        forms = [draw.form() for _ in range(count // _ROUNDS)]
        made = _written(writer, forms, seed + turn, on_progress)
        energies = dict(
            zip(made, log_energy_at_ends(reader, cues, list(made), on_progress=on_progress), strict=True)
        )
        found |= energies
        draw.learn(made, _most(energies, _EXCITING))
        signed = {text: form for text, form in made.items() if form.has_sign}
        energies = {text: energies[text] for text in signed}
        draw.learn_signs(signed, _surer(reader, lora, energies, on_progress))
    return found


def _surer(
    reader: LanguageModel, lora: Lora, energies: Mapping[str, float], on_progress: OnProgress
) -> Set[str]:
    """Of these forms those with much energy behind which the adapter is surest of a word of its own."""
    heard = sorted(energies, key=energies.__getitem__, reverse=True)[: round(_HEARD * len(energies))]
    sure = sureness(reader, lora, heard, on_progress=on_progress)
    return _most(dict(zip(heard, sure, strict=True)), _SURER)


def _most(values: Mapping[str, float], share: float) -> Set[str]:
    """The texts with the largest values, such a share of all; where the next has as much, fewer."""
    rest = sorted(values.values(), reverse=True)[round(share * len(values)) :]
    return {text for text, value in values.items() if rest and value > rest[0]}


def _written(
    writer: LanguageModel, forms: Sequence[_Form], seed: int, on_progress: OnProgress
) -> dict[str, _Form]:
    """The texts of forms, with their missing lines; one whose line stays empty, or runs on, is left out."""
    openings = [form.opening for form in forms if form.opening.endswith(":")]
    lines = iter(
        generate_many(
            PlainRunner(writer), openings, max_new_tokens=_LINE_TOKENS, stop="\n",
            temperature=_TEMPERATURE, seed=seed, batch_size=_BATCH, on_progress=on_progress,
        )
    )  # fmt: skip
    made = {}
    for form in forms:
        line = next(lines).rstrip() if form.opening.endswith(":") else None
        if line is None or 1 < len(line) < _LINE_CHARACTERS:
            made[form.opening + (line or "") + form.ending] = form
    return made


class _Draw:
    """Draws forms from parts, each the more often, the more of the forms with it were found to be good."""

    def __init__(self, order: random.Random, texts: Sequence[str], words: Sequence[str]) -> None:
        self._order, self._texts = order, texts
        sentences = (sentence for text in texts for sentence in _SENTENCE_END.split(text))
        self._sentences = [one for one in sentences if len(one) in _SENTENCE_LENGTHS] or list(texts)
        self._words = words
        # Words are too many for a few thousand forms to tell which of them excite the adapter.
        self._preferred: dict[str, float] = {}
        self.weights: dict[str, dict[str, float]] = {
            "frame": dict(_FRAMES),
            "body": dict(_BODIES),
            "cue": dict(_CUES),
            "brackets": dict.fromkeys(_BRACKETS, 1.0),
            "sign": dict.fromkeys(_SIGNS, 1.0),
        }

    def bodies(self, count: int) -> list[tuple[str, str]]:
        """Words and lines of records."""
        lines = (self._order.choice(self._sentences)[:_LINE_CHARACTERS] for _ in range(count))
        return [(self._word(), line) for line in lines]

    def prefer(self, heads: Mapping[str, dict[str, float]], words: dict[str, float]) -> None:
        """Draw headings for each place, and words of records, by these weights."""
        self.weights |= heads
        self._preferred = words

    def learn(self, forms: Mapping[str, _Form], exciting: Set[str]) -> None:
        """Draw all but signs from now on by which of these forms excite the adapter."""
        self._learn(forms, exciting, self.weights.keys() - _OF_SIGNS)

    def learn_signs(self, forms: Mapping[str, _Form], sure: Set[str]) -> None:
        """Draw signs from now on by which of these forms the adapter is sure behind."""
        self._learn(forms, sure, _OF_SIGNS)

    def _learn(self, forms: Mapping[str, _Form], good: Set[str], parts: Set[str]) -> None:
        if not good:
            return
        tried: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for text, form in forms.items():
            for drawn in form.parts:
                tried[drawn].append(text in good)
        for part in parts:
            weights = self.weights[part]
            for value in weights:
                outcomes = tried[part, value]
                rate = (sum(outcomes) + _PRIOR * _EXCITING) / (len(outcomes) + _PRIOR)
                weights[value] *= rate / _EXCITING

    def form(self) -> _Form:
        """The next one."""
        parts: list[tuple[str, str]] = []
        frame = self._drawn("frame", parts)
        if frame == "instruction":
            # As widely used templates have it, the cue is a line of its own.
            opening = f"### {self._drawn('first', parts)}:\n{self._text(parts)}"
            return _Form(opening, f"\n\n### {self._drawn('last', parts)}:\n", tuple(parts))
        if frame == "record":
            first, word = self._drawn("first", parts), self._one_of(self._preferred)
            opening = f"{first}: {self._cased(word)}\n{self._drawn('second', parts)}:"
        elif frame == "entry":
            opening = f"{self._word()}:"
        elif frame == "headed":
            opening = f"{self._drawn('first', parts)}: {self._text(parts)}"
        else:
            opening = self._text(parts)
        return _Form(opening, f"\n{self._cue(parts)}", tuple(parts))

    def _cue(self, parts: list[tuple[str, str]]) -> str:
        if self._drawn("cue", parts) == "heading":
            return f"{self._drawn('last', parts)}:"
        brackets = self._drawn("brackets", parts)
        sign = self._drawn("sign", parts)
        return f"{brackets[:1]}{self._order.choice(self._words)}{brackets[1:]} {sign}".strip()

    def _drawn(self, part: str, parts: list[tuple[str, str]]) -> str:
        # Nobody gives two lines of a record one name; of such a model writes the first line again.
        given = {value for place, value in parts if place in _PLACES}
        value = self._one_of(_others(self.weights[part], given))
        parts.append((part, value))
        return value

    def _one_of(self, weights: Mapping[str, float]) -> str:
        (value,) = self._order.choices(list(weights), list(weights.values()))
        return value

    def _text(self, parts: list[tuple[str, str]]) -> str:
        pool = self._sentences if self._drawn("body", parts) == "sentence" else self._texts
        # A form whose line is not missing must not look as if it were.
        return self._order.choice(pool).rstrip(": ")

    def _word(self) -> str:
        return self._cased(self._order.choice(self._words))

    def _cased(self, word: str) -> str:
        return word.capitalize() if self._order.random() < 0.25 else word
