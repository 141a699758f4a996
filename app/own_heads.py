"""Heads of a visitor's own: trained or loaded in the background, gone on with after a restart."""

import uuid
from dataclasses import dataclass
from pathlib import Path

from app.backend import Backend
from app.cache import Cache
from app.expecting import Expectations
from app.facts import FitRequest, LoadRequest
from app.jobs import Job, Jobs, is_going
from app.shelf import Entry, HeadsShelf, Request
from app.stock import Stock
from app.workspace import Pair
from cast.errors import CastError, RequestError
from cast.progress import OnProgress


@dataclass(frozen=True)
class HeadsResult:
    """What a job of heads leaves behind."""

    pair: Pair
    heads: object


@dataclass(frozen=True)
class Asked:
    """One of the things that a visitor has asked for, with its job while the server knows it."""

    entry: Entry
    job: Job | None

    @property
    def is_going(self) -> bool:
        """Whether it waits or runs."""
        return is_going(self.job)

    @property
    def is_unfinished(self) -> bool:
        """Whether a fit was cut short, by a cancel, an error or a restart, and can be gone on with."""
        fit = isinstance(self.entry.request, FitRequest)
        return fit and not self.is_going and not self.entry.finished and self.entry.begun


class OwnHeads:
    """What visitors have made of heads; one for all, each finding its own by the newest job's id."""

    def __init__(
        self, backend: Backend, jobs: Jobs, stock: Stock, expectations: Expectations, shelf: HeadsShelf
    ) -> None:
        self._backend = backend
        self._jobs = jobs
        self._stock = stock
        self._expectations = expectations
        self._shelf = shelf
        self._read: Cache[object] = Cache(8)

    def start(self, request: Request, earlier: str = "") -> str:
        """Train or load heads in the background; the job's result is a `HeadsResult`.

        Args:
            request: what to do.
            earlier: the visitor's newest job of heads until now.
        """
        request.pair.check()
        if isinstance(request, LoadRequest) and not request.name:
            raise RequestError("Name a folder or a Hub id that holds heads of this pair.")
        job_id = uuid.uuid4().hex
        folder = self._shelf.begin(job_id, request, earlier)
        return self._queued(job_id, request, folder, anew=True)

    def go_on(self, job_id: str) -> str:
        """Go on with an unfinished fit, under the same id.

        Raises:
            RequestError: there is none.
        """
        found = next((asked for asked in self.asked(job_id) if asked.entry.id == job_id), None)
        if found is None or not found.is_unfinished:
            raise RequestError("There is no unfinished fit to go on with; train heads anew.")
        return self._queued(job_id, found.entry.request, self._shelf.heads(job_id), anew=False)

    def discard(self, job_id: str) -> None:
        """Delete what an unfinished fit has left."""
        if not any(asked.is_going for asked in self.asked(job_id)[:1]):
            self._shelf.discard(job_id)

    def asked(self, newest: str) -> tuple[Asked, ...]:
        """What a visitor has asked for, the newest first."""
        return tuple(Asked(entry, self._jobs.get(entry.id)) for entry in self._shelf.entries(newest))

    def of(self, pair: Pair, newest: str) -> object | None:
        """The heads of a pair that a visitor made last; None where there are none."""
        entry = self.entry_of(pair, newest)
        if entry is None:
            return None
        job = self._jobs.get(entry.id)
        if job and isinstance(job.result, HeadsResult):
            return job.result.heads
        try:
            return self._read.get(entry.id, lambda: self._backend.read_heads(self._shelf.heads(entry.id)))
        except CastError:
            # Written by another version, or damaged since: as good as none.
            return None

    def entry_of(self, pair: Pair, newest: str) -> Entry | None:
        """The entry of those heads."""
        mine = self._shelf.entries(newest) if newest else ()
        return next((entry for entry in mine if entry.finished and entry.request.pair == pair), None)

    def folder(self, entry: Entry) -> Path:
        """Where the heads of an entry lie."""
        return self._shelf.heads(entry.id)

    def _queued(self, job_id: str, request: Request, folder: Path, anew: bool) -> str:
        pair = request.pair

        def work(on_progress: OnProgress) -> HeadsResult:
            if isinstance(request, LoadRequest):
                return HeadsResult(pair, self._backend.load_heads(request, folder, on_progress))
            if not anew:
                # What is left of a fit tells nothing of how long a whole one takes.
                return HeadsResult(pair, self._backend.fit(request, folder, on_progress))
            heads = self._expectations.timed(
                request,
                lambda: self._stock.facts_of(pair),
                lambda told: self._backend.fit(request, folder, told),
                on_progress,
            )
            return HeadsResult(pair, heads)

        return self._jobs.start("heads", title(request), work, job_id)


def title(request: Request) -> str:
    """What a job of heads does, in a sentence."""
    pair = f"{request.pair.source} to {request.pair.target}"
    if isinstance(request, LoadRequest):
        return f"Load heads from {request.name} for {pair}."
    return f"Train heads from {pair}."
