"""Evaluate: methods and baselines measured on a task in the background; earlier runs beside the new one."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from app import plots, snippets, tables, theme, views
from app.evaluations import Evaluations
from app.jobs import is_going
from app.runs import BASELINES, MAX_EXAMPLES, METHODS, READ_PROMPTS, EvaluateRequest, Kept, Run
from app.saying import said
from app.tabs.choice import Stores
from app.tabs.command import Command, create_command
from app.tabs.prompts import prompts_of
from app.tabs.steps import create_steps_slider, steps_of
from app.workspace import Attached, Selection, Workspace

_MOST_SHOWN = 6
_FIRST_METHODS = ("hosted", "instant")
_FIRST_BASELINES = ("proxy-tuning",)

Updates = dict[Any, Any]


@dataclass(frozen=True)
class EvaluateTab:
    """The widgets of the tab; `drawn` is what the table and the plot were last made of."""

    task: gr.Dropdown
    upload: gr.UploadButton
    upload_message: gr.HTML
    methods: gr.CheckboxGroup
    baselines: gr.CheckboxGroup
    limit: gr.Slider
    retrained: gr.Textbox
    train: gr.File
    corpus: gr.Textbox
    steps: gr.Slider
    with_prompts: gr.Checkbox
    run: gr.Button
    cancel: gr.Button
    job: gr.HTML
    timer: gr.Timer
    shown: gr.Dropdown
    forget: gr.Button
    table: gr.HTML
    plot: gr.Plot
    as_csv: gr.DownloadButton
    as_json: gr.DownloadButton
    command: gr.Code
    drawn: gr.State

    @property
    def asked(self) -> list[Any]:
        """What a request is made of, in the order in which `_request` takes it after the choice."""
        return [
            self.task, self.methods, self.baselines, self.limit, self.retrained, self.train, self.corpus,
            self.steps, self.with_prompts,
        ]  # fmt: skip

    @property
    def kept(self) -> dict[str, Any]:
        """What the browser keeps; the task follows the adapter."""
        # `steps` is what browsers kept when the slider stood at a number of its own.
        return {
            "methods": self.methods, "baselines": self.baselines, "limit": self.limit,
            "fit_steps": self.steps, "with_prompts": self.with_prompts,
        }  # fmt: skip

    @property
    def standing(self) -> list[Any]:
        """What `_standing` sets."""
        return [
            self.job, self.cancel, self.timer, self.table, self.plot, self.as_csv, self.as_json, self.drawn
        ]  # fmt: skip


def create_evaluate_tab(evaluations: Evaluations, start: Workspace) -> EvaluateTab:
    """Build the tab."""
    task = evaluations.task_of(start.adapter)
    with gr.Row():
        with gr.Column(scale=2, min_width=320, elem_classes="cast-section"):
            tasks = gr.Dropdown(
                _task_choices(evaluations), value=task or None, label="Task", allow_custom_value=True,
                info="One that ships, or a JSONL file: {\"prompt\", \"completion\", \"choices\"?} a line.",
            )  # fmt: skip
            upload = gr.UploadButton("Upload a task file", file_types=[".jsonl"], size="sm")
            upload_message = gr.HTML()
            methods = gr.CheckboxGroup(
                _choices(METHODS), value=list(_FIRST_METHODS), label="Methods",
            )  # fmt: skip
            baselines = gr.CheckboxGroup(
                _choices(BASELINES), value=list(_FIRST_BASELINES), label="Baselines",
            )  # fmt: skip
            limit = gr.Slider(20, MAX_EXAMPLES, value=100, step=20, label="Examples")
            with gr.Accordion("Reference, text and effort", open=False):
                retrained = gr.Textbox(
                    "", label="LoRA retrained on the target",
                    info="A folder or Hub id. Tasks that ship know theirs; without one there is no recovered "
                    "lift.",
                )  # fmt: skip
                train = gr.File(label="Or a task file to train one on", file_types=[".jsonl"], height=112)
                corpus = gr.Textbox(
                    "", label="General text", placeholder="the pair's own",
                    info="A .txt or .jsonl file, a folder, or a Hub data set; may stay empty.",
                )  # fmt: skip
                steps = create_steps_slider("Steps of a compiled LoRA")
                with_prompts = gr.Checkbox(
                    True,
                    label="Compiled and self-generated distillation read the prompts of Generate",
                )
            with gr.Row():
                run = gr.Button("Run", variant="primary", min_width=160)
                cancel = gr.Button("Cancel", interactive=False, min_width=80)
            job = gr.HTML(
                views.sentence(
                    "Each method carries the adapter, answers the task's examples, and is compared with the "
                    "bare target and with a LoRA retrained on it. Press Run."
                )
            )
            timer = gr.Timer(1.0, active=False)
        with gr.Column(scale=3, min_width=320):
            plot = gr.Plot(None, show_label=False, visible=False)
            table = gr.HTML(tables.table(()), js_on_load=theme.script("sortable"))
            with gr.Row():
                as_csv = gr.DownloadButton("Download CSV", size="sm", visible=False, min_width=120)
                as_json = gr.DownloadButton("Download JSON", size="sm", visible=False, min_width=120)
            shown = gr.Dropdown(
                [], value=[], multiselect=True, max_choices=_MOST_SHOWN, label="Runs shown", visible=False,
                info="Your earlier runs are kept: add some to see them beside the new one.",
            )  # fmt: skip
            forget = gr.Button("Forget the runs shown", size="sm", visible=False, min_width=160)
            command = create_command()
    return EvaluateTab(
        tasks, upload, upload_message, methods, baselines, limit, retrained, train, corpus, steps,
        with_prompts, run, cancel, job, timer, shown, forget, table, plot, as_csv, as_json, command,
        gr.State(()),
    )  # fmt: skip


def wire_evaluate_tab(
    tab: EvaluateTab, hints: gr.Textbox, evaluations: Evaluations, stores: Stores, kept: gr.BrowserState
) -> None:
    """Connect the tab's events; `hints` are the example prompts of the Generate tab."""
    _wire_choice(tab, evaluations, stores.choice)
    _wire_run(tab, evaluations, [stores.choice, *tab.asked, hints], stores.attached, kept)
    _wire_shown(tab, evaluations, kept)


