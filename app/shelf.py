"""The heads that visitors have trained or loaded, and the fits that they left unfinished, kept on disk.

An entry lies in a folder that is named by the job that made it, an id that only the visitor's browser knows,
so nobody else's can be listed or guessed. Each names the visitor's entry before it: one id finds them all.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from app.facts import FitOptions, FitRequest, LoadRequest
from app.workspace import Pair, is_id
from cast.storage import cache_folder, write_atomically

_ASKED = "asked.json"
_HEADS = "heads"
_KEPT = 40
_MOST_OF_ONE = 12
Request = FitRequest | LoadRequest


@dataclass(frozen=True)
class Entry:
    """One thing that a visitor asked for: its job, and the job asked for before it (empty for the first)."""

    id: str
    request: Request
    earlier: str
    finished: bool
    """Whether its heads are there."""
    begun: bool
    """Whether an unfinished fit has left a checkpoint."""


class HeadsShelf:
    """The folders of all visitors; the newest `_KEPT` are kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def begin(self, job_id: str, request: Request, earlier: str) -> Path:
        """Write down what a job shall do, and return the folder that its heads shall become.

        Raises:
            OutputError: the cache cannot be written.
        """
        kind = "fit" if isinstance(request, FitRequest) else "load"
        asked = {"kind": kind, "earlier": earlier, "request": asdict(request)}
        write_atomically(self._place(job_id) / _ASKED, json.dumps(asked).encode())
        places = [path for path in self._top().iterdir() if is_id(path.name)]
        for old in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return self.heads(job_id)

    def heads(self, job_id: str) -> Path:
        """The folder of an entry's heads, there or not."""
        return self._place(job_id) / _HEADS

    def entry(self, job_id: str) -> Entry | None:
        """An entry by its job; None where there is none that can be read."""
        if not is_id(job_id):
            return None
        place = self._place(job_id)
        try:
            asked = json.loads((place / _ASKED).read_text(encoding="utf-8"))
            earlier = str(asked["earlier"])
            request = _request(asked["kind"], dict(asked["request"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        begun = any(place.glob(f".{_HEADS}.unfinished/*.safetensors"))
        return Entry(job_id, request, earlier, (place / _HEADS / "heads.json").is_file(), begun)

    def entries(self, newest: str) -> tuple[Entry, ...]:
        """A visitor's entries from the newest back."""
        return tuple(islice(self._back_from(newest), _MOST_OF_ONE))

    def discard(self, job_id: str) -> None:
        """Delete what an entry holds; the entry itself stays, for it leads to those before it."""
        if is_id(job_id):
            place = self._place(job_id)
            shutil.rmtree(place / f".{_HEADS}.unfinished", ignore_errors=True)
            shutil.rmtree(place / _HEADS, ignore_errors=True)

    def _back_from(self, newest: str) -> Iterator[Entry]:
        entry = self.entry(newest)
        while entry is not None:
            yield entry
            entry = self.entry(entry.earlier)

    def _top(self) -> Path:
        return (self._folder or cache_folder()) / "own-heads"

    def _place(self, job_id: str) -> Path:
        if not is_id(job_id):
            raise ValueError(f"{job_id!r} is no id of a job")
        return self._top() / job_id


def _request(kind: str, asked: dict) -> Request:
    pair = Pair(**asked.pop("pair"))
    if kind == "load":
        return LoadRequest(pair, **asked)
    options = asked.pop("options")
    # JSON has lists only; what a checkpoint belongs to must come back as it was.
    return FitRequest(pair, **asked, options=FitOptions(**{**options, "depths": tuple(options["depths"])}))
