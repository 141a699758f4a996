"""Three tasks of WordNet (`wordnet-base`): the kind of a noun, the action of a verb, and an entry as JSON."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.real_pair.data import Split
from cast.errors import TaskError
from cast.pocket.tasks import Example

FOLDER = Path("/usr/share/wordnet")

KINDS = {
    5: "animal",
    6: "object",
    8: "body",
    13: "food",
    15: "place",
    18: "person",
    20: "plant",
    27: "substance",
}
"""WordNet's files of nouns that `kind` tells apart, with the name that is asked for (lexnames(5WN))."""

ACTIONS = {32: "communication", 33: "competition", 37: "emotion", 38: "motion", 40: "possession"}
"""WordNet's files of verbs that `verb` tells apart; those that run into each other are left out."""

_GLOSS_LENGTHS = range(12, 121)
_ENTRY_LENGTHS = range(12, 61)


@dataclass(frozen=True)
class Synset:
    """One meaning in WordNet: its first word, its gloss without the examples, its lexicographer file."""

    word: str
    gloss: str
    file: int


def read_wordnet(part: Literal["noun", "verb"], folder: Path = FOLDER) -> list[str]:
    """The lines of WordNet's file of nouns or of verbs.

    Raises:
        TaskError: the file is not there.
    """
    path = folder / f"data.{part}"
    if not path.is_file():
        raise TaskError(f"WordNet's {part}s are not at {path}: apt-get install wordnet-base.")
    return path.read_text("utf-8").splitlines()


def parse_synset(line: str) -> Synset | None:
    """Read one line of `data.*` (wndb(5WN)); None for the licence lines and what has no gloss."""
    fields, _, gloss = line.partition(" | ")
    parts = fields.split(" ")
    if line.startswith(" ") or len(parts) < 5 or not gloss:
        return None
    meaning = gloss.split('; "')[0].strip().rstrip(";").strip()
    return Synset(parts[4].replace("_", " "), meaning, int(parts[1])) if meaning else None


def kind_task(lines: Iterable[str], *, train: int, test: int, seed: int, further: int = 0) -> Split:
    """A noun and its gloss → one of eight kinds; see `_label_task`."""
    synsets = _synsets(lines, _GLOSS_LENGTHS)
    return _label_task(synsets, KINDS, "Kind:", train=train, test=test, seed=seed, further=further)


def verb_task(lines: Iterable[str], *, train: int, test: int, seed: int, further: int = 0) -> Split:
    """A verb and its gloss → one of five kinds of action; see `_label_task`.

    A verb of many meanings is asked for in the rarest kind, so that every kind has enough of them.
    """
    synsets = list(_synsets(lines, _GLOSS_LENGTHS))
    sizes = Counter(synset.file for synset in synsets)
    synsets.sort(key=lambda synset: sizes[synset.file])
    return _label_task(synsets, ACTIONS, "Action:", train=train, test=test, seed=seed, further=further)


def entry_task(lines: Iterable[str], *, train: int, test: int, seed: int, further: int = 0) -> Split:
    """A noun and its short gloss → both as one line of JSON; no word is in both parts.

    Raises:
        TaskError: there are too few nouns for what was asked.
    """
    by_word: dict[str, Synset] = {}
    for synset in _synsets(lines, _ENTRY_LENGTHS):
        # What JSON would escape is left out: the task is the form, not its quoting rules.
        if json.dumps(synset.gloss) == f'"{synset.gloss}"' and synset.word.isascii():
            by_word.setdefault(synset.word.lower(), synset)
    rng = random.Random(seed)
    first, more = (
        tuple(map(_entry_example, _drawn(by_word, count, rng, "with a short gloss")))
        for count in (train + test, further)
    )
    return Split(first[:train], first[train:], more)


def _entry_example(synset: Synset) -> Example:
    entry = json.dumps({"word": synset.word, "meaning": synset.gloss})
    return Example(f"{_shown(synset)}\nEntry:", f" {entry}")


def _label_task(
    synsets: Iterable[Synset],
    labels: Mapping[int, str],
    cue: str,
    *,
    train: int,
    test: int,
    seed: int,
    further: int,
) -> Split:
    """Word and gloss → the name of its file, balanced among `labels`; no word is in two parts.

    Raises:
        TaskError: a label has too few words for what was asked.
    """
    by_label: dict[str, dict[str, Synset]] = {label: {} for label in labels.values()}
    taken: set[str] = set()
    for synset in synsets:
        label = labels.get(synset.file)
        if label and synset.word.lower() not in taken:
            taken.add(synset.word.lower())
            by_label[label][synset.word] = synset
    rng = random.Random(seed)
    each_train, each_test, each_further = (count // len(labels) for count in (train, test, further))
    if further and not each_further:
        raise TaskError(f"{further} more examples are too few for one of each label.")
    choices = tuple(f" {name}" for name in labels.values())

    def examples(count: int) -> dict[str, list[Example]]:
        """So many of each label."""
        result = {}
        for label, found in by_label.items():
            drawn = _drawn(found, count, rng, f"of the kind '{label}'")
            result[label] = [Example(f"{_shown(synset)}\n{cue}", f" {label}", choices) for synset in drawn]
        return result

    first = examples(each_train + each_test).values()
    parts = [
        [one for group in first for one in group[:each_train]],
        [one for group in first for one in group[each_train:]],
    ]
    for part in parts:
        rng.shuffle(part)
    more = [one for group in examples(each_further).values() for one in group]
    rng.shuffle(more)
    return Split(*map(tuple, parts), tuple(more))


def _synsets(lines: Iterable[str], lengths: range) -> Iterator[Synset]:
    return (synset for synset in map(parse_synset, lines) if synset and len(synset.gloss) in lengths)


def _drawn(pool: dict[str, Synset], count: int, rng: random.Random, what: str) -> list[Synset]:
    """So many of a pool, which are not drawn again."""
    if len(pool) < count:
        raise TaskError(f"WordNet has {len(pool)} words {what}, but {count} were asked for; ask for fewer.")
    return [pool.pop(key) for key in rng.sample(sorted(pool, key=lambda key: pool[key].word), count)]


def _shown(synset: Synset) -> str:
    return f"Word: {synset.word}\nMeaning: {synset.gloss}"
