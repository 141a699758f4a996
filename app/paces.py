"""What earlier jobs took against what was expected of them, so that the next expectation is nearer."""

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path

from cast.errors import OutputError
from cast.storage import cache_folder, write_atomically

_FILE = "paces.json"
_KEPT = 8
_LEAST_SECONDS = 0.5
_MOST_OFF = 1000.0


@dataclass(frozen=True)
class Pace:
    """How much longer than reckoned work of a kind takes here, and from how many jobs that is known."""

    factor: float
    jobs: int


class Paces:
    """One small file in the cache: work → ratios of seconds taken to seconds reckoned, the newest last.

    The work is called by its kind and by the size of the pair in powers of ten, for small models spend their
    time on other things than large ones do. No visitor and no model is named.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def of(self, work: str, parameters: int) -> Pace:
        """The pace of work on a pair of so many weights: of its like, else of any size of the same work."""
        known = self._read()
        same = known.get(_key(work, parameters)) or [
            ratio for key, ratios in known.items() if key.partition("/")[0] == work for ratio in ratios
        ]
        if not same:
            return Pace(1.0, 0)
        return Pace(math.exp(sum(math.log(ratio) for ratio in same) / len(same)), len(same))

    def learn(self, work: str, parameters: int, reckoned: float, taken: float) -> None:
        """Remember what a finished job took. What took no time tells nothing."""
        if reckoned <= 0 or taken < _LEAST_SECONDS:
            return
        with self._lock:
            known, key = self._read(), _key(work, parameters)
            known[key] = [*known.get(key, ()), taken / reckoned][-_KEPT:]
            try:
                write_atomically(self._path(), json.dumps(known).encode())
            except OutputError:
                # The next expectation is then as rough as this one was.
                return

    def _path(self) -> Path:
        return (self._folder or cache_folder()) / _FILE

    def _read(self) -> dict[str, list[float]]:
        try:
            found = json.loads(self._path().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: sound for key, ratios in found.items() if (sound := _sound(ratios))}


def _sound(ratios: object) -> list[float]:
    """The ratios that can be ones; another program may have written the file."""
    found = ratios if isinstance(ratios, list) else []
    return [r for r in found if isinstance(r, int | float) and 1 / _MOST_OFF < r < _MOST_OFF]


def _key(work: str, parameters: int) -> str:
    return f"{work}/{len(str(parameters))}"
