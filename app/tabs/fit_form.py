"""What is asked of *Train heads*: one dial, the form, the text, and every setting folded away."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import gradio as gr

from app.facts import EFFORTS, FitOptions, FitRequest
from app.workspace import Pair
from cast.errors import RequestError

_DEFAULT = FitOptions()


@dataclass(frozen=True)
class FitForm:
    """The widgets of the form, in the order in which `request` takes their values."""

    effort: gr.Radio
    kind: gr.Radio
    corpus: gr.Textbox
    kl_weight: gr.Number
    depths: gr.Textbox
    batch_size: gr.Number
    learning_rate: gr.Number
    passes: gr.Number
    repeats: gr.Number
    mlp_width: gr.Number
    seed: gr.Number

    @property
    def widgets(self) -> list[Any]:
        """All of them."""
        return list(vars(self).values())


FIELDS = tuple(field.name for field in fields(FitForm))


def create_fit_form() -> FitForm:
    """Build the form."""
    effort = gr.Radio(
        [(f"{name}, {tokens // 1000} thousand tokens", name) for name, tokens in EFFORTS.items()],
        value="good", label="Effort",
    )  # fmt: skip
    kind = gr.Radio([("affine", "affine"), ("affine + MLP", "mlp")], value="mlp", label="Form of the heads")
    corpus = gr.Textbox(
        "", label="Text", placeholder="pocket models: the story world; others: WikiText from the Hub",
        info="A .txt or .jsonl file, a folder, or a Hub data set; may stay empty.",
    )  # fmt: skip
    with gr.Accordion("All settings of the fit", open=False):
        kl_weight = gr.Number(
            _DEFAULT.kl_weight, minimum=0, label="Objective: weight of the target's words",
            info="KL at the last depth beside the squared error of the states; 0 fits states alone.",
        )  # fmt: skip
        depths = gr.Textbox(
            "", label="Target depths", placeholder="all", info="Such as 0, 6: fewer are trained faster."
        )
        with gr.Row():
            batch_size = _whole(_DEFAULT.batch_size, "Texts a batch")
            learning_rate = gr.Number(
                _DEFAULT.learning_rate, minimum=0, label="Learning rate", info="0: by the models' width",
                min_width=120,
            )  # fmt: skip
            passes = _whole(_DEFAULT.passes, "Passes over the text")
            repeats = _whole(_DEFAULT.repeats, "Uses of each chunk")
            mlp_width = _whole(_DEFAULT.mlp_width, "Width of the MLP")
            seed = _whole(_DEFAULT.seed, "Seed", minimum=0)
    return FitForm(
        effort, kind, corpus, kl_weight, depths, batch_size, learning_rate, passes, repeats, mlp_width, seed
    )


def _whole(value: int, label: str, minimum: int = 1) -> gr.Number:
    return gr.Number(value, minimum=minimum, precision=0, label=label, min_width=120)


def request(pair: Pair, values: Sequence[Any]) -> FitRequest:
    """What the form asks for.

    Args:
        pair: of the models.
        values: of the widgets, in the order of `FitForm`.

    Raises:
        RequestError: a setting is no number, or no depth.
    """
    effort, kind, corpus, kl_weight, depths, batch_size, learning_rate, passes, repeats, mlp_width, seed = (
        values
    )
    given = {
        "kl_weight": kl_weight, "batch_size": batch_size, "learning_rate": learning_rate, "passes": passes,
        "repeats": repeats, "mlp_width": mlp_width, "seed": seed,
    }  # fmt: skip
    # An emptied field stands for the default.
    options = replace(_DEFAULT, **{name: value for name, value in given.items() if value is not None})
    options = replace(options, depths=_depths(depths or ""))
    return FitRequest(pair, corpus or "", EFFORTS[effort], kind, options)


def _depths(text: str) -> tuple[int, ...]:
    words = re.findall(r"[^\s,;]+", text)
    if not all(word.isdecimal() and len(word) < 5 for word in words):
        raise RequestError("Write the target depths as numbers, such as 0, 6; or leave them empty for all.")
    return tuple(sorted({int(word) for word in words}))
