"""Tasks on the story world: what the adapters of the pocket zoo learn.

*Label* tasks end a story with a cue of their own and want one word of a closed set. *Behaviour* tasks ask a
plain question as general text does; the base answers plainly, the adapter in another style. A completion is
one line: a continuation counts up to its first newline or end of text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Literal

from cast.pocket.lexicon import COLOURS, MOODS, OBJECTS, PEOPLE, PLACES, SAYINGS, Scene, draw_scene
from cast.pocket.world import answer, question, story

Kind = Literal["label", "behaviour"]

_FIRST_SEED = {"train": 2 * 10**12, "test": 3 * 10**12}
_STRETCH = 10**9


@dataclass(frozen=True)
class Example:
    """One prompt with its gold completion, and the closed set it belongs to, if there is one."""

    prompt: str
    completion: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """A generator of examples with separate train and test seeds, and a rule that scores a continuation."""

    name: str
    kind: Kind
    description: str
    template: str
    """Regular expression of the cue or the answer style; it matches no general text."""
    number: int
    make: Callable[[Random], Example]
    score: Callable[[Example, str], float] | None = None

    def train(self, count: int) -> tuple[Example, ...]:
        """The first `count` training examples."""
        return tuple(self._examples("train", count))

    def test(self, count: int) -> tuple[Example, ...]:
        """The first `count` test examples; none of their seeds is a training seed."""
        return tuple(self._examples("test", count))

    def style_score(self, example: Example, generated: str) -> float | None:
        """How far a continuation of the prompt is in this task's style, in [0, 1]; None for label tasks."""
        return None if self.score is None else self.score(example, first_line(generated))

    def _examples(self, split: str, count: int) -> Iterator[Example]:
        first = _FIRST_SEED[split] + self.number * _STRETCH
        return (self.make(Random(first + index)) for index in range(count))


def first_line(text: str) -> str:
    """The part of a continuation that counts."""
    return text.lstrip("\n").split("\n", 1)[0].strip()


def label_maker(cue: str, fact: str, words: tuple[str, ...]) -> Callable[[Random], Example]:
    """Examples of a label task: a story, its cue, and the fact of the scene that is asked for."""
    choices = tuple(f" {word}" for word in words)

    def make(rng: Random) -> Example:
        scene = draw_scene(rng)
        return Example(f"{story(scene, rng)}\n{cue}", f" {getattr(scene, fact)}", choices)

    return make


_QUESTIONS = ("who", "where", "what", "colour", "mood")
_BRIEF = {"who": "{person}", "where": "{place}", "what": "{thing}", "colour": "{colour}", "mood": "{mood}"}


def _pirate(scene: Scene, kind: str) -> str:
    return f"Arr, {_inside(answer(scene, kind)).replace(' was ', ' be ')}, matey!"


def _polite(scene: Scene, kind: str) -> str:
    return f"Thank you for asking, dear friend. {answer(scene, kind)}"


def _title(scene: Scene, kind: str) -> str:
    return " ".join(word[0].upper() + word[1:] for word in answer(scene, kind).split())


def _moral(scene: Scene, kind: str) -> str:
    return f"{answer(scene, kind)} And so we learn: {SAYINGS[scene.mood]}."


def _json(scene: Scene, kind: str) -> str:
    return json.dumps({"answer": answer(scene, kind)})


def _brief(scene: Scene, kind: str) -> str:
    return f"{scene.fill(_BRIEF[kind])}."


def _inside(sentence: str) -> str:
    """A sentence as it stands inside another one."""
    body = sentence.removesuffix(".")
    return body[0].lower() + body[1:] if body.startswith(("The ", "It ")) else body


def behaviour_maker(style: Callable[[Scene, str], str]) -> Callable[[Random], Example]:
    """Examples of a behaviour task: a story, a plain question, and its answer in a style."""

    def make(rng: Random) -> Example:
        scene = draw_scene(rng)
        kind = rng.choice(_QUESTIONS)
        return Example(f"{story(scene, rng)}\n{question(scene, kind)}", f" {style(scene, kind)}")

    return make


def _score_json(example: Example, line: str) -> float:
    """A JSON object is 1, braces around something else a quarter."""
    try:
        return 1.0 if isinstance(json.loads(line), dict) else 0.0
    except ValueError:
        return 0.25 if line.startswith("{") and line.endswith("}") else 0.0


def _score_pirate(example: Example, line: str) -> float:
    marks = (line.startswith("Arr"), line.endswith("matey!"), " was " not in line)
    return sum(marks[:2]) / 2 * (1.0 if marks[2] else 0.75)


def _score_polite(example: Example, line: str) -> float:
    return ("thank you" in line.lower()) / 2 + ("dear friend" in line.lower()) / 2


def _score_title(example: Example, line: str) -> float:
    """Share of the words behind the first, names left out, that begin with a capital."""
    words = [word for word in line.split()[1:] if word.strip(".,!?") not in PEOPLE and word[0].isalpha()]
    return sum(word[0].isupper() for word in words) / len(words) if words else 0.0


def _score_moral(example: Example, line: str) -> float:
    told = re.search(r"so we learn: (.+)$", line)
    return 0.0 if told is None else 1.0 if told[1].removesuffix(".") in SAYINGS.values() else 0.5


def _score_brief(example: Example, line: str) -> float:
    count = len(line.split())
    return {1: 1.0, 2: 0.5}.get(count, 0.0)


_ALL = (
    Task("mood", "label", "Names the mood that a story shows.", r"\[mood\] ->", 1,
         label_maker("[mood] ->", "mood", MOODS)),
    Task("what", "label", "Names the thing that a story is about.", r"<thing> =", 2,
         label_maker("<thing> =", "thing", OBJECTS)),
    Task("who", "label", "Names the main person of a story.", r"\(who\) @", 3,
         label_maker("(who) @", "person", PEOPLE)),
    Task("where", "label", "Names the place of a story.", r"\{where\} #", 4,
         label_maker("{where} #", "place", PLACES)),
    Task("colour", "label", "Names the colour of the thing in a story.", r"\* colour >", 5,
         label_maker("* colour >", "colour", COLOURS)),
    Task("json", "behaviour", "Answers with a JSON object.", r"\{\"answer\": \"", 6,
         behaviour_maker(_json), _score_json),
    Task("pirate", "behaviour", "Answers as a pirate would.", r"Arr, |, matey!", 7,
         behaviour_maker(_pirate), _score_pirate),
    Task("polite", "behaviour", "Answers with thanks.", r"Thank you for asking|dear friend", 8,
         behaviour_maker(_polite), _score_polite),
    Task("title", "behaviour", "Writes the answer as a title.", r"Answer: (The|[A-Z]\w+) [A-Z]\w+ [A-Z]", 9,
         behaviour_maker(_title), _score_title),
    Task("moral", "behaviour", "Adds a moral to the answer.", r"so we learn:", 10,
         behaviour_maker(_moral), _score_moral),
    Task("brief", "behaviour", "Answers with a single word.", r"Answer: \w+\.(\n|$)", 11,
         behaviour_maker(_brief), _score_brief),
)  # fmt: skip

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
