"""How the change is carried: the mode, what it does, and its options. Stands in the Generate tab."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import views
from app.engine import Engine
from app.tabs.pick import target_depth
from app.workspace import MAX_STRENGTH, MODES, Pair, Workspace

MODE_WORDS = {
    "hosted": "At once: the source reads along with its frozen adapter, and the target takes over the words "
    "that the adapter changes; block by block, through the heads instead.",
    "compiled": "A plain LoRA of the target, fitted until it says what the source with its adapter says.",
    "instant": "A plain LoRA without training: linear maps of each adapted site, multiplied out.",
    "kernel": "The paper's own form: at each adapted site encode, apply the frozen kernel, decode.",
}


@dataclass(frozen=True)
class ModeOptions:
    """The widgets of the mode."""

    mode: gr.Radio
    words: gr.HTML
    segment: gr.Slider
    strength: gr.Slider

    @property
    def way(self) -> list[gr.Radio | gr.Slider]:
        """Mode and segment, in the order in which `Selection.of` takes them after the three pickers."""
        return [self.mode, self.segment]


def create_mode_options(engine: Engine, start: Workspace) -> ModeOptions:
    """Build the widgets inside the tab's column."""
    mode = gr.Radio(list(MODES), value=start.mode, label="How the change is carried")
    words = gr.HTML(mode_sentence(start.mode))
    blocks = engine.facts(start.selection).target.depth if engine.knows(start.selection) else 1
    segment = gr.Slider(
        0, max(blocks, start.segment), value=start.segment, step=1, label="Target blocks a segment",
        visible=start.mode == "hosted", elem_classes="cast-detail",
        info="0: the whole source reads along, and no heads are needed. From 1 up: so many target blocks "
        "share one encode and one decode of the heads.",
    )  # fmt: skip
    strength = gr.Slider(
        0, MAX_STRENGTH, value=start.strength, step=0.05, label="Strength of the carried change",
        info="0 is the bare target; acts on the next Generate.",
    )  # fmt: skip
    return ModeOptions(mode, words, segment, strength)


def follow(options: ModeOptions, engine: Engine, pair: Pair, segment: int) -> dict[Any, Any]:
    """The segment slider for the chosen target: at most all of its blocks."""
    blocks = target_depth(engine, pair)
    if blocks is None:
        return {}
    return {options.segment: gr.update(maximum=blocks, value=min(segment, blocks))}


def mode_sentence(mode: str) -> str:
    """What the chosen mode does."""
    return views.sentence(MODE_WORDS.get(mode, ""))
