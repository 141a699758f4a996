"""More panes and their strengths, folded away in the Generate tab."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.workspace import MAX_STRENGTH, MODES, Workspace


@dataclass(frozen=True)
class BesideOptions:
    """The widgets of `app.workspace.Beside`, in the order of its fields."""

    source_strength: gr.Slider
    retrained: gr.Textbox
    retrained_strength: gr.Slider
    second_mode: gr.Dropdown
    second_strength: gr.Slider

    @property
    def all(self) -> list[Any]:
        """All of them, in that order."""
        return [
            self.source_strength, self.retrained, self.retrained_strength, self.second_mode,
            self.second_strength,
        ]  # fmt: skip


def create_beside_options(start: Workspace) -> BesideOptions:
    """Build the fold inside the tab's column."""
    with gr.Accordion("More panes and their strengths", open=False, elem_classes="cast-detail"):
        second_mode = gr.Dropdown(
            [("none", ""), *((mode, mode) for mode in MODES)], value=start.second_mode,
            label="Carried a second way, beside the first",
            info="The same mode at another strength, or another mode; one that is fitted runs once it has "
            "been translated.",
        )  # fmt: skip
        second_strength = _strength("Strength of the second way", start.second_strength)
        retrained = gr.Textbox(
            start.retrained, label="Adapter retrained on the target",
            info="A folder or Hub id, to compare with. Left empty it is the zoo's own of the same task, "
            "where it ships one.",
        )  # fmt: skip
        retrained_strength = _strength("Strength of the retrained adapter", start.retrained_strength)
        source_strength = _strength("Strength of the adapter in the source", start.source_strength)
    return BesideOptions(source_strength, retrained, retrained_strength, second_mode, second_strength)


def _strength(label: str, value: float) -> gr.Slider:
    return gr.Slider(0, MAX_STRENGTH, value=value, step=0.05, label=label)
