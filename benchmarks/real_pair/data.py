"""Real data from Debian packages: WordNet's nouns, the King James text, and general prose.

`wordnet-base`, `bible-kjv` with `bible-kjv-text`, `debian-handbook`, `fortunes-min` and `fortunes` hold
everything. The two tasks never share a line with the general text: dictionary-like fortunes and the Bible
are left out of it.
"""

import random
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from cast.errors import CorpusError, TaskError
from cast.pocket.tasks import Example

WORDNET = Path("/usr/share/wordnet/data.noun")
HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")
FORTUNES = Path("/usr/share/games/fortunes")

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
"""WordNet's lexicographer files that the task tells apart, with the name that is asked for."""

PROSE_FORTUNES = (
    "computers",
    "cookie",
    "education",
    "law",
    "literature",
    "people",
    "platitudes",
    "science",
    "tao",
    "wisdom",
    "work",
)
"""Fortune files of running prose; `definitions` is left out because it looks like the task."""

HELD_OUT_BOOKS = ("Ruth", "Eccl", "Jonah", "Mark", "Jas")
"""Books of the King James text that no adapter is trained on (as the `bible` program abbreviates them)."""

_PASSAGE = 300
_GLOSS_LENGTHS = range(12, 121)


@dataclass(frozen=True)
class Synset:
    """One noun of WordNet: its first word, its gloss without the examples, its lexicographer file."""

    word: str
    gloss: str
    file: int


@dataclass(frozen=True)
class Split:
    """A task's examples: `train` teaches an adapter, `test` is never seen by anything."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]


def parse_synset(line: str) -> Synset | None:
    """Read one line of `data.noun` (wndb(5WN)); None for the licence lines and what has no gloss."""
    fields, _, gloss = line.partition(" | ")
    parts = fields.split(" ")
    if line.startswith(" ") or len(parts) < 5 or not gloss:
        return None
    meaning = gloss.split('; "')[0].strip().rstrip(";").strip()
    return Synset(parts[4].replace("_", " "), meaning, int(parts[1])) if meaning else None


def kind_task(lines: Iterable[str], *, train: int, test: int, seed: int) -> Split:
    """Word and gloss → one of eight kinds, balanced; no word is in both parts.

    Args:
        lines: the lines of WordNet's `data.noun`.
        train: examples to train on, divided evenly among the kinds.
        test: examples to test on, likewise.
        seed: of the draw.

    Raises:
        TaskError: a kind has too few nouns for what was asked.
    """
    by_kind: dict[str, dict[str, Synset]] = {kind: {} for kind in KINDS.values()}
    taken: set[str] = set()
    for synset in filter(None, map(parse_synset, lines)):
        kind = KINDS.get(synset.file)
        if kind and len(synset.gloss) in _GLOSS_LENGTHS and synset.word.lower() not in taken:
            taken.add(synset.word.lower())
            by_kind[kind][synset.word] = synset
    rng = random.Random(seed)
    each_train, each_test = train // len(KINDS), test // len(KINDS)
    parts: tuple[list[Example], list[Example]] = ([], [])
    for kind, synsets in by_kind.items():
        if len(synsets) < each_train + each_test:
            raise TaskError(
                f"WordNet has {len(synsets)} nouns of the kind '{kind}', "
                f"but {each_train + each_test} were asked for; ask for fewer."
            )
        drawn = rng.sample(sorted(synsets.values(), key=lambda s: s.word), each_train + each_test)
        parts[0].extend(_kind_example(s, kind) for s in drawn[:each_train])
        parts[1].extend(_kind_example(s, kind) for s in drawn[each_train:])
    for part in parts:
        rng.shuffle(part)
    return Split(tuple(parts[0]), tuple(parts[1]))


def _kind_example(synset: Synset, kind: str) -> Example:
    prompt = f"Word: {synset.word}\nMeaning: {synset.gloss}\nKind:"
    return Example(prompt, f" {kind}", tuple(f" {name}" for name in KINDS.values()))


def read_verses(program: str = "bible") -> list[str]:
    """The whole King James text, one verse a line, each after its reference (`Ge1:1 In the beginning ...`).

    Raises:
        TaskError: the `bible` program is not installed or fails.
    """
    if shutil.which(program) is None:
        raise TaskError(
            "The King James text needs the Debian packages bible-kjv and bible-kjv-text: "
            "apt-get install bible-kjv bible-kjv-text."
        )
    done = subprocess.run(
        [program, "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, errors="replace"
    )
    if done.returncode or not done.stdout.strip():
        raise TaskError(
            f"The program '{program}' did not print the King James text (exit {done.returncode})."
        )
    return done.stdout.splitlines()


def style_task(verses: Iterable[str], *, train: int, test: int, seed: int) -> Split:
    """Passages of consecutive verses, without references; the test passages are of held-out books.

    The opening words of a passage are its prompt, so that the adapter has something to go on.

    Raises:
        TaskError: there are fewer passages than were asked for.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    held: dict[bool, list[str]] = {False: [], True: []}
    for line in verses:
        match = re.match(r"([1-3]?[A-Za-z]+?)(\d+):\d+ (.+)", line)
        if not match:
            continue
        held_out = match[1] in HELD_OUT_BOOKS
        held[held_out].append(match[3].strip())
        if sum(map(len, held[held_out])) >= _PASSAGE:
            parts[held_out].append(" ".join(held[held_out]))
            held[held_out].clear()
    rng = random.Random(seed)
    for part, wanted in zip(parts, (train, test), strict=True):
        if len(part) < wanted:
            raise TaskError(f"The King James text gave {len(part)} passages, but {wanted} were asked for.")
        rng.shuffle(part)
    return Split(tuple(map(_style_example, parts[0][:train])), tuple(map(_style_example, parts[1][:test])))


