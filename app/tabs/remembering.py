"""What a visitor has set in a tab beside the choice of models is there again after a reload."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

_MAX_TEXT = 300


def remember(blocks: gr.Blocks, kept: gr.BrowserState, widgets: Mapping[str, Any]) -> gr.events.Dependency:
    """Keep what the visitor sets, in the browser itself, and put it back when the page is loaded.

    Args:
        blocks: the page, whose loading puts the values back.
        kept: the browser's store.
        widgets: by the name under which each is kept.

    Returns:
        The event after which the values stand in the widgets.
    """
    names = ", ".join(widgets)
    for widget in widgets.values():
        # `input` alone: what a handler sets follows from something that is kept already.
        widget.input(
            None, list(widgets.values()), kept, api_visibility="private", js=f"({names}) => [{{{names}}}]"
        )

    def restore(told: object) -> list[Any]:
        values = told if isinstance(told, Mapping) else {}
        return [
            gr.update(value=values[name]) if name in values and fits(widget, values[name]) else gr.skip()
            for name, widget in widgets.items()
        ]

    return blocks.load(
        restore, kept, list(widgets.values()), show_progress="hidden", api_visibility="private"
    )  # fmt: skip


def fits(widget: Any, value: object) -> bool:
    """Whether a widget offers a value: a browser may have kept it from an older version of the page."""
    if isinstance(widget, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(widget, gr.CheckboxGroup):
        offered = [name for _, name in widget.choices]
        return isinstance(value, list) and all(one in offered for one in value)
    if isinstance(widget, gr.Radio):
        return any(value == name and type(value) is type(name) for _, name in widget.choices)
    if isinstance(widget, gr.Textbox):
        return isinstance(value, str) and len(value) <= _MAX_TEXT
    low, high = widget.minimum, widget.maximum
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return number and (low is None or value >= low) and (high is None or value <= high)
