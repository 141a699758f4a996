"""Several prompts at once, folded away in the Generate tab: a row a prompt, and a column a pane."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app import answer_table, views
from app.answers import MAX_ROWS, AnswerTables, as_csv
from app.engine import Engine
from app.expansions import escaped
from app.jobs import is_going
from app.saying import said
from app.tabs.generate import GenerateTab, asked, request_of
from app.tabs.pick import PickTab
from app.tabs.prompts import prompts_of
from app.workspace import is_id
from cast.storage import write_atomically

Updates = dict[Any, Any]


@dataclass(frozen=True)
class SeveralPanel:
    """The widgets; `drawn` is what the table was last made of."""

    prompts: gr.Textbox
    take: gr.Button
    run: gr.Button
    cancel: gr.Button
    job: gr.HTML
    table: gr.HTML
    download: gr.DownloadButton
    timer: gr.Timer

    @property
    def standing(self) -> list[Any]:
        """What `_standing` sets."""
        return [self.job, self.cancel, self.table, self.download, self.timer]


def create_several_panel() -> SeveralPanel:
    """Build the fold."""
    with gr.Accordion("Several prompts at once", open=False, elem_classes="cast-detail"):
        prompts = gr.Textbox(
            "", label="Prompts, one a line", lines=4, max_lines=8,
            info=f"At most {MAX_ROWS}; \\n stands for a line break. Each is answered in every pane, as "
            "Generate would, while you go on.",
        )  # fmt: skip
        with gr.Row():
            run = gr.Button("Answer them all", variant="primary", size="sm", min_width=160)
            take = gr.Button("Take the examples of the task", size="sm", min_width=200)
            cancel = gr.Button("Cancel the table", size="sm", min_width=120, visible=False)
            download = gr.DownloadButton(
                "Download the answers as CSV", size="sm", min_width=200, visible=False
            )
        job = gr.HTML()
        table = gr.HTML()
        timer = gr.Timer(0.7, active=False)
    return SeveralPanel(prompts, take, run, cancel, job, table, download, timer)


def wire_several_panel(
    blocks: gr.Blocks, panel: SeveralPanel, tab: GenerateTab, pick: PickTab, engine: Engine,
    tables: AnswerTables, folder: Path, attached: gr.BrowserState, kept: gr.BrowserState,
) -> None:  # fmt: skip
    """Connect the panel's events.

    Args:
        blocks: the page, whose loading finds a table again.
        panel: the widgets.
        tab: what the panes hold.
        pick: the choice.
        engine: knows the examples of a task.
        tables: what answers.
        folder: takes the CSV files.
        attached: what the visitor has started and opened.
        kept: the table that the browser keeps, by the id of its job.
    """

    def standing(table: object) -> Updates:
        return _standing(panel, tables, folder, _job_id(table))

    def run(prompts: str, made: object, *values: Any) -> Updates:
        """Answer all prompts in the background."""
        try:
            job_id = tables.start(request_of(engine, made, "", *values), prompts_of(prompts))
        except Exception as error:
            return {panel.job: said(error)}
        return {kept: {"job": job_id}} | _standing(panel, tables, folder, job_id)

    def cancel(table: object) -> Updates:
        tables.cancel(_job_id(table))
        return standing(table)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    panel.run.click(run, [panel.prompts, attached, *asked(tab, pick)], [*panel.standing, kept], **quiet)
    panel.take.click(
        lambda adapter: "\n".join(map(escaped, engine.prompts(adapter or ""))) or gr.skip(),
        pick.adapter, panel.prompts, **quiet,
    )  # fmt: skip
    panel.cancel.click(cancel, kept, panel.standing, **quiet)
    panel.timer.tick(standing, kept, panel.standing, **quiet)
    blocks.load(standing, kept, panel.standing, **quiet)


def _job_id(table: object) -> str:
    """The id of a job that a browser kept; empty where it is none."""
    job_id = table.get("job") if isinstance(table, Mapping) else ""
    return str(job_id) if is_id(job_id) else ""


def _standing(panel: SeveralPanel, tables: AnswerTables, folder: Path, job_id: str) -> Updates:
    """The job and its table as they stand; the file is written once no row will come any more."""
    job, told = tables.job(job_id), tables.answers(job_id)
    running = is_going(job)
    updates: Updates = {
        panel.job: views.job(job),
        panel.cancel: gr.update(visible=running, interactive=not (job and job.cancelling)),
        panel.table: answer_table.table(told),
        panel.timer: gr.update(active=running),
        panel.download: gr.update(visible=False),
    }
    if not running and told.finished:
        path = folder / "answers" / job_id / "answers.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_csv(told).encode())
        updates[panel.download] = gr.update(visible=True, value=str(path))
    return updates
