"""*Publish to the Hub* with the visitor's own token, wherever something can leave the page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import views
from app.exports import Export, Exports
from app.saying import said

Find = Callable[..., Export | str]
"""Of the values of a tab's own widgets: what is to leave, or a sentence on why nothing is."""


@dataclass(frozen=True)
class Publishing:
    """The widgets of the panel."""

    repo: gr.Textbox
    token: gr.Textbox
    private: gr.Checkbox
    publish: gr.Button
    message: gr.HTML


def create_publishing(label: str, *, ready: bool) -> Publishing:
    """Build the panel; the button is called `label`, and can be pressed at once where `ready` is set."""
    repo = gr.Textbox(
        "", label="Repository on the Hub", placeholder="owner/name", info="Made if it is not there yet."
    )
    token = gr.Textbox(
        "", label="Your Hub token", type="password", placeholder="hf_…",
        info="With the right to write. It is used once, and neither kept nor logged.",
        html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
    )  # fmt: skip
    private = gr.Checkbox(False, label="Private")
    publish = gr.Button(label, interactive=ready, min_width=160)
    return Publishing(repo, token, private, publish, gr.HTML())


def wire_publishing(panel: Publishing, exports: Exports, find: Find, inputs: Sequence[Any]) -> None:
    """Connect the button; `find` gets the values of `inputs`."""

    def publish(*given: Any) -> Iterator[dict[Any, Any]]:
        """Publish, and forget the token whatever comes of it."""
        *own, repo, token, private = given
        yield {
            panel.token: "",
            panel.publish: gr.update(interactive=False),
            panel.message: views.sentence("Publishing."),
        }
        try:
            found = find(*own)
            if isinstance(found, str):
                told = views.sentence(found, "error")
            else:
                address = exports.publish(found, (repo or "").strip(), (token or "").strip(), private)
                told = views.sentence(f"Published: {address}", "good")
        except Exception as error:
            told = said(error)
        yield {panel.publish: gr.update(interactive=True), panel.message: told}

    panel.publish.click(
        publish, [*inputs, panel.repo, panel.token, panel.private],
        [panel.token, panel.publish, panel.message],
        trigger_mode="once", show_progress="hidden", api_visibility="private",
    )  # fmt: skip
