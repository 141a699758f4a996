"""Files of JSON lines by strangers: every reader refuses the same things, with file and line."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cast.commands.given import read_prompts
from cast.corpus import general_text
from cast.errors import CastError, CorpusError, RequestError, TaskError
from cast.evaluate import read_task
from cast.json_lines import LONGEST_LINE, JsonLine, read_json_lines


class Reader(NamedTuple):
    read: Any
    error: type[CastError]
    good: str


READERS = (
    Reader(lambda path: read_task(str(path)), TaskError, '{"prompt": "a", "completion": "b"}'),
    Reader(lambda path: read_prompts(str(path)), RequestError, '{"prompt": "a"}'),
    Reader(lambda path: list(general_text(str(path))), CorpusError, '{"text": "a"}'),
)


@pytest.fixture(params=READERS, ids=["task", "prompts", "corpus"])
def reader(request: pytest.FixtureRequest) -> Reader:
    return request.param


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("owl", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an object"),
        ("7", "not an object"),
        ("{}", "is missing or not a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, reader: Reader, line: str, words: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{reader.good}\n\n{line}\n")
    with pytest.raises(reader.error, match=rf"mine\.jsonl, line 3: .*{words}.*\."):
        reader.read(path)


def test_a_line_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("{}\n{" + " " * 200 + "}")
    with pytest.raises(TaskError, match="line 2: longer than 100 characters"):
        list(read_json_lines(path, TaskError, 100))
    path.write_text('{"text": "a"}\n{' + " " * LONGEST_LINE + "}")
    with pytest.raises(CorpusError, match="line 2: longer than 10,000,000 characters"):
        list(general_text(str(path)))


def test_what_is_no_text_is_said(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(reader.error, match="UTF-8"):
        reader.read(path)


def test_lines_come_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"n": 1}\n\n{"n": 2}\nbroken')
    lines: Iterable[JsonLine] = read_json_lines(path, TaskError)
    read = iter(lines)
    assert [next(read).record, next(read).record] == [{"n": 1}, {"n": 2}]
    with pytest.raises(TaskError, match="line 4"):
        next(read)
