"""The equivalent command line of what is chosen, in each tab that makes something."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gradio as gr

from app import snippets
from app.expansions import Expansions, KeptList
from app.exports import Exports
from app.tabs import fit_form
from app.tabs.explore import ExploreTab, request_of
from app.tabs.generate import GenerateTab
from app.tabs.heads import HeadsTab
from app.tabs.prompts import asked_for
from app.workspace import Attached, Selection, Workspace
from cast.errors import CastError


@dataclass(frozen=True)
class Command:
    """A line, the widgets that it tells of, and what makes it: (models and adapter, values) → line."""

    line: gr.Code
    widgets: Sequence[Any]
    make: Callable[..., str]


def create_command() -> gr.Code:
    """A line to copy, at the end of the tab that is being built."""
    return code_block("The same on the command line")


def code_block(label: str, visible: bool = True) -> gr.Code:
    """A text to read and to copy, in plain ink: the colours of a syntax are too pale to read."""
    return gr.Code(
        "", language=None, label=label, interactive=False, lines=1, max_lines=24, wrap_lines=True,
        show_line_numbers=False, buttons=["copy"], visible=visible,
    )  # fmt: skip


def of_translate(line: gr.Code, tab: GenerateTab, expansions: Expansions, listed: gr.BrowserState) -> Command:
    """What *Translate* and *Write a recipe* would do; the prompts, be it of the list, are in a file."""

    def make(chosen: Selection, mode: str, segment: int, steps: int, hints: str, kept: object) -> str:
        selection = Selection.of(chosen.source, chosen.target, chosen.adapter, mode, segment)
        return snippets.translate(asked_for(expansions, selection, steps, hints, KeptList.from_json(kept)))

    return Command(line, [*tab.options.way, tab.steps, tab.hints, listed], make)


def of_fit(line: gr.Code, tab: HeadsTab) -> Command:
    """What *Train heads* would do."""

    def make(chosen: Selection, *values: Any) -> str:
        try:
            return snippets.fit(fit_form.request(chosen.pair, values))
        except CastError as error:
            return f"# {error}"

    return Command(line, tab.form.widgets, make)


def of_map(
    line: gr.Code, tab: ExploreTab, way: Sequence[Any], exports: Exports, attached: gr.BrowserState
) -> Command:
    """What *Draw the map* would do; `way` is mode and segment, which say whose translation is shown."""

    def make(chosen: Selection, mode: str, segment: int, kept: object, *asked: Any) -> str:
        selection = Selection.of(chosen.source, chosen.target, chosen.adapter, mode, segment)
        try:
            folder = exports.on_a_map(selection, Attached.from_json(kept))
        except CastError:
            # Drawing the map says so as well, and shows the source's shift alone.
            folder = ""
        return snippets.manifold(request_of(selection, *asked), folder)

    return Command(line, [*way, attached, *tab.asked], make)


def wire_commands(commands: Sequence[Command], choice: gr.BrowserState, start: Selection) -> None:
    """Write the lines now, and whenever the choice or a widget changes, be it by a handler.

    Nothing follows a line. All are written by one handler, which is one question to the server for a change
    of models, where `change` of three pickers would be many; and not with `always_last`, which goes round
    without end where a handler sets several of its widgets at once.
    """

    def write(chosen: object, *values: Any) -> list[str]:
        """All lines for the choice that the browser keeps, and the values of all widgets."""
        return lines(Workspace.from_json(chosen).selection, values)

    def lines(chosen: Selection, values: Sequence[Any]) -> list[str]:
        left = iter(values)
        return [each.make(chosen, *islice(left, len(each.widgets))) for each in commands]

    widgets = [widget for each in commands for widget in each.widgets]
    for each, line in zip(commands, lines(start, [widget.value for widget in widgets]), strict=True):
        each.line.value = line
    gr.on(
        [choice.change, *(_told(widget) for widget in widgets)],
        write, [choice, *widgets], [each.line for each in commands],
        show_progress="hidden", trigger_mode="multiple", api_visibility="private",
    )  # fmt: skip


def _told(widget: Any) -> Any:
    """The event that tells of a new value; of a text, once it is written."""
    return widget.blur if isinstance(widget, gr.Textbox) else widget.change