def compare_command(tab: EvaluateTab, hints: gr.Textbox) -> Command:
    """What *Run* would do."""

    def make(chosen: Selection, *values: Any) -> str:
        asked = _request(chosen, *values)
        return snippets.compare(replace(asked, task=_own_name(asked.task), train=_own_name(asked.train)))

    return Command(tab.command, [*tab.asked, hints], make)


def _wire_choice(tab: EvaluateTab, evaluations: Evaluations, choice: gr.BrowserState) -> None:
    def upload(file: str | None) -> Updates:
        """Check an uploaded task and choose it."""
        if not file:
            return {tab.task: gr.skip()}
        try:
            found = evaluations.task_file(Path(file))
        except Exception as error:
            return {tab.upload_message: said(error)}
        words = f"{Path(file).name}: {found.examples} examples, scored by {found.metric}."
        choices = [*_task_choices(evaluations), (Path(file).name, file)]
        return {
            tab.task: gr.update(choices=choices, value=file),
            tab.upload_message: views.sentence(words, "good"),
        }

    def task_of(chosen: object, task: str | None) -> Any:
        """The task of a shipped adapter; a task file that was chosen stays."""
        adapter = Workspace.from_json(chosen).adapter
        shipped = any(task == option.name for option in evaluations.tasks())
        return (evaluations.task_of(adapter) if shipped or not task else "") or gr.skip()

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.upload.upload(upload, tab.upload, [tab.task, tab.upload_message], **quiet)
    choice.change(task_of, [choice, tab.task], tab.task, trigger_mode="multiple", **quiet)


def _wire_run(
    tab: EvaluateTab,
    evaluations: Evaluations,
    asked: list[Any],
    attached: gr.BrowserState,
    kept: gr.BrowserState,
) -> None:
    def run(*values: Any) -> Updates:
        """Start a run in the background and show it alone."""
        chosen, *asked, kept_jobs, kept_runs = values
        request = _request(Workspace.from_json(chosen).selection, *asked)
        had = Kept.from_json(kept_runs)
        visitor = had.visitor or uuid.uuid4().hex
        try:
            run_id = evaluations.start(visitor, request, Attached.from_json(kept_jobs).heads_job)
        except Exception as error:
            return {tab.job: said(error)}
        now = Kept(visitor, run_id)
        return {
            kept: now.to_json(),
            **_choosing(tab, evaluations.runs(visitor), [run_id]),
            **_standing(tab, evaluations, now, [run_id], None),
        }

    def tick(kept_runs: object, shown: list[str], drawn: tuple[Any, ...]) -> Updates:
        return _standing(tab, evaluations, Kept.from_json(kept_runs), shown, drawn)

    def cancel(kept_runs: object, shown: list[str], drawn: tuple[Any, ...]) -> Updates:
        now = Kept.from_json(kept_runs)
        evaluations.cancel(now.visitor, now.run)
        return _standing(tab, evaluations, now, shown, drawn)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.run.click(
        run, [*asked, attached, kept], [kept, tab.shown, tab.forget, *tab.standing], **quiet
    )  # fmt: skip
    tab.timer.tick(tick, [kept, tab.shown, tab.drawn], tab.standing, **quiet)
    tab.cancel.click(cancel, [kept, tab.shown, tab.drawn], tab.standing, **quiet)


