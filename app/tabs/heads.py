"""Heads: those that the pair has and where they are weak; train, go on, load, download and publish."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import expecting, plots, views
from app.engine import Engine
from app.exports import Export, Exports
from app.facts import LoadRequest
from app.saying import said
from app.tabs import fit_form, heads_jobs
from app.tabs.fit_form import FitForm, create_fit_form
from app.tabs.pick import PickTab
from app.tabs.publishing import Publishing, create_publishing, wire_publishing
from app.workspace import Attached, Pair, Workspace

_NO_HEADS_TO_EXPORT = "This pair has no heads that could leave yet: train or load some first."


@dataclass(frozen=True)
class HeadsTab:
    """The widgets of the tab."""

    tab: gr.Tab
    status: gr.HTML
    plot: gr.Plot
    table: gr.HTML
    show: gr.Button
    form: FitForm
    expected: gr.HTML
    train: gr.Button
    cancel: gr.Button
    go_on: gr.Button
    discard: gr.Button
    job: gr.HTML
    timer: gr.Timer
    name: gr.Textbox
    load: gr.Button
    pack: gr.Button
    download: gr.DownloadButton
    packed: gr.HTML
    leaving: Publishing

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets."""
        return [self.status, self.plot, self.table, self.download, self.packed]

    @property
    def job_shown(self) -> list[Any]:
        """What `job_updates` sets."""
        return [self.job, self.cancel, self.go_on, self.discard, self.timer]


