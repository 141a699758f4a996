"""Example prompts without the page: what is made of them in the background, as a list that is edited."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.backend import Backend
from app.engine import Engine
from app.facts import Expansion, TranslateRequest
from app.jobs import Job, Jobs
from app.workspace import Selection, is_id
from cast.errors import RequestError
from cast.progress import OnProgress

MAX_PROMPTS = 5000
"""More than are made for any target, with prompts or without."""
_LONGEST = 4000


@dataclass(frozen=True)
class Line:
    """One line of the list: whether the fit reads the prompt, and what the adapted source answered to it."""

    use: bool
    prompt: str
    answer: str


@dataclass(frozen=True)
class Made:
    """What a job has made, and of what."""

    asked: TranslateRequest
    expansion: Expansion

    @property
    def is_unasked(self) -> bool:
        """Whether the adapter wrote all of it unasked: then there is no prompt that could be edited."""
        return bool(self.expansion.rows) and not any(row.prompt for row in self.expansion.rows)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The list before anybody has edited it."""
        return tuple(Line(True, row.prompt, row.answer) for row in self.expansion.rows)

    def is_read(self, lines: tuple[Line, ...]) -> bool:
        """Whether a fit reads this list, as it stands, in place of the examples.

        What was made without examples, and left as it is, a fit makes by itself, and so it does what holds no
        prompt.
        """
        edited = lines != self.lines
        return bool(self.expansion.rows) and not self.is_unasked and (bool(self.asked.prompts) or edited)


@dataclass(frozen=True)
class KeptList:
    """What a visitor's browser keeps of the list.

    Attributes:
        job: the job that made it.
        lines: as they were edited; None where they were not.
        pending: a later job, whose list takes this one's place once it is made, and not before.
    """

    job: str = ""
    lines: tuple[Line, ...] | None = None
    pending: str = ""

    def shown(self, made: Made) -> tuple[Line, ...]:
        """The list as it stands: as it was edited, or else as it was made."""
        return made.lines if self.lines is None else self.lines

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "KeptList":
        """Read what a browser kept; whatever does not fit is left out."""
        if not isinstance(value, Mapping):
            return cls()
        job, pending = (str(value[name]) if is_id(value.get(name)) else "" for name in ("job", "pending"))
        lines = value.get("lines")
        if not isinstance(lines, Sequence) or isinstance(lines, str):
            return cls(job, None, pending)
        cells = [list(line.values()) if isinstance(line, Mapping) else line for line in lines]
        return cls(job, lines_of(cells), pending)


def lines_of(cells: object) -> tuple[Line, ...]:
    r"""The lines that a table holds, each a cell for `use`, prompt and answer; `\n` is a line break.

    What is no line, or has no prompt, is left out, and so is what comes behind `MAX_PROMPTS` lines.
    """
    if not isinstance(cells, Sequence):
        return ()
    found = []
    for cell in cells[:MAX_PROMPTS]:
        if not isinstance(cell, Sequence) or isinstance(cell, str) or len(cell) != 3:
            continue
        use, prompt, answer = cell
        if isinstance(prompt, str) and prompt.strip() and len(prompt) <= _LONGEST:
            shown = answer[:_LONGEST] if isinstance(answer, str) else ""
            found.append(Line(use in (True, "true"), unescaped(prompt), unescaped(shown)))
    return tuple(found)


def escaped(text: str) -> str:
    r"""A text in one line: a line break is written `\n`."""
    return text.replace("\n", "\\n")


def unescaped(text: str) -> str:
    r"""What `escaped` wrote."""
    return text.replace("\\n", "\n")


class Expansions:
    """The page's way to prompts that are made of examples; one for all visitors, made in `app.ui.build`."""

    def __init__(self, backend: Backend, engine: Engine, jobs: Jobs) -> None:
        self._backend = backend
        self._engine = engine
        self._jobs = jobs

    def start(self, request: TranslateRequest, heads_job: str = "") -> str:
        """Make what the fit of a translation would read, in the background; the job's result is a `Made`."""
        chosen = request.selection
        chosen.check()
        if len(request.prompts) > MAX_PROMPTS:
            raise RequestError(f"At most {MAX_PROMPTS:,} prompts are read; five are enough.")
        if any(len(prompt) > _LONGEST for prompt in request.prompts):
            raise RequestError(f"A prompt has at most {_LONGEST:,} characters; shorten the longest.")
        own = self._engine.own.of(chosen.pair, heads_job)

        def work(on_progress: OnProgress) -> Made:
            return Made(request, self._backend.expand(request, own, on_progress))

        return self._jobs.start("prompts", f"Prompts for {chosen.adapter}.", work)

    def pending(self, kept: KeptList) -> Job | None:
        """The job whose list is still to come, or did not; None where the server knows none."""
        return self._jobs.get(kept.pending) if kept.pending else None

    def settled(self, kept: KeptList) -> KeptList:
        """The same with the list of the pending job in its place, if that has made one."""
        job = self.pending(kept)
        return KeptList(kept.pending) if job and isinstance(job.result, Made) else kept

    def cancel(self, kept: KeptList) -> bool:
        """Ask the pending job to stop."""
        return self._jobs.cancel(kept.pending)

    def made(self, kept: KeptList, selection: Selection) -> Made | None:
        """What was made for the chosen source and adapter; None for any other, of which it tells nothing."""
        job = self._jobs.get(kept.job) if kept.job else None
        made = job.result if job else None
        if not isinstance(made, Made):
            return None
        of = made.asked.selection
        return made if (of.source, of.adapter) == (selection.source, selection.adapter) else None

    def asked(self, request: TranslateRequest, kept: KeptList) -> TranslateRequest:
        """The request with the prompts of its choice's list in place of the examples, where there is one."""
        made = self.made(kept, request.selection)
        lines = kept.shown(made) if made else ()
        if made is None or not made.is_read(lines):
            return request
        return replace(request, prompts=tuple(line.prompt for line in lines if line.use), expand=False)