def _style_example(passage: str) -> Example:
    words = passage.split(" ")
    return Example(" ".join(words[:5]), " " + " ".join(words[5:]))


class _Paragraphs(HTMLParser):
    """Collects the text of `<div class="para">` elements of a DocBook page, innermost ones only."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A new paragraph begins; what encloses it is no running prose and is dropped."""
        if tag == "div":
            if dict(attrs).get("class") == "para":
                self._open = [None] * len(self._open) + [""]
            else:
                self._open = [None] * (len(self._open) + 1)

    def handle_endtag(self, tag: str) -> None:
        """Keep the paragraph that ends here."""
        if tag == "div" and self._open:
            text = self._open.pop()
            if text and text.strip():
                self.found.append(" ".join(text.split()))

    def handle_data(self, data: str) -> None:
        """Add to the paragraph that is open, if any."""
        if self._open and self._open[-1] is not None:
            self._open[-1] += data


def handbook_paragraphs(pages: Iterable[str]) -> Iterator[str]:
    """The running prose of the Debian Administrator's Handbook, from its HTML pages."""
    for page in pages:
        parser = _Paragraphs()
        parser.feed(page)
        yield from parser.found


def fortunes(files: Iterable[str]) -> Iterator[str]:
    """The single sayings of fortune files (separated by a line of one `%`), their lines joined."""
    for content in files:
        for saying in re.split(r"^%$", content, flags=re.MULTILINE):
            text = " ".join(re.sub(r".\x08", "", saying).split())
            if text:
                yield text


def general_paragraphs(*, handbook: Path = HANDBOOK, fortune_files: Path = FORTUNES) -> list[str]:
    """Paragraphs of general text that holds neither task, each once.

    Raises:
        CorpusError: neither package is installed.
    """
    pages = sorted(handbook.glob("*.html"))
    files = [fortune_files / name for name in PROSE_FORTUNES if (fortune_files / name).is_file()]
    found = list(handbook_paragraphs(page.read_text("utf-8", "replace") for page in pages))
    found += fortunes(file.read_text("utf-8", "replace") for file in files)
    if not found:
        raise CorpusError("There is no general text: apt-get install debian-handbook fortunes-min fortunes.")
    return list(dict.fromkeys(found))


def read_wordnet(path: Path = WORDNET) -> list[str]:
    """The lines of WordNet's noun file.

    Raises:
        TaskError: the file is not there.
    """
    if not path.is_file():
        raise TaskError(f"WordNet's nouns are not at {path}: apt-get install wordnet-base.")
    return path.read_text("utf-8").splitlines()
