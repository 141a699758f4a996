"""Ready-made examples above the pickers: one click chooses all three, and generates."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from app import ready, theme
from app.engine import Engine
from app.expansions import Expansions
from app.tabs import generate as generate_tab
from app.tabs import pick as pick_tab
from app.tabs.choice import Latest, Stores, Tabs, describe_after, reaching, without_closed
from app.tabs.prompts import hint_lines
from app.workspace import Attached, Workspace


def create_ready(engine: Engine) -> gr.HTML:
    """Build the row of buttons."""
    return gr.HTML(
        ready.row(ready.offered(engine)), js_on_load=theme.script("ready"), elem_classes="cast-detail"
    )


def wire_ready(
    buttons: gr.HTML, tabs: Tabs, engine: Engine, expansions: Expansions, stores: Stores, latest: gr.State,
    run: gr.events.Dependency,
) -> None:  # fmt: skip
    """Connect the buttons; `run` is what the button *Generate* started last, and gives way."""
    examples = ready.offered(engine)
    tab, options = tabs.generate, tabs.generate.options
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def take(kept: object, seen: Latest, event: gr.EventData) -> Mapping[Any, Any]:
        """Everything set for an example, and the panes before their first word."""
        seen.chosen = chosen = ready.pressed(examples, event.at).selection
        prompt = next(iter(engine.prompts(chosen.adapter)), "")
        had = Attached.from_json(kept)
        made = without_closed(engine, had, chosen)
        updates = pick_tab.set_to(tabs.pick, engine, None, chosen)
        updates |= pick_tab.waiting(tabs.pick, engine, chosen)
        updates |= generate_tab.mode_updates(tab, chosen.mode)
        updates |= generate_tab.follow(tab, engine, chosen, prompt)
        updates |= {
            options.mode: chosen.mode,
            options.segment: reaching(0, chosen.mode),
            options.strength: 1.0,
        }
        updates |= {
            tab.prompt: prompt,
            tab.hints: hint_lines(engine, chosen.adapter),
            tab.beside.retrained: "",
        }
        if made != had:
            # What has not changed is not written back: another handler may have changed it meanwhile.
            updates |= {stores.attached: made.to_json()}
        return updates | {stores.choice: Workspace.of(chosen).choice()}

    taken = buttons.select(
        take, [stores.attached, latest],
        [
            *tabs.pick.chosen, *tabs.pick.followers, *options.way, options.strength, tab.prompt,
            *tab.followers, stores.choice, stores.attached,
        ],
        trigger_mode="multiple", cancels=[run], **quiet,
    )  # fmt: skip
    # The button itself: *Stop* ends what it starts, and no second stream can write beside it.
    taken.then(None, js="() => window.castStage.generate()", api_visibility="private")
    describe_after(taken, tabs, engine, expansions, stores, latest)
