"""Text that excites an adapter: example prompts without answers, made more, and answered by the source.

A few prompts tell what the adapter listens to. A base model writes more of the kind, the one of the pair that
knows such text better; what does not take up their form gets their common ending, such as a line `Answer:`.
Behind each the source with its adapter goes on, so that a fit reads what it answers too. No label is needed
anywhere.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from cast.adapters import Lora
from cast.corpus import Passage
from cast.generation import generate_many
from cast.headwords import suiting
from cast.models import LanguageModel
from cast.progress import OnProgress, ignore
from cast.runners import PlainRunner
from cast.scoring import completion_log_probs

# Shown to the base model at once; more leave small contexts no room to write.
SHOTS = 3
SEPARATOR = "\n\n"
ANSWER_TOKENS = 64
CUT = 58
"""An answer of so many tokens or more was cut, and one of fewer has ended by itself. Read again, one that was
cut may be a few shorter than it was written."""
_BATCH = 32
# A new prompt is at most so many times as long as the longest example, and at least so many times as long as
# the shortest, in characters.
_LONGER = 1.5
_SHORTER = 0.5
# Times that new ones are asked for at most behind examples, and times that follow in which the rest are asked
# for from an example's beginning.
_NEW_TURNS, _TURNS = 3, 4
# Share of all prompts that are there after each round. Some answers are much easier to provoke than others,
# so what falls short is seen only behind each.
_ROUNDS = (0.4, 0.55, 0.7, 0.85, 1.0)
# More answers than these are not those of a few kinds.
_MOST_KINDS = 16
# Their words make new ones differ enough; hotter, a small model loses the form.
_NEW_TEMPERATURE, _WITH_WORD = 0.7, 0.75
# How many draws of examples tell which words suit them.
_DRAWS = 16


def best_writer(models: Sequence[LanguageModel], prompts: Sequence[str]) -> LanguageModel:
    """The model to which examples are least new: that with the fewest nats for them, the first of equals.

    Of thousands of prompts, which need no more, the first few tell as much.
    """
    texts = [("", prompt) for prompt in prompts[:_BATCH]]
    return min(models, key=lambda lm: -sum(completion_log_probs(PlainRunner(lm), texts)))


def excited(
    source: LanguageModel,
    lora: Lora,
    prompts: Sequence[str],
    count: int,
    *,
    target: LanguageModel | None = None,
    words: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> list[Passage]:
    """The given prompts and more of their kind, each with the adapted source's answer behind it.

    Form by form (`by_form`), each in rounds: behind the first, prompts that were found are shown as examples
    too. Where answers are of a few kinds, those of one are shown together, the more often the more prompts
    with this answer are missing, so that answers which the given ones hardly call for are found as well.
    Answers are greedy, but drawn where most of those to the given prompts do not end.

    Args:
        source: the model.
        lora: its adapter.
        prompts: examples without answers, at least one.
        count: how many there shall be in all; see `expanded`.
        target: writes them if it knows such text better than the source does.
        words: see `expanded`.
        seed: of all that is drawn.
        on_progress: gets the stage `generate`.
    """
    prompts = list(dict.fromkeys(prompts))
    writer = best_writer([source, *([target] if target else [])], prompts)
    found: list[Passage] = []
    for form in by_form(prompts):
        # Of several forms, such as those of two skills in one adapter, each is made more by itself.
        share = round(count * len(form) / len(prompts))
        known = answered(source, lora, form[:_BATCH], on_progress=on_progress)
        # Greedily a small model that writes on and on soon says the same again; of that a target would learn
        # the loop, not the style.
        drawn = _endless(source, known)
        answer = partial(
            answered, source, lora, temperature=1.0 if drawn else 0.0, seed=seed, on_progress=on_progress
        )
        known = answer(form) if drawn else [*known, *answer(form[_BATCH:])]
        for turn, part in enumerate(_ROUNDS):
            texts = expanded(
                writer, form, round(part * share), known=known, words=words, seed=seed + turn,
                on_progress=on_progress,
            )  # fmt: skip
            known += answer(texts[len(known) :])
        found += known
    return found


def mostly_drawn(answers: Sequence[Passage]) -> bool:
    """Whether most answers are draws: greedy ones mostly did not end, or the adapter was sure of none."""
    return 2 * sum(answer.drawn for answer in answers) > len(answers)


def _endless(source: LanguageModel, passages: Sequence[Passage]) -> bool:
    """Whether most answers do not end by themselves, but were cut."""
    answers = [passage.text[passage.answer :] for passage in passages]
    # Without the BOS.
    lengths = [int(source.encode([answer]).attention_mask.sum()) - 1 for answer in answers if answer]
    return 2 * sum(length >= CUT for length in lengths) > len(answers)


def by_form(prompts: Sequence[str]) -> list[list[str]]:
    """Prompts by their last lines, such as `Answer:`, if none has a last line of its own; else all as one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.rpartition("\n")[2]].append(prompt)
    alone = any(len(group) == 1 for group in groups.values())
    return [list(prompts)] if alone else list(groups.values())


