"""A translated folder typed in the adapter's place: the choice becomes what its recipe says."""

import time
from dataclasses import replace
from typing import Any

import gradio as gr

from app import views
from app.engine import Engine
from app.tabs.mode import ModeOptions, segment_range
from app.tabs.pick import PickTab, chosen_updates
from app.workspace import Attached, Selection, clamp_strength


def wire_opening(pick: PickTab, options: ModeOptions, engine: Engine, attached: gr.BrowserState) -> None:
    """Connect the pickers to the folders that may stand in them."""
    # A handler of the pickers that also writes them would call itself for ever, so it leaves word here: the
    # folder after the time, so that the same folder may be opened again. A State would keep a stream open.
    found = gr.Textbox(visible="hidden")

    def follow(source: str, target: str, adapter: str, kept: object) -> tuple[Any, str, Any]:
        made, selection = Attached.from_json(kept), Selection.of(source, target, adapter)
        try:
            opened = engine.opened(selection)
        except Exception:
            # The summary reads the same folder, and says what is wrong with it.
            return gr.skip(), "", gr.skip()
        if opened:
            notice, now = views.opened(opened), replace(made, folder=opened.folder)
            return f"{time.monotonic_ns()} {opened.folder}", notice, now.to_json()
        notice = still_open(engine, made, selection)
        closed = bool(made.folder) and not notice
        return gr.skip(), notice, replace(made, folder="").to_json() if closed else gr.skip()

    def choose(word: str) -> tuple[Any, ...]:
        opened = engine.opened(Selection("", "", word.partition(" ")[2]))
        if opened is None:
            raise gr.Error("The folder is gone; choose an adapter.")
        chosen = opened.selection
        return (
            *chosen_updates(engine, chosen),
            chosen.mode,
            segment_range(engine, chosen.pair, chosen.segment or 0),
            clamp_strength(opened.strength),
        )

    gr.on(
        [picker.change for picker in pick.chosen],
        follow, [*pick.chosen, attached], [found, pick.notice, attached],
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
    found.change(
        choose, found, [*pick.chosen, *options.way, options.strength],
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip


def still_open(engine: Engine, made: Attached, selection: Selection) -> str:
    """The sentence on the folder that was opened last; empty where the choice is no longer of it."""
    opened = engine.still_open(made.folder, selection)
    return views.opened(opened) if opened else ""
