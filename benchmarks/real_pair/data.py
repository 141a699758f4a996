"""Running text from Debian packages: the King James text, and general prose.

`bible-kjv` with `bible-kjv-text`, `debian-handbook`, `fortunes-min` and `fortunes` hold it. No task shares a
line with the general text: dictionary-like fortunes and the Bible are left out of it.
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

HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")
FORTUNES = Path("/usr/share/games/fortunes")

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

_PASSAGE = 150


@dataclass(frozen=True)
class Split:
    """A task's examples: `train` teaches an adapter, `test` and `further` are never seen by anything."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    further: tuple[Example, ...] = ()
    """More test examples, drawn behind all others, so that those are the same without them."""


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


def style_task(verses: Iterable[str], *, train: int, test: int, seed: int, further: int = 0) -> Split:
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
    for part, wanted in zip(parts, (train, test + further), strict=True):
        if len(part) < wanted:
            raise TaskError(f"The King James text gave {len(part)} passages, but {wanted} were asked for.")
        rng.shuffle(part)
        del part[wanted:]
    taught, scored = (tuple(map(_style_example, part)) for part in parts)
    return Split(taught, scored[:test], scored[test:])


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
    """Paragraphs of general text that holds no task, each once.

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