def create_heads_tab(tab: gr.Tab, engine: Engine, start: Workspace) -> HeadsTab:
    """Build the tab inside `tab`."""
    facts = (
        engine.showcase.heads if engine.showcase and engine.showcase.pair == start.selection.pair else None
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            show = gr.Button("Show heads", size="sm", min_width=160)
            status = gr.HTML(
                views.heads_line(facts) if facts else views.sentence("Press Show heads to look at this pair.")
            )
            # Drawn once the page is open: plotly takes a while to import.
            plot = gr.Plot(show_label=False)
            table = gr.HTML(views.heads_table(facts) if facts else "", elem_classes="cast-detail")
            with gr.Accordion("Download and publish these heads", open=False, elem_classes="cast-detail"):
                pack = gr.Button("Pack the heads", size="sm", min_width=160)
                packed = gr.HTML()
                download = gr.DownloadButton("Download as .zip", visible=False)
                leaving = create_publishing("Publish the heads", ready=True)
        with gr.Column(scale=2, min_width=320, elem_classes="cast-section cast-detail"):
            form = create_fit_form()
            expected = gr.HTML()
            with gr.Row():
                train = gr.Button("Train heads", variant="primary", min_width=160)
                cancel = gr.Button("Cancel", interactive=False, min_width=80)
            job = gr.HTML(heads_jobs.ABOUT)
            with gr.Row():
                go_on = gr.Button("Go on with the unfinished fit", visible=False, min_width=160)
                discard = gr.Button("Discard it", visible=False, min_width=80)
            timer = gr.Timer(0.5, active=False)
            with gr.Accordion("Load heads from a folder or the Hub", open=False):
                name = gr.Textbox(
                    "", label="Heads", placeholder="a folder, or owner/name",
                    info="They are checked against both models, and used by you alone.",
                )  # fmt: skip
                load = gr.Button("Load heads", min_width=160)
    return HeadsTab(
        tab, status, plot, table, show, form, expected, train, cancel, go_on, discard, job, timer, name,
        load, pack, download, packed, leaving,
    )  # fmt: skip


def wire_heads_tab(
    tab: HeadsTab, pick: PickTab, engine: Engine, exports: Exports, attached: gr.BrowserState
) -> None:
    """Connect the tab's events."""
    pair = [pick.source, pick.target]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def show(source: str, target: str, kept: object) -> tuple[Any, ...]:
        return _quality(engine, _pair(source, target), Attached.from_json(kept).heads_job)

    def expect(source: str, target: str, *form: Any) -> str:
        try:
            found = engine.expected(fit_form.request(_pair(source, target), form))
        except Exception:
            # What is wrong with the choice stands above, with the form it is said on *Train*.
            return ""
        return views.caption(f"{expecting.about(found.seconds).capitalize()}. {expecting.known_from(found)}")

    def pack(source: str, target: str, kept: object) -> tuple[Any, Any]:
        try:
            found = _leaving(exports, _pair(source, target), kept)
        except Exception as error:
            return gr.update(visible=False), said(error)
        if isinstance(found, str):
            return gr.update(visible=False), views.sentence(found)
        label = f"Download {found.name}.zip, {views.size(found.size)}"
        folder = engine.heads_folder(_pair(source, target), Attached.from_json(kept).heads_job)
        return gr.update(visible=True, value=str(found.archive), label=label), views.caption(_lies_in(folder))

    def leaving(source: str, target: str, kept: object) -> Export | str:
        return _leaving(exports, _pair(source, target), kept)

    tab.show.click(show, [*pair, attached], tab.followers, show_progress="minimal", api_visibility="private")
    gr.on(
        [tab.tab.select, *(w.blur if isinstance(w, gr.Textbox) else w.change for w in tab.form.widgets)],
        expect, [*pair, *tab.form.widgets], tab.expected, trigger_mode="multiple", **quiet,
    )  # fmt: skip
    tab.pack.click(
        pack, [*pair, attached], [tab.download, tab.packed], show_progress="minimal",
        api_visibility="private",
    )  # fmt: skip
    wire_publishing(tab.leaving, exports, leaving, [*pair, attached])
    _wire_jobs(tab, pair, engine, attached)


def _wire_jobs(tab: HeadsTab, pair: Sequence[Any], engine: Engine, attached: gr.BrowserState) -> None:
    """Connect what starts, follows and ends a job."""
    shown = tab.job_shown
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def train(source: str, target: str, kept: object, *form: Any) -> tuple[Any, ...]:
        return heads_jobs.started(engine, kept, lambda: fit_form.request(_pair(source, target), form))

    def load(source: str, target: str, kept: object, name: str) -> tuple[Any, ...]:
        return heads_jobs.started(
            engine, kept, lambda: LoadRequest(_pair(source, target), (name or "").strip())
        )

    tab.train.click(train, [*pair, attached, *tab.form.widgets], [*shown, attached], **quiet)
    tab.load.click(load, [*pair, attached, tab.name], [*shown, attached], **quiet)
    tab.timer.tick(partial(heads_jobs.acted, engine, heads_jobs.look), attached, shown, **quiet)
    for button, act in (
        (tab.cancel, heads_jobs.cancel), (tab.go_on, heads_jobs.go_on), (tab.discard, heads_jobs.discard)
    ):  # fmt: skip
        button.click(partial(heads_jobs.acted, engine, act), attached, shown, **quiet)


def follow(tab: HeadsTab, engine: Engine, pair: Pair, heads_job: str) -> dict[Any, Any]:
    """The heads of a pair, where no model has to be fetched to find them."""
    if engine.is_at_hand(pair.source) and engine.is_at_hand(pair.target):
        shown = _quality(engine, pair, heads_job)
    else:
        shown = _shown(views.sentence("Press Show heads: both models are loaded to find their heads."))
    return dict(zip(tab.followers, shown, strict=True))


def _quality(engine: Engine, pair: Pair, heads_job: str) -> tuple[Any, ...]:
    """The sentence, the plot and the table for the heads of a pair."""
    try:
        facts = engine.heads_facts(pair, heads_job)
    except Exception as error:
        return _shown(said(error))
    if facts is None:
        return _shown(views.heads_line(None))
    return _shown(views.heads_line(facts), plots.heads_quality(facts), views.heads_table(facts))


def _shown(status: str, plot: Any = None, table: str = "") -> tuple[Any, ...]:
    """What the followers show; what was packed is of other heads."""
    return status, plot, table, gr.update(visible=False, value=None), ""


def _pair(source: str | None, target: str | None) -> Pair:
    return Pair(source or "", target or "")


def _leaving(exports: Exports, pair: Pair, kept: object) -> Export | str:
    return exports.heads(pair, Attached.from_json(kept).heads_job) or _NO_HEADS_TO_EXPORT


def _lies_in(folder: Path | None) -> str:
    """Where heads lie that need not be downloaded by whoever runs the server."""
    return (
        f"On the server they are kept in {folder}; cast translate --heads takes that folder."
        if folder
        else ""
    )
