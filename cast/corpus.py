"""General text: what heads are fitted on and what a translated adapter is checked on.

A corpus is a stream of *passages* of a few hundred characters, cut where a sentence or a paragraph ends. A
hash of the passage decides whether it is held out, so that holds whatever the order, and copies of one
passage are always on the same side.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cast.alignment import align
from cast.errors import CorpusError
from cast.json_lines import read_json_lines
from cast.models import LanguageModel
from cast.pocket import world

PASSAGE_CHARACTERS = 300
HELD_OUT_SHARE = 0.1
_SUFFIXES = (".txt", ".jsonl")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)\]])\s+|(?<=[。！？])")
# Shuffling within a window of passages mixes a file's chapters without holding a large corpus in memory.
_SHUFFLE_WINDOW = 20_000
_LONGEST_LINE = 1 << 16
_TEXTS_PER_COUNT = 32


@dataclass(frozen=True)
class Passage:
    """A piece of text that is read for a fit."""

    text: str
    answer: int | None = None
    """The character at which an answer to what stands before begins; None where there is none."""
    drawn: bool = False
    """Whether the answer is a draw, one of many that might have come, and not the likeliest."""


def general_text(spec: str | None = None, *, seed: int = 0, held_out: bool = False) -> Iterator[str]:
    """Stream the passages of one side of a corpus, in an order that the seed decides.

    Args:
        spec: `pocket` or None for the generated story world (endless); a `.txt` file, a `.jsonl` file with a
            `text` entry in each line, or a folder of them; or the id of a dataset on the Hub.
        seed: of the order, and of the stories in the generated world.
        held_out: the passages that are never fitted on, instead of the others.

    Raises:
        CorpusError: nothing of this name is there, it cannot be read, or it holds no text.
    """
    if spec is None or spec == "pocket":
        return world.general_text(seed, "held-out" if held_out else "train")
    side = (text for text in _passages(spec, seed) if is_held_out(text) == held_out)
    first = next(side, None)
    if first is None:
        raise CorpusError(
            f"The corpus {spec} holds no text; give one with at least some paragraphs of plain prose."
        )
    return chain([first], side)


def is_held_out(passage: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a passage belongs to the held-out share, by its hash alone."""
    digest = hashlib.blake2b(passage.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def take_tokens(
    texts: Iterable[str],
    lm: LanguageModel,
    tokens: int,
    *,
    partner: LanguageModel | None = None,
    at_least: int = 1,
    max_length: int = 256,
) -> list[str]:
    """Take texts until they hold so many tokens.

    Args:
        texts: passages; only as many as are needed are read.
        lm: the model whose tokens are counted, BOS not.
        tokens: how many are wanted; fewer are fine where the texts end, down to `at_least`.
        partner: count the aligned pairs of `lm` and this model instead.
        at_least: how many are needed.
        max_length: tokens of a text beyond this do not count.

    Raises:
        CorpusError: the texts are empty, or hold fewer than `at_least` tokens.
    """
    iterator = iter(texts)
    taken: list[str] = []
    count = 0
    while count < tokens and (chunk := list(islice(iterator, _TEXTS_PER_COUNT))):
        for text, added in zip(chunk, _counts(chunk, lm, partner, max_length), strict=True):
            if count >= tokens:
                break
            if added:
                taken.append(text)
                count += added
    if count < at_least:
        what = "tokens" if partner is None else f"aligned tokens of {lm.name} and {partner.name}"
        raise CorpusError(f"The text holds {count} {what}, but {at_least} are needed; give more text.")
    return taken


def _counts(texts: list[str], lm: LanguageModel, partner: LanguageModel | None, max_length: int) -> list[int]:
    batch = lm.encode(texts, max_length=max_length)
    if partner is None:
        return [int(length) - 1 for length in batch.attention_mask.sum(1)]
    pairs = align(batch, partner.encode(texts, max_length=max_length))
    return pairs.row.bincount(minlength=len(texts)).tolist()


def passages(paragraphs: Iterable[str], size: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Cut paragraphs into passages of about `size` characters, at sentence ends where there are any.

    Short paragraphs are joined by a line break; a sentence of more than twice the size is cut at a blank.
    """
    held = ""
    for paragraph in paragraphs:
        joint = "\n"
        for sentence in _SENTENCE_END.split(paragraph.strip()):
            for piece in _short(sentence, 2 * size):
                held = f"{held}{joint}{piece}" if held else piece
                joint = " "
                if len(held) >= size:
                    yield held
                    held = ""
    if held:
        yield held


def _short(sentence: str, limit: int) -> Iterator[str]:
    while len(sentence) > limit:
        cut = sentence.rfind(" ", limit // 2, limit)
        cut = cut if cut > 0 else limit
        yield sentence[:cut]
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


def _passages(spec: str, seed: int) -> Iterator[str]:
    path = Path(spec)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise CorpusError(f"The folder {spec} holds no .txt or .jsonl file; put the text into one.")
        return _shuffled(_interleaved([passages(_paragraphs(file)) for file in files]), seed)
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise CorpusError(f"{spec} is neither a .txt nor a .jsonl file; save the text as one of them.")
        return _shuffled(passages(_paragraphs(path)), seed)
    if path.suffix in _SUFFIXES or not _HUB_ID.fullmatch(spec):
        raise CorpusError(
            f"There is no corpus {spec}; name a file, a folder, a dataset on the Hub, or 'pocket'."
        )
    return passages(_hub_texts(spec, seed))


def _paragraphs(path: Path) -> Iterator[str]:
    read = _jsonl_texts if path.suffix == ".jsonl" else _txt_paragraphs
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text; convert it first.") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}).") from error


def _txt_paragraphs(path: Path) -> Iterator[str]:
    """Stretches between blank lines, with hard line breaks undone."""
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in iter(lambda: file.readline(_LONGEST_LINE), ""):
            if line.strip():
                lines.append(line.strip())
            elif lines:
                yield " ".join(lines)
                lines = []
            if len(lines) > _SHUFFLE_WINDOW:
                yield " ".join(lines)
                lines = []
    if lines:
        yield " ".join(lines)


def _jsonl_texts(path: Path) -> Iterator[str]:
    return (line.text("text") for line in read_json_lines(path, CorpusError))


def _hub_texts(dataset_id: str, seed: int) -> Iterator[str]:
    unreachable = (
        f"There is no file or folder {dataset_id}, and no dataset of this name can be read from the Hub; "
        "check the name and the connection, or give a .txt file."
    )
    try:
        # Slow to import, and needed for this kind of corpus only.
        from datasets import load_dataset

        rows = load_dataset(dataset_id, split="train", streaming=True).shuffle(seed=seed, buffer_size=1000)
        first: dict[str, Any] = next(iter(rows), {})
    except Exception as error:  # The library lets errors of many libraries below it through.
        raise CorpusError(unreachable) from error
    column = (
        "text"
        if "text" in first
        else next((key for key, value in first.items() if isinstance(value, str)), None)
    )
    if column is None:
        raise CorpusError(f"The dataset {dataset_id} has no column of text.")
    return _column(rows, column, unreachable)


def _column(rows: Iterable[dict[str, Any]], column: str, unreachable: str) -> Iterator[str]:
    try:
        for row in rows:
            if isinstance(row.get(column), str):
                yield row[column]
    except CorpusError:
        raise
    except Exception as error:  # As above: the connection can break at any row.
        raise CorpusError(unreachable) from error


def _interleaved(streams: list[Iterator[str]]) -> Iterator[str]:
    """One of each in turn, so that a large file does not come wholly before the next."""
    while streams:
        alive = []
        for stream in streams:
            if (item := next(stream, None)) is not None:
                alive.append(stream)
                yield item
        streams = alive


def _shuffled(stream: Iterator[str], seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    window = list(islice(stream, _SHUFFLE_WINDOW))
    rng.shuffle(window)
    for item in stream:
        place = rng.randrange(len(window))
        yield window[place]
        window[place] = item
    yield from window
