"""Evaluate without the page: runs in the background, found again by their visitor, written out as files."""

import csv
import io
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from app.backend import Backend
from app.engine import Engine
from app.facts import Option
from app.jobs import Job, Jobs
from app.runs import MAX_EXAMPLES, EvaluateRequest, Run, RunStore, TaskFacts
from app.workspace import is_id
from cast.errors import Cancelled, CastError, RequestError, TaskError
from cast.progress import OnProgress
from cast.storage import write_atomically

logger = logging.getLogger(__name__)

_LARGEST_TASK = 64 << 20
_LOST = "The server was restarted before this run came to its end; what it had measured is kept."
_COLUMNS = (
    "method", "task", "source", "target", "examples", "metric", "lift", "lift_low", "lift_high", "ratio",
    "translated", "base", "retrained", "source_adapted", "off_task", "seconds", "peak_memory_bytes",
    "strength", "text", "tokens", "seed",
)  # fmt: skip


class Evaluations:
    """The page's way to measured methods; one for all visitors, made in `app.ui.build`."""

    def __init__(self, backend: Backend, engine: Engine, jobs: Jobs, store: RunStore, folder: Path) -> None:
        self._backend = backend
        self._engine = engine
        self._jobs = jobs
        self._store = store
        self._folder = folder

    def tasks(self) -> tuple[Option, ...]:
        """The tasks that ship; any task file may be named as well."""
        return tuple(self._backend.tasks())

    def task_of(self, adapter: str) -> str:
        """The shipped task that an adapter was trained on; empty where that is not known."""
        skill = adapter.rsplit("/", 1)[-1]
        named = [option.name for option in self.tasks() if option.name == f"pocket:{skill}"]
        return named[0] if named and self._engine.is_shipped(adapter) else ""

    def task_file(self, path: Path) -> TaskFacts:
        """What a visitor's task file holds.

        Raises:
            TaskError: it is too large, or malformed; the sentence calls it by its own name.
        """
        try:
            _check_size(path)
            return self._backend.task(str(path), MAX_EXAMPLES)
        except CastError as error:
            raise TaskError(str(error).replace(str(path), path.name)) from error
        except OSError as error:
            raise TaskError(f"{path.name} cannot be read; upload it once more.") from error

    def start(self, visitor: str, request: EvaluateRequest, heads_job: str = "") -> str:
        """Measure in the background; the id of the run, which is that of its job."""
        _check(request)
        chosen = request.selection
        task = Path(request.task).name
        run = Run(
            uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="milliseconds"),
            chosen.source, chosen.target, chosen.adapter, task, request.methods,
        )  # fmt: skip
        own = self._engine.own.of(chosen.pair, heads_job)
        self._store.write(visitor, run)
        title = f"Measure {chosen.adapter} on {chosen.target} by {task}."
        return self._jobs.start(
            "evaluate", title, lambda on_progress: self._work(visitor, run, request, own, on_progress), run.id
        )

    def _work(
        self, visitor: str, run: Run, request: EvaluateRequest, heads: object | None, on_progress: OnProgress
    ) -> str:
        """Keep each method as it ends, whatever becomes of the others; returns the run's id."""
        try:
            for told in self._backend.compare(request, heads, on_progress):
                run = run.told(told)
                self._store.write(visitor, run)
            run = replace(run, state="done")
        except Cancelled:
            run = replace(run, state="cancelled")
            raise
        except CastError as error:
            message = str(error)
            for path in (request.task, request.train):
                message = message.replace(path, Path(path).name) if path else message
            run = replace(run, state="failed", message=message)
            raise type(error)(message) from error
        except Exception as error:
            run = replace(
                run, state="failed", message=f"Something unexpected went wrong ({type(error).__name__})."
            )
            raise
        finally:
            self._store.write(visitor, run)
        return run.id

    def run(self, visitor: str, run_id: str) -> Run | None:
        """One run of a visitor as it stands."""
        found = self._store.run(visitor, run_id)
        return self._standing(found) if found else None

    def runs(self, visitor: str) -> list[Run]:
        """A visitor's runs, newest first."""
        return [self._standing(run) for run in self._store.runs(visitor)]

    def _standing(self, run: Run) -> Run:
        """A run that its job left unfinished: cancelled in the queue, or lost with the server."""
        if run.state != "running":
            return run
        job = self._jobs.get(run.id)
        if job is None:
            return replace(run, state="failed", message=_LOST)
        return replace(run, state="cancelled") if job.is_over else run

    def forget(self, visitor: str, run_ids: Sequence[str]) -> None:
        """Delete runs of a visitor."""
        self._store.forget(visitor, run_ids)

    def job(self, run_id: str) -> Job | None:
        """The job of a run; None where the server knows it no more."""
        return self._jobs.get(run_id) if is_id(run_id) else None

    def cancel(self, visitor: str, run_id: str) -> bool:
        """Ask a visitor's run to stop; what it has measured stays."""
        return self._store.run(visitor, run_id) is not None and self._jobs.cancel(run_id)

    def written(self, visitor: str, runs: Sequence[Run]) -> tuple[Path, Path]:
        """The runs as a CSV file and as a JSON file."""
        if not is_id(visitor):
            raise RequestError("The page has lost track of this browser; reload it.")
        folder = self._folder / "measured" / visitor
        table, record = folder / "evaluation.csv", folder / "evaluation.json"
        write_atomically(table, as_csv(runs).encode())
        write_atomically(record, (json.dumps([asdict(run) for run in runs], indent=2) + "\n").encode())
        return table, record


def as_csv(runs: Sequence[Run]) -> str:
    """One line a measured method; what is not known is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ("run", "adapter", *_COLUMNS), lineterminator="\n")
    writer.writeheader()
    for run in runs:
        for result in run.results:
            low, high = result.interval or (None, None)
            values = asdict(result) | {"lift_low": low, "lift_high": high, "ratio": result.ratio}
            row = {name: values[name] for name in _COLUMNS}
            writer.writerow({"run": run.started, "adapter": run.adapter, **row})
    return out.getvalue()


def _check_size(path: Path) -> None:
    """Refuse a task file that should not be read into memory."""
    if path.stat().st_size > _LARGEST_TASK:
        raise TaskError(f"{path.name} is larger than {_LARGEST_TASK >> 20} MiB; give a part of it.")


def _check(request: EvaluateRequest) -> None:
    request.selection.check()
    if not request.task:
        raise RequestError("Choose a task, or upload a task file.")
    if not request.methods:
        raise RequestError("Tick at least one method to measure.")
    if not 1 <= request.limit <= MAX_EXAMPLES:
        raise RequestError(f"Between 1 and {MAX_EXAMPLES} examples are measured.")
    if request.retrained and request.train:
        raise RequestError("A retrained LoRA and a file to train one on are both given; choose one.")
    for named in (request.task, request.train):
        if named and Path(named).is_file():
            _check_size(Path(named))
