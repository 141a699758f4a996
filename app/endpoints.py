"""What programs may ask the page for, by Gradio's client or plain HTTP; nothing here trains or writes.

Whoever wants more has the library and the command line.
"""

import gradio as gr

from app.engine import Engine, GenerateRequest
from app.facts import SamplingChoice
from app.workspace import MAX_TEMPERATURE, MAX_TOKENS, Selection, clamp_strength
from cast.errors import CastError


def offer_endpoints(engine: Engine) -> None:
    """Add the endpoints to the page that is being built; their docstrings are their documentation."""

    def list_models() -> list[str]:
        """The models that come with the page; names of the Hub and folders are taken as well."""
        return [option.name for option in engine.models()]

    def list_adapters(source: str) -> list[str]:
        """The adapters that come with the page for one of its models."""
        return [option.name for option in engine.adapters(source)]

    def generate(
        source: str, target: str, adapter: str, prompt: str, strength: float = 1.0, max_tokens: int = 80,
        temperature: float = 0.0, seed: int = 0,
    ) -> dict[str, str]:  # fmt: skip
        """Both models go on from a prompt, each by itself and with the adapter.

        For the target it is carried over by mode hosted, which needs no fit. The answer has the texts
        `source`, `source_adapter`, `target` and `target_adapter`.
        """
        sampling = SamplingChoice(
            min(max(1, int(max_tokens)), MAX_TOKENS), min(max(0.0, temperature), MAX_TEMPERATURE), int(seed)
        )
        request = GenerateRequest(
            Selection.of(source, target, adapter), clamp_strength(strength), prompt, sampling
        )
        try:
            *_, panes = engine.generate(request)
        except CastError as error:
            raise gr.Error(str(error), print_exception=False) from error
        for pane in panes:
            if pane.state == "note":
                raise gr.Error(pane.text, print_exception=False)
        return {pane.key: pane.text for pane in panes}

    gr.api(list_models, api_name="list_models")
    gr.api(list_adapters, api_name="list_adapters")
    gr.api(generate, api_name="generate", concurrency_limit=8)
