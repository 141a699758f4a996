"""What a visitor's jobs of heads show of themselves, and what its buttons do."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from app import views
from app.engine import Engine
from app.own_heads import Asked, title
from app.saying import said
from app.shelf import Request
from app.workspace import Attached

ABOUT = views.sentence(
    "Heads are trained once for a pair of models and then serve every adapter of it. "
    "Hosted mode on the whole stack needs none: there words cross, and no states."
)
Act = Callable[[Engine, str], None]


def started(engine: Engine, kept: object, make: Callable[[], Request]) -> tuple[Any, ...]:
    """Start what `make` asks for; what `job_updates` shows then, and what the browser keeps."""
    had = Attached.from_json(kept)
    try:
        job_id = engine.own.start(make(), had.heads_job)
    except Exception as error:
        return said(error), *[gr.skip()] * 5
    return *job_updates(engine, job_id), replace(had, heads_job=job_id).to_json()


def acted(engine: Engine, act: Act, kept: object) -> tuple[Any, ...]:
    """Do something to a visitor's jobs, and show them."""
    newest = Attached.from_json(kept).heads_job
    try:
        act(engine, newest)
    except Exception as error:
        return said(error), *[gr.skip()] * 4
    return job_updates(engine, newest)


def look(engine: Engine, newest: str) -> None:
    """Do nothing to them."""


def cancel(engine: Engine, newest: str) -> None:
    """Ask the newest that waits or runs to stop."""
    going = next((asked for asked in engine.own.asked(newest) if asked.is_going), None)
    if going:
        engine.cancel(going.entry.id)


def go_on(engine: Engine, newest: str) -> None:
    """Go on with the newest unfinished fit."""
    if left := _unfinished(engine.own.asked(newest)):
        engine.own.go_on(left.entry.id)


def discard(engine: Engine, newest: str) -> None:
    """Delete what the newest unfinished fit has left."""
    if left := _unfinished(engine.own.asked(newest)):
        engine.own.discard(left.entry.id)


def job_updates(engine: Engine, newest: str) -> tuple[Any, ...]:
    """What the jobs' panel, its buttons and the timer show for what a visitor has asked for."""
    asked = engine.own.asked(newest) if newest else ()
    told = [_told(each) for each in asked if each.is_going] or [_told(each) for each in asked[:1]]
    going = [each for each in asked if each.is_going]
    left = _unfinished(asked)
    stoppable = bool(going) and not (going[0].job and going[0].job.cancelling)
    label = "Cancel the newest" if len(going) > 1 else "Cancel"
    return (
        f'<div class="cast-asked">{"".join(told)}</div>' if any(told) else ABOUT,
        gr.update(interactive=stoppable, value=label),
        gr.update(visible=left is not None),
        gr.update(visible=left is not None),
        gr.update(active=bool(going)),
    )


def _told(asked: Asked) -> str:
    """One job as it stands, or what is left of it after a restart of the server."""
    if asked.job is not None:
        if asked.is_unfinished:
            return views.job(asked.job) + views.sentence(
                "Its newest checkpoint is kept: go on with it, or discard it."
            )
        return views.job(asked.job)
    if asked.is_unfinished:
        return views.sentence(
            f"{title(asked.entry.request)} The server was started anew before this came to its end; go on "
            "from its newest checkpoint, or discard it."
        )
    return ""


def _unfinished(asked: Sequence[Asked]) -> Asked | None:
    """The newest fit that can be gone on with."""
    return next((each for each in asked if each.is_unfinished), None)