def _wire_shown(tab: EvaluateTab, evaluations: Evaluations, kept: gr.BrowserState) -> None:
    def show(kept_runs: object, shown: list[str]) -> Updates:
        return _standing(tab, evaluations, Kept.from_json(kept_runs), shown, None)

    def forget(kept_runs: object, shown: list[str]) -> Updates:
        now = Kept.from_json(kept_runs)
        if now.run in shown:
            evaluations.cancel(now.visitor, now.run)
        evaluations.forget(now.visitor, shown)
        left = evaluations.runs(now.visitor)
        return {**_choosing(tab, left, []), **_standing(tab, evaluations, now, [], None)}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.shown.input(show, [kept, tab.shown], tab.standing, **quiet)
    tab.forget.click(forget, [kept, tab.shown], [tab.shown, tab.forget, *tab.standing], **quiet)


def restore(tab: EvaluateTab, evaluations: Evaluations, kept_runs: object) -> Updates:
    """The newest run of a browser that comes back, be it under way, and its earlier ones."""
    now = Kept.from_json(kept_runs)
    runs = evaluations.runs(now.visitor)
    chosen = [run.id for run in runs if run.id == now.run]
    return {**_choosing(tab, runs, chosen), **_standing(tab, evaluations, now, chosen, None)}


def wire_restore(
    blocks: gr.Blocks, tab: EvaluateTab, evaluations: Evaluations, kept: gr.BrowserState
) -> gr.events.Dependency:
    """Put a reloaded page back; returns the event after which it is."""
    return blocks.load(
        lambda kept_runs: restore(tab, evaluations, kept_runs), kept,
        [tab.shown, tab.forget, *tab.standing], show_progress="hidden", api_visibility="private",
    )  # fmt: skip


def _choosing(tab: EvaluateTab, runs: Sequence[Run], chosen: list[str]) -> Updates:
    """The picker of runs: all of a visitor's, newest first."""
    return {
        tab.shown: gr.update(choices=[(run.label, run.id) for run in runs], value=chosen, visible=bool(runs)),
        tab.forget: gr.update(visible=bool(runs)),
    }


def _standing(
    tab: EvaluateTab, evaluations: Evaluations, kept: Kept, shown: list[str], drawn: tuple[Any, ...] | None
) -> Updates:
    """The newest run's bar, and the runs shown; what stands there already, by `drawn`, is not drawn again."""
    newest, job = evaluations.run(kept.visitor, kept.run), evaluations.job(kept.run)
    under_way = is_going(job) and newest is not None
    updates: Updates = {
        tab.cancel: gr.update(interactive=under_way and not (job and job.cancelling)),
        tab.timer: gr.update(active=under_way),
    }
    if newest:
        updates[tab.job] = tables.running(job, newest)
    runs = [run for name in shown or () if (run := evaluations.run(kept.visitor, name))]
    now = tuple((run.id, run.measured, run.ends is not None, run.state) for run in runs)
    if drawn is not None and now == tuple(tuple(entry) for entry in drawn):
        return updates
    figure, measured = plots.recovered_lift(runs), any(run.results for run in runs)
    table, record = evaluations.written(kept.visitor, runs) if measured else (None, None)
    return updates | {
        tab.table: tables.table(runs),
        tab.plot: gr.update(value=figure, visible=figure is not None),
        tab.as_csv: gr.update(value=table and str(table), visible=measured),
        tab.as_json: gr.update(value=record and str(record), visible=measured),
        tab.drawn: now,
    }


def _request(
    chosen: Selection, task: str, methods: list[str], baselines: list[str], limit: int,
    retrained: str, train: str | None, corpus: str, steps: int, with_prompts: bool, hints: str,
) -> EvaluateRequest:  # fmt: skip
    """What the widgets ask for."""
    return EvaluateRequest(
        chosen,
        (task or "").strip(),
        (*methods, *baselines),
        int(limit),
        prompts_of(hints) if with_prompts and READ_PROMPTS & {*methods, *baselines} else (),
        steps_of(steps),
        (retrained or "").strip(),
        train or "",
        (corpus or "").strip(),
    )


def _own_name(file: str) -> str:
    """An uploaded file by the name that it has on the visitor's own machine; anything else as it is."""
    return Path(file).name if file and Path(file).is_relative_to(get_upload_folder()) else file


def _task_choices(evaluations: Evaluations) -> list[tuple[str, str]]:
    return [(option.label, option.name) for option in evaluations.tasks()]


def _choices(named: dict[str, str]) -> list[tuple[str, str]]:
    return [(label, name) for name, label in named.items()]
