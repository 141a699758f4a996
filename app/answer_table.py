"""A table of answers turned into HTML: one row a prompt, one column a pane."""

from html import escape

from app import views
from app.answers import Answers
from app.views import PANE_TITLES, Pane


def table(told: Answers) -> str:
    """The rows that have begun; the words that an adapter moved are marked in those that are whole."""
    if not told.rows:
        return ""
    head = "".join(
        f'<th scope="col">{views.pane_marks(pane.key)}{PANE_TITLES[pane.key]}'
        f"<span>{escape(pane.name)}</span></th>"
        for pane in told.rows[0]
    )
    body = "".join(
        f'<tr><th scope="row">{escape(views.shortened(prompt))}</th>{"".join(map(_cell, row))}</tr>'
        for prompt, row in zip(told.prompts, told.rows, strict=False)
    )
    return (
        '<div class="cast-answers" role="region" tabindex="0" aria-label="Answers to all prompts"><table>'
        f'<thead><tr><th scope="col">Prompt</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(pane: Pane) -> str:
    text = f"<em>{escape(pane.text)}</em>" if pane.state == "note" else views.marked(pane)
    return f'<td class="cast-cell" data-pane-cell="{pane.key}" data-state="{pane.state}">{text}</td>'
