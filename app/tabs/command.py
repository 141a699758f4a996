"""The equivalent command line of what is chosen, in each tab that makes something."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import snippets
from app.tabs.explore import ExploreTab
from app.tabs.generate import GenerateTab, prompts_of
from app.tabs.heads import TOKENS, HeadsTab
from app.tabs.pick import PickTab
from app.workspace import Pair, Selection


def create_command() -> gr.Code:
    """A line to copy, at the end of the tab that is being built."""
    return code_block("The same on the command line")


def code_block(label: str, visible: bool = True) -> gr.Code:
    """A text to read and to copy, in plain ink: the colours of a syntax are too pale to read."""
    return gr.Code(
        "", language=None, label=label, interactive=False, lines=1, max_lines=24, wrap_lines=True,
        show_line_numbers=False, buttons=["copy"], visible=visible,
    )  # fmt: skip


def wire_generate_command(line: gr.Code, pick: PickTab, tab: GenerateTab) -> None:
    """Follow what *Translate* and *Write a recipe* would do."""

    def command(
        source: str, target: str, adapter: str, mode: str, segment: int, steps: int, hints: str
    ) -> str:
        """The line, with the example prompts in a file."""
        selection = Selection.of(source, target, adapter, mode, segment)
        return snippets.translate(selection, int(steps), bool(prompts_of(hints)))

    follow(line, command, [*pick.chosen, *tab.options.way, tab.steps, tab.hints])


def wire_heads_command(line: gr.Code, pick: PickTab, tab: HeadsTab) -> None:
    """Follow what *Train heads* would do."""

    def command(source: str, target: str, effort: str, kind: str, corpus: str) -> str:
        return snippets.fit(Pair(source or "", target or ""), TOKENS[effort], kind, corpus or "")

    follow(line, command, [pick.source, pick.target, tab.effort, tab.kind, tab.corpus])


def wire_explore_command(line: gr.Code, pick: PickTab, tab: ExploreTab) -> None:
    """Follow what *Draw the map* would do."""

    def command(source: str, target: str, adapter: str, depth: int, points: int) -> str:
        return snippets.manifold(Selection.of(source, target, adapter), int(depth), int(points))

    follow(line, command, [*pick.chosen, tab.depth, tab.points])


def follow(line: gr.Code, command: Callable[..., str], widgets: list[Any]) -> None:
    """Write the line now, and whenever one of the widgets changes, be it by a handler: nothing follows it."""
    line.value = command(*(widget.value for widget in widgets))
    gr.on(
        [widget.change for widget in widgets], command, widgets, line,
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
