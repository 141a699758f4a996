"""Several prompts at once: every pane's answer to each, row by row in the background, and as a CSV file."""

import csv
import io
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from app.cache import Cache
from app.engine import Engine, GenerateRequest
from app.jobs import Job, Jobs
from app.views import PANE_TITLES, Pane
from cast.errors import RequestError
from cast.progress import OnProgress, Progress

MAX_ROWS = 100
_KEPT = 64


@dataclass(frozen=True)
class Answers:
    """A table as it stands: the prompts that are asked for, and a row of panes for each that has begun."""

    prompts: tuple[str, ...]
    rows: tuple[tuple[Pane, ...], ...] = ()

    @property
    def finished(self) -> tuple[tuple[str, tuple[Pane, ...]], ...]:
        """The prompts whose panes have all come to their end, each with these."""
        return tuple(
            (prompt, row)
            for prompt, row in zip(self.prompts, self.rows, strict=False)
            if all(pane.state not in ("running", "idle") for pane in row)
        )


class AnswerTables:
    """The page's way to tables of answers; one for all visitors, made in `app.ui.build`."""

    def __init__(self, engine: Engine, jobs: Jobs) -> None:
        self._engine = engine
        self._jobs = jobs
        self._tables: Cache[Answers] = Cache(_KEPT)

    def start(self, request: GenerateRequest, prompts: Sequence[str]) -> str:
        """Answer the prompts one after the other in every pane, on the shared models; the id of the job.

        Args:
            request: how, and in which panes; its own prompt is not read.
            prompts: the rows.

        Raises:
            RequestError: there are none, or too many.
        """
        if not prompts:
            raise RequestError("Write some prompts first, one a line, or take the examples of the task.")
        if len(prompts) > MAX_ROWS:
            raise RequestError(f"There are {len(prompts):,} prompts; a table has at most {MAX_ROWS} rows.")
        job_id = uuid.uuid4().hex
        self._tables.put(job_id, Answers(tuple(prompts)))
        title = f"Answer {len(prompts)} prompts."
        return self._jobs.start("answers", title, lambda told: self._work(job_id, request, told), job_id)

    def _work(self, job_id: str, request: GenerateRequest, on_progress: OnProgress) -> None:
        """What is written stays, whatever becomes of the rest."""
        asked = self.answers(job_id)
        rows: tuple[tuple[Pane, ...], ...] = ()
        for place, prompt in enumerate(asked.prompts):
            with closing(self._engine.generate(replace(request, prompt=prompt))) as streamed:
                for panes in streamed:
                    on_progress(Progress("generate", place, len(asked.prompts)))
                    self._tables.put(job_id, replace(asked, rows=(*rows, panes)))
            rows = self.answers(job_id).rows
        on_progress(Progress("generate", len(rows), len(rows)))

    def answers(self, job_id: str) -> Answers:
        """The table of a job as it stands; an empty one where the server knows it no more."""
        return self._tables.peek(job_id) or Answers(())

    def job(self, job_id: str) -> Job | None:
        """The job of a table; None where the server knows it no more."""
        return self._jobs.get(job_id) if job_id else None

    def cancel(self, job_id: str) -> bool:
        """Ask a table to stop; the answers that are written stay."""
        return self._jobs.cancel(job_id)


def as_csv(told: Answers) -> str:
    """One line a prompt whose answers are whole, one column a pane; a pane that could not answer is empty."""
    finished = told.finished
    panes = finished[0][1] if finished else ()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["prompt", *(f"{PANE_TITLES[pane.key]}: {pane.name}" for pane in panes)])
    for prompt, row in finished:
        writer.writerow([prompt, *(pane.text if pane.state == "done" else "" for pane in row)])
    return out.getvalue()
