"""For a room: the switch to talk mode, and the guided tour that lies over the page while it is given."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import tour, views
from app.engine import Engine, GenerateRequest
from app.facts import SamplingChoice
from app.saying import said
from app.showcase import Showcase
from app.workspace import Workspace, clamp_strength

_KEYS = (
    ("R", "runs"),
    ("S", "stops"),
    ("P", "prompt"),
    ("1–9", "tabs"),
    ("G", "guided tour"),
    ("T", "leaves"),
)
_TOUR_TOKENS = 48
LINK = "Copy link"


@dataclass(frozen=True)
class Stage:
    """The widgets of talk mode and tour."""

    talk: gr.Button
    tour: gr.Button
    link: gr.Button


@dataclass(frozen=True)
class Tour:
    """The widgets that lie over the page."""

    told: gr.HTML
    live: gr.HTML
    run: gr.Button
    strength: gr.Number
    back: gr.Button
    forward: gr.Button
    leave: gr.Button


def create_stage(engine: Engine) -> Stage:
    """Build the switches that stand in the page's head."""
    guided = gr.Button(
        "Guided tour (G)", size="sm", elem_id="cast-tour-start", min_width=140,
        visible=engine.showcase is not None,
    )  # fmt: skip
    talk = gr.Button("Talk mode (T)", size="sm", elem_id="cast-talk-switch", min_width=140)
    link = gr.Button(LINK, size="sm", min_width=120)
    return Stage(talk, guided, link)


def create_tour() -> Tour:
    """Build the tour, empty until it begins, and the line of keys of talk mode."""
    keys = "".join(f"<span><kbd>{key}</kbd> {words}</span>" for key, words in _KEYS)
    gr.HTML(f'<p class="cast-keys">{keys}</p>', elem_classes="cast-keys-line")
    with gr.Column(elem_id="cast-tour"):
        told = gr.HTML(elem_classes="tour-told")
        live = gr.HTML(elem_classes="tour-live")
        with gr.Row(elem_classes="tour-moves"):
            back = gr.Button("← Back", elem_id="cast-tour-back", min_width=100)
            forward = gr.Button("Next →", elem_id="cast-tour-next", variant="primary", min_width=100)
            leave = gr.Button("Leave (Esc)", min_width=100)
            run = gr.Button("Run again", elem_id="cast-tour-run", min_width=100)
        strength = gr.Number(1.0, visible=False)
    return Tour(told, live, run, strength, back, forward, leave)


def wire_stage(stage: Stage, laid: Tour, engine: Engine) -> None:
    """Connect the switches and the tour; moving from step to step asks the server nothing."""

    def begin() -> tuple[str, str]:
        example = _told(engine)
        return tour.steps(example, _skill(engine, example)), _recorded(example)

    def run(strength: float) -> Iterator[str]:
        """The recorded prompt anew on the shared models."""
        example = _told(engine)
        sampling = SamplingChoice(_TOUR_TOKENS, 0.0, 0)
        request = GenerateRequest(example.selection, clamp_strength(strength), example.prompt, sampling)
        caption = f"Live on this machine; strength {request.strength:g}."
        try:
            for shown in engine.generate(request):
                yield views.panes(request.prompt, shown, caption)
        except Exception as error:
            yield said(error) + _recorded(example)

    for button, action in ((stage.talk, "toggleTalk"), (laid.back, "back"), (laid.forward, "next")):
        button.click(None, js=f"() => window.castStage.{action}()", api_visibility="private")
    laid.leave.click(None, js="() => window.castStage.leave()", api_visibility="private")
    stage.tour.click(
        begin, None, [laid.told, laid.live], show_progress="hidden", api_visibility="private"
    ).then(None, js="() => window.castStage.begin()", api_visibility="private")
    laid.run.click(
        run, laid.strength, laid.live, js="() => [window.castStage.strength()]",
        show_progress="hidden", trigger_mode="always_last", concurrency_limit=8, api_visibility="private",
    )  # fmt: skip


def wire_link(stage: Stage, chosen: list[Any]) -> None:
    """Connect the share link; it is written in the browser, where the visitor's choices are.

    Args:
        stage: the switches.
        chosen: the widgets of a workspace's fields, in their order.
    """
    told = json.dumps(Workspace().choice() | Workspace().settings())
    stage.link.click(
        None, chosen, stage.link, api_visibility="private",
        js=f"(...values) => window.castStage.copyLink({told}, values)",
    ).then(
        None, None, stage.link, api_visibility="private", js=f"() => window.castStage.later({LINK!r})"
    )  # fmt: skip


def _told(engine: Engine) -> Showcase:
    if engine.showcase is None:
        raise RuntimeError("The tour is offered only where an example was recorded.")
    return engine.showcase


def _skill(engine: Engine, example: Showcase) -> str:
    """What the adapter teaches, in the words of its entry in the picker."""
    chosen = example.selection
    labels = {option.name: option.label for option in engine.adapters(chosen.source)}
    return labels.get(chosen.adapter, chosen.adapter).split(": ", 1)[-1]


def _recorded(example: Showcase) -> str:
    told = [pane for pane in example.panes() if pane.key in views.PANES]
    return views.panes(example.prompt, told, example.made)
