"""How many steps a compiled fit shall take, as a slider that at 0 leaves it to the target."""

import gradio as gr

from cast.recipes import STEPS, STEPS_OF_SMALL, STEPS_WITH_PROMPTS, TranslationConfig

_INFO = (
    f"0 takes as many as suit the target: {STEPS_OF_SMALL}, and {STEPS} where it has more than some million "
    f"parameters, {STEPS_WITH_PROMPTS} with example prompts. "
    f"With example prompts up to {TranslationConfig.rounds} rounds of them, until what it was not fitted "
    "on arrives."
)


def create_steps_slider(label: str) -> gr.Slider:
    """The slider, of this name."""
    return gr.Slider(0, 1000, value=0, step=10, label=label, info=_INFO)


def steps_of(slider: float) -> int | None:
    """The steps of a fit that a slider stands at; at 0 they are left to the target."""
    return int(slider) or None
