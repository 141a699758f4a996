"""Files with one JSON object a line, as strangers write them: tasks, prompts, corpora."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cast.errors import CastError

LONGEST_LINE = 10_000_000
"""Characters, enough for a book."""


@dataclass(frozen=True)
class JsonLine:
    """One object of a file."""

    where: str
    """File and line, as every message about it begins."""
    record: dict[str, Any]
    error: type[CastError]
    """What is raised where it is not as it should be."""

    def text(self, key: str) -> str:
        """A string of the object."""
        value = self.record.get(key)
        if not isinstance(value, str):
            raise self.error(f"{self.where}: `{key}` is missing or not a string.")
        return value


def read_json_lines(path: Path, error: type[CastError], longest: int = LONGEST_LINE) -> Iterator[JsonLine]:
    """The objects of a file, one after the other; lines without a character are left out.

    Args:
        path: the file.
        error: what is raised.
        longest: characters of a line at most; no more are ever held for one.

    Raises:
        CastError: of the given class; a line is too long, not JSON, or no object, or the file is not UTF-8
            or cannot be read.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(longest + 1):
                number += 1
                if line.strip():
                    where = f"{path}, line {number}"
                    yield JsonLine(where, _parsed(line, where, error, longest), error)
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text; save it as UTF-8.") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror}); check the path.") from cause


def _parsed(line: str, where: str, error: type[CastError], longest: int) -> dict[str, Any]:
    if len(line) > longest:
        raise error(f"{where}: longer than {longest:,} characters; split it.")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: not JSON; each line must be one object.") from cause
    if not isinstance(record, dict):
        raise error(f'{where}: not an object, such as {{"key": "value"}}.')
    return record
