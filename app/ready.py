"""Ready-made examples: what one click chooses, of the models and adapters that ship."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.engine import Engine
from app.workspace import Selection
from cast.errors import RequestError


@dataclass(frozen=True)
class Ready:
    """A choice that shows something at once, and what it shows in plain words."""

    words: str
    selection: Selection


READY = (
    Ready("Name a story's mood", Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood")),
    Ready("Answer as JSON", Selection("pocket:mistral", "pocket:neox", "pocket:mistral/json")),
    Ready("Talk like a pirate", Selection("pocket:qwen", "pocket:llama", "pocket:qwen/pirate")),
    Ready("Add a moral", Selection("pocket:neox", "pocket:qwen", "pocket:neox/moral")),
)
"""A label and styles, from every model of the zoo and to every one; hosted by words, so nothing is fitted."""


def offered(engine: Engine) -> tuple[Ready, ...]:
    """The examples of which models and adapter are here."""
    models = {option.name for option in engine.models()}
    return tuple(
        each
        for each in READY
        if {each.selection.source, each.selection.target} <= models
        and each.selection.adapter in {option.name for option in engine.adapters(each.selection.source)}
    )


def pressed(examples: Sequence[Ready], at: object) -> Ready:
    """The example of a button, by the place that the browser tells.

    Raises:
        RequestError: it tells none.
    """
    if type(at) is int and 0 <= at < len(examples):
        return examples[at]
    raise RequestError("There is no such example; choose one of those that are shown.")


def row(examples: Sequence[Ready]) -> str:
    """The examples as buttons in a row; empty without any."""
    if not examples:
        return ""
    buttons = "".join(
        f'<button type="button" data-at="{at}">{escape(each.words)} '
        f"<span>{_short(each.selection.source)} → {_short(each.selection.target)}</span></button>"
        for at, each in enumerate(examples)
    )
    return (
        f'<div class="cast-ready" role="group" aria-label="Ready-made examples"><p>Try one</p>{buttons}</div>'
    )


def _short(model: str) -> str:
    return escape(model.removeprefix("pocket:"))
