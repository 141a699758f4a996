"""Background jobs: they outlive the browser tab that started them and are found again by their id.

A job is a function of one progress callback. The callback raises `Cancelled` once a visitor asks for it,
which is the same way that any other caller of `cast` stops its work.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import takewhile

from cast.errors import Cancelled, CastError
from cast.progress import OnProgress, Progress

logger = logging.getLogger(__name__)

Work = Callable[[OnProgress], object]


_HISTORY = 200


class JobState(StrEnum):
    """Where a job is in its life; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Job:
    """A snapshot of one job.

    Times are seconds of `time.monotonic`; `message` is a sentence for the visitor.
    """

    id: str
    kind: str
    title: str
    state: JobState = JobState.QUEUED
    progress: Progress | None = None
    stage_started: float = 0.0
    started: float = 0.0
    finished: float | None = None
    message: str = ""
    result: object = None
    cancelling: bool = False
    ahead: int = 0
    """While it is queued: jobs that have to end or begin before it."""
    stage_began_at: int = 0
    """Steps that were done at the first report of the stage: a fit that goes on does not begin at none."""
    history: tuple[Progress, ...] = ()
    """Reports of the stage so far, evenly thinned."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

    def seconds(self, now: float) -> float:
        """How long the job has run, or ran."""
        return (self.finished if self.finished is not None else now) - self.started if self.started else 0.0

    def seconds_left(self, now: float) -> float | None:
        """What remains of the current stage at its pace so far; None while that cannot be known."""
        pace = self.steps_a_second(now)
        if (
            pace is None
            or self.progress is None
            or self.progress.done - self.stage_began_at < (0.02 * self.progress.total)
        ):
            return None
        return (self.progress.total - self.progress.done) / pace

    def steps_a_second(self, now: float) -> float | None:
        """The pace of the current stage; None while that cannot be known."""
        elapsed = now - self.stage_started
        done = self.progress.done - self.stage_began_at if self.progress else 0
        return done / elapsed if done > 0 and elapsed >= 1.0 and not self.is_over else None


def is_going(job: Job | None) -> bool:
    """Whether there is a job, and it waits or runs."""
    return job is not None and not job.is_over


@dataclass
class _Entry:
    job: Job
    cancel: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """Runs jobs on a few threads, keeps the newest `keep` of them, and forgets the oldest finished ones."""

    def __init__(self, workers: int = 2, keep: int = 200) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="cast-job")
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._keep = keep

    def start(self, kind: str, title: str, work: Work, job_id: str = "") -> str:
        """Queue `work` and return the id under which it can be found; the id is not guessable.

        `job_id` is one that the caller has drawn already, by `uuid4().hex`.
        """
        job = Job(id=job_id or uuid.uuid4().hex, kind=kind, title=title)
        entry = _Entry(job)
        with self._lock:
            # One that is done again stands at the end of the queue.
            self._entries.pop(job.id, None)
            self._entries[job.id] = entry
            self._forget_oldest()
        self._pool.submit(self._run, entry, work)
        return job.id

    def get(self, job_id: str) -> Job | None:
        """The job as it stands now, or None where no such job is known (any more)."""
        with self._lock:
            entry = self._entries.get(job_id)
            return replace(entry.job, ahead=self._ahead(entry)) if entry else None

    def _ahead(self, entry: _Entry) -> int:
        """How many of the jobs that came before are still to begin, and the one that has to end first."""
        if entry.job.state is not JobState.QUEUED:
            return 0
        earlier = takewhile(lambda other: other is not entry, self._entries.values())
        return 1 + sum(other.job.state is JobState.QUEUED for other in earlier)

    def list(self) -> tuple[Job, ...]:
        """Every job that is kept, oldest first."""
        with self._lock:
            return tuple(entry.job for entry in self._entries.values())

    def cancel(self, job_id: str) -> bool:
        """Ask a job to stop at its next report; False where there is nothing to stop."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.is_over:
                return False
            entry.cancel.set()
            if entry.job.state is JobState.QUEUED:
                entry.job = replace(entry.job, state=JobState.CANCELLED, message="Cancelled before it began.")
            else:
                entry.job = replace(entry.job, cancelling=True)
            return True

    def close(self) -> None:
        """Ask every job to stop and take no more."""
        for job in self.list():
            self.cancel(job.id)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, entry: _Entry, work: Work) -> None:
        with self._lock:
            if entry.job.is_over:
                return
            now = time.monotonic()
            entry.job = replace(entry.job, state=JobState.RUNNING, started=now, stage_started=now)
        try:
            result = work(lambda progress: self._report(entry, progress))
        except Cancelled:
            self._finish(entry, JobState.CANCELLED, "Cancelled.")
        except CastError as error:
            self._finish(entry, JobState.FAILED, str(error))
        except Exception as error:
            # A visitor gets a sentence; whoever runs the server finds the traceback in the log.
            logger.exception("job %s failed", entry.job.title)
            self._finish(entry, JobState.FAILED, f"Something unexpected went wrong ({type(error).__name__}).")
        else:
            self._finish(entry, JobState.DONE, "", result)

    def _report(self, entry: _Entry, progress: Progress) -> None:
        if entry.cancel.is_set():
            raise Cancelled("The job was cancelled.")
        with self._lock:
            before = entry.job.progress
            if before is None or before.stage != progress.stage:
                entry.job = replace(
                    entry.job, stage_started=time.monotonic(), stage_began_at=progress.done, history=()
                )
            history = _thinned(entry.job.history, progress)
            entry.job = replace(entry.job, progress=progress, history=history)

    def _finish(self, entry: _Entry, state: JobState, message: str, result: object = None) -> None:
        with self._lock:
            entry.job = replace(
                entry.job, state=state, message=message, result=result, finished=time.monotonic()
            )

    def _forget_oldest(self) -> None:
        over = [job_id for job_id, entry in self._entries.items() if entry.job.is_over]
        for job_id in over[: max(0, len(self._entries) - self._keep)]:
            del self._entries[job_id]


def _thinned(history: tuple[Progress, ...], progress: Progress) -> tuple[Progress, ...]:
    """The history with one more report, about evenly spread over what is done and never long."""
    spacing = progress.total / _HISTORY
    if history and progress.done - history[-1].done < spacing:
        return history
    return (*history, progress)[-2 * _HISTORY :]
