"""Evaluation runs turned into HTML: a table that sorts in the browser, and what each run is."""

from collections.abc import Sequence
from html import escape

from app import views
from app.jobs import Job, is_going
from app.runs import BASELINES, Ends, Run, lettered, method_label
from cast.results import Result

_COLUMNS = ("Recovered lift", "Ratio", "Score", "Off-task", "Seconds", "Memory")
_CAPTION = (
    "Recovered lift: the share that arrives of what retraining on the target gains; in brackets its "
    "bootstrap 95 % interval. Ratio: the score over that of retraining. Off-task: how many more bits per "
    "byte held-out general text costs than on the bare target. Seconds: to make the translation, heads not "
    "counted. Memory: the most that the server's process had held by the end of the method."
)
_STATES = {
    "running": "Running",
    "done": "Done",
    "cancelled": "Cancelled; what had come to its end is kept",
    "failed": "Ended early",
}


def running(job: Job | None, run: Run | None) -> str:
    """The bar of a run that is under way; once it is over, its own sentence."""
    if run is None:
        return ""
    if is_going(job):
        due = run.methods[run.measured] if run.ends and run.measured < len(run.methods) else ""
        now = f"now {method_label(due)}" if due else "now the models by themselves, for comparison"
        words = f"{run.measured} of {len(run.methods)} methods done; {now}."
        return views.job(job) + views.sentence(words)
    words = f"{_STATES[run.state]}: {len(run.results)} of {len(run.methods)} methods measured. {run.message}"
    kind = {"done": "good", "failed": "error"}.get(run.state, "info")
    return f'<div class="cast-job" data-state="{run.state}">{views.sentence(words.strip(), kind)}</div>'


def table(runs: Sequence[Run]) -> str:
    """The measured methods of the runs, sortable, above the ends of each scale and what was not measured."""
    if not any(run.ends for run in runs):
        return views.sentence("Each method appears here as soon as it is measured.")
    names = ("Method", *(("Run",) if len(runs) > 1 else ()), *_COLUMNS)
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{name}</button></th>' for name in names
    )
    shown = lettered(runs)
    body = "".join(_row(letter, result) for letter, run in shown for result in run.results)
    ends = "".join(_end_rows(letter, run, run.ends) for letter, run in shown if run.ends)
    notes = "".join(f"<li>{escape(note)}</li>" for letter, run in shown for note in _notes(letter, run))
    return (
        '<div class="cast-facts cast-wide cast-results" role="region" tabindex="0" '
        f'aria-label="Measured methods"><table><thead><tr>{head}</tr></thead>'
        f'<tbody class="cast-sorted">{body}</tbody><tbody class="cast-ends">{ends}</tbody></table></div>'
        + (f'<ul class="cast-notes">{notes}</ul>' if notes else "")
        + f'<p class="cast-caption">{escape(_CAPTION)}</p>'
    )


def _row(letter: str, result: Result) -> str:
    kind = "baseline" if result.method in BASELINES else "cast"
    mark = '<i class="mark mark-adapter"></i>' if kind == "cast" else '<i class="mark mark-baseline"></i>'
    label = escape(method_label(result.method))
    cells = [f'<th scope="row" data-value="{label}">{mark}{label}</th>']
    if letter:
        cells.append(f'<td data-value="{letter}">{letter}</td>')
    cells += [
        _cell(result.lift, _lift(result)),
        _cell(result.ratio, _figure(result.ratio)),
        _cell(result.translated, _figure(result.translated)),
        _cell(result.off_task, _percent(result.off_task)),
        _cell(result.seconds, f"{result.seconds:,.1f}"),
        _cell(result.peak_memory_bytes or None, _memory(result.peak_memory_bytes)),
    ]
    return f'<tr data-method="{escape(result.method)}" data-kind="{kind}">{"".join(cells)}</tr>'


def _cell(value: float | None, shown: str) -> str:
    """A figure, and what it is sorted by; an unknown one has no value and stays below the known ones."""
    known = "" if value is None else f' data-value="{value!r}"'
    return f"<td{known}>{shown}</td>"


def _end_rows(letter: str, run: Run, ends: Ends) -> str:
    scores = (
        ("target", f"{run.target} alone", ends.base),
        ("target", "Retrained on the target", ends.retrained),
        ("source", f"{run.source} alone", ends.source_base),
        ("source", f"{run.source} with the adapter", ends.source_adapted),
    )
    blank, of_run = "<td></td>", f"<td>{letter}</td>" if letter else ""
    return "".join(
        f'<tr><th scope="row"><i class="mark mark-{mark}"></i>{escape(name)}</th>'
        f"{of_run}{blank * 2}<td>{_figure(score)}</td>{blank * 3}</tr>"
        for mark, name, score in scores
        if score is not None
    )


def _notes(letter: str, run: Run) -> list[str]:
    """What a reader of the figures has to know of one run."""
    if run.ends is None:
        return []
    start = f"{letter}: " if letter else ""
    notes = [f"{start}{run.label}, {run.ends.examples} examples, scored by {run.ends.metric}."]
    if run.ends.retrained is None:
        notes.append(
            f"{start}There is no LoRA retrained on {run.target} to compare with, so recovered lift is not "
            "known. Name one, or give a file to train one on, under Reference, text and effort."
        )
    elif run.results and all(result.lift is None for result in run.results):
        notes.append(
            f"{start}Retraining itself gains too little here for a share of it to mean anything, so "
            "recovered lift is left out."
        )
    notes += [
        f"{start}{method_label(missed.method)} was not measured. {missed.reason}" for missed in run.missed
    ]
    return notes


def _lift(result: Result) -> str:
    if result.lift is None:
        return "–"
    if result.interval is None:
        return views.figure(result.lift)
    low, high = (views.figure(end) for end in result.interval)
    return f'{views.figure(result.lift)} <span class="control">[{low}, {high}]</span>'


def _figure(value: float | None) -> str:
    return "–" if value is None else views.figure(value)


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.1f} %".replace("-", "−")


def _memory(count: int) -> str:
    return views.size(count) if count else "–"