def evenly(passages: Sequence[Passage]) -> list[float]:
    """Weights with which answered prompts are drawn evenly over the first words of their answers.

    Answers rarer than one in a hundred are noise: together they are drawn as often as they come. The first
    words of draws tell nothing: each weighs the same.
    """
    if mostly_drawn(passages):
        return [1.0] * len(passages)
    groups = by_answer(passages)
    # What all that is not noise weighs, if each of its words weighs one.
    each = sum(map(len, groups.values())) / max(1, len(groups))
    firsts = map(_first_word, passages)
    return [each / len(groups[first]) if first in groups else 1.0 for first in firsts]


def by_answer(passages: Sequence[Passage]) -> dict[str, list[Passage]]:
    """Answered prompts by the first words of their answers, but those that are rare: they are noise."""
    groups: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        groups[_first_word(passage)].append(passage)
    least = max(2, len(passages) / 100)
    return {first: group for first, group in groups.items() if len(group) >= least}


def _first_word(passage: Passage) -> str:
    answer = "" if passage.answer is None else passage.text[passage.answer :]
    return next(iter(answer.split()), "")


def expanded(
    writer: LanguageModel,
    prompts: Sequence[str],
    count: int,
    *,
    known: Sequence[Passage] = (),
    words: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> list[str]:
    """The given prompts, and more of their kind that a base model writes.

    Most it writes behind a few of the examples, as new ones that begin as the examples do, and most of these
    with a word of their own that suits the examples: left to itself, a small model says their words again.
    The rest, and what it did not find so, it writes by going on from the beginning of a given one.

    Args:
        writer: the model, without an adapter.
        prompts: examples without answers, at least one.
        count: how many there shall be in all; fewer if the model does not find the form.
        known: answered prompts, the given ones and what was found so far, to be shown as examples.
        words: what new ones may begin with, so that they are about many things.
        seed: of the choice of examples and of the sampling.
        on_progress: gets the stage `generate`.

    Returns:
        Distinct prompts, the given and the known ones first.
    """
    kinds = _kinds(prompts, known, count)
    found = dict.fromkeys([*prompts, *map(_prompt, known)])
    order, form = random.Random(seed), _Form.of(prompts)
    given = len(found)
    new = given > 1
    openings: list[list[str]] = []
    if new and count > given:
        # A stream of its own, so that what is drawn below does not depend on it.
        apart, cased = random.Random(seed), list(map(form.cased, words))
        shown_by = [[kind.shown(apart) for _ in range(_DRAWS)] for kind in kinds]
        openings = suiting(writer, shown_by, form.start, cased)
    room = int(writer.encode(list(prompts)).attention_mask.sum(1).max() * _LONGER) + 8
    for turn in range(_NEW_TURNS + _TURNS):
        missing = count - len(found)
        if missing <= 0:
            break
        # Where the first turn found none, as of a form whose cue the model does not know, no later one will.
        new = new and turn < _NEW_TURNS and (turn == 0 or len(found) > given)
        if new:
            asked = order.choices(range(len(kinds)), [kind.missing for kind in kinds], k=missing)
            shown = [kinds[index].shown(order) for index in asked]
            begun = [form.opening(order, openings[index]) for index in asked]
            read = [some + first for some, first in zip(shown, begun, strict=True)]
        else:
            read = begun = [form.beginning(order.choice(list(prompts)), order) for _ in range(missing)]
        written = generate_many(
            PlainRunner(writer), read, max_new_tokens=room, stop=SEPARATOR if new else None,
            temperature=_NEW_TEMPERATURE if new else 1.0, seed=seed + turn, batch_size=_BATCH,
            on_progress=on_progress,
        )  # fmt: skip
        texts = [first + rest for first, rest in zip(begun, written, strict=True)]
        found |= dict.fromkeys(filter(None, map(form.shaped if new else form.ended, texts)))
    return list(found)[:count]


@dataclass(frozen=True)
class _Kind:
    """Answered prompts that are shown together, and how many more like them are missing."""

    passages: Sequence[Passage]
    missing: float

    @cached_property
    def _weights(self) -> list[float]:
        return evenly(self.passages)

    def shown(self, order: random.Random) -> str:
        """A few distinct prompts, evenly over their answers, as they stand before a new one."""
        # The largest of U^(1/w) are a draw without replacement (Efraimidis and Spirakis, 2006).
        keys = [order.random() ** (1 / weight) for weight in self._weights]
        ranked = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
        return "".join(_prompt(self.passages[index]) + SEPARATOR for index in ranked[:SHOTS])


def _kinds(prompts: Sequence[str], known: Sequence[Passage], count: int) -> list[_Kind]:
    """Those of each answer that falls short of an even share; all together where that tells nothing."""
    found = len(known) > len(set(prompts)) and not mostly_drawn(known)
    groups = list(by_answer(known).values()) if found else []
    kinds = [_Kind(group, count / len(groups) - len(group)) for group in groups]
    if 1 < len(kinds) <= _MOST_KINDS and (short := [kind for kind in kinds if kind.missing > 0]):
        return short
    return [_Kind(known or [Passage(prompt, len(prompt)) for prompt in dict.fromkeys(prompts)], 1.0)]


def _prompt(passage: Passage) -> str:
    return passage.text[: passage.answer]


@dataclass(frozen=True)
class _Form:
    """What examples have in common: how they begin and end (as with a line `Answer:`), lines, lengths."""

    start: str
    capital: bool
    """Whether what is an example's own begins with a capital letter."""
    ending: str
    lines: frozenset[int]
    breaks: int
    shortest: int
    longest: int

    @classmethod
    def of(cls, prompts: Sequence[str]) -> "_Form":
        lengths = [len(prompt) for prompt in prompts]
        lines = frozenset(prompt.strip("\n").count("\n") for prompt in prompts)
        breaks = max(prompt.count("\n") for prompt in prompts)
        ending = _common_ending(prompts)
        bodies = [prompt[: len(prompt) - len(ending)] for prompt in prompts]
        start = _common_ending([body[::-1] for body in bodies])[::-1]
        capital = all(body[len(start) : len(start) + 1].isupper() for body in bodies)
        return cls(start, capital, ending, lines, breaks, min(lengths), max(lengths))

    def opening(self, order: random.Random, words: Sequence[str]) -> str:
        """The first characters of a new prompt, mostly with a word of its own."""
        if not words or order.random() > _WITH_WORD:
            # A model goes on with a space and a word better than with a word behind a space.
            return self.start.rstrip()
        return self.start + order.choice(words)

    def cased(self, word: str) -> str:
        """A word as the examples' own begins."""
        return word.capitalize() if self.capital else word

    def beginning(self, prompt: str, order: random.Random) -> str:
        """The beginning of an example, up to a random space of what is its own.

        One word is as likely as two or three, or four to seven: what stands at the beginning of an example
        is often all that it is about, and must not be the same in every new one.
        """
        body = prompt[: len(prompt) - len(self.ending)]
        places = [place for place, letter in enumerate(body) if letter.isspace() and place]
        if not places:
            return body[: max(1, len(body) // 2)]
        return body[: places[int((len(places) + 1) ** order.random()) - 1]]

    def shaped(self, text: str) -> str | None:
        """A written text cut to the form; None where it has not that form."""
        text = text.strip("\n")
        if self.ending.strip():
            place = text.find(self.ending)
            if place <= 0:
                return None
            text = text[: place + len(self.ending)]
        if len(self.lines) == 1 and text.count("\n") not in self.lines:
            return None
        return text if _SHORTER * self.shortest <= len(text) <= _LONGER * self.longest else None

    def ended(self, text: str) -> str | None:
        """A written text in the form; where it lacks the ending, with that put behind it."""
        if shaped := self.shaped(text):
            return shaped
        lines = self.breaks - self.ending.count("\n") + 1
        body = "\n".join(text.strip("\n").split("\n")[:lines])[: self.longest - len(self.ending)]
        # Where the examples' own part is sentences, it ends with one.
        body = body[: body.rfind(".") + 1] or body
        body = body.rstrip(self.ending[:1]) if self.ending else body
        return body + self.ending if self.ending.strip() and body.strip() else None


def _common_ending(prompts: Sequence[str]) -> str:
    reversed_prompts = [prompt[::-1] for prompt in prompts]
    first, last = min(reversed_prompts), max(reversed_prompts)
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    if length is None:
        length = min(len(first), len(last)) if len(set(prompts)) > 1 else 0
    ending = first[:length][::-1]
    # From the beginning of a word, so that examples that happen to end alike bind no more than they must.
    starts = [i for i, letter in enumerate(ending) if not letter.isalnum()]
    return ending[starts[0] :] if starts else ""


def answered(
    source: LanguageModel,
    lora: Lora,
    prompts: Sequence[str],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> list[Passage]:
    """Each prompt with what the source and its adapter write behind it, a few dozen tokens.

    Args:
        source: the model.
        lora: its adapter.
        prompts: any texts.
        temperature: of the draw; 0 is greedy.
        seed: of the draw.
        on_progress: gets the stage `generate`.
    """
    answers = generate_many(
        PlainRunner(source, lora),
        prompts,
        max_new_tokens=ANSWER_TOKENS,
        temperature=temperature,
        seed=seed,
        batch_size=_BATCH,
        on_progress=on_progress,
    )
    return [
        Passage(prompt + answer, len(prompt), drawn=temperature > 0)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
