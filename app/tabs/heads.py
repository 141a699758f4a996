"""Heads: which heads the pair has, how good they are by depth, and *Train heads* in the background."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from app import plots, views
from app.backend import EFFORTS, FitRequest
from app.engine import Engine
from app.jobs import Job
from app.saying import said
from app.tabs.pick import PickTab
from app.workspace import Attached, Pair, Workspace


@dataclass(frozen=True)
class HeadsTab:
    """The widgets of the tab."""

    tab: gr.Tab
    status: gr.HTML
    plot: gr.Plot
    table: gr.HTML
    show: gr.Button
    corpus: gr.Textbox
    effort: gr.Radio
    kind: gr.Radio
    train: gr.Button
    cancel: gr.Button
    job: gr.HTML
    timer: gr.Timer

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets."""
        return [self.status, self.plot, self.table]

    @property
    def job_shown(self) -> list[Any]:
        """What `job_updates` sets."""
        return [self.job, self.cancel, self.timer]


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
            plot = gr.Plot(plots.heads_quality(facts) if facts else None, show_label=False)
            table = gr.HTML(views.heads_table(facts) if facts else "", elem_classes="cast-detail")
        with gr.Column(scale=2, min_width=320, elem_classes="cast-section cast-detail"):
            effort = gr.Radio(
                [(f"{name}, {tokens // 1000} thousand tokens", name) for name, tokens in EFFORTS.items()],
                value="good", label="Effort",
            )  # fmt: skip
            kind = gr.Radio(
                [("affine", "affine"), ("affine + MLP", "mlp")], value="mlp", label="Form of the heads"
            )
            corpus = gr.Textbox(
                "", label="Text", placeholder="pocket models: the story world; others: WikiText from the Hub",
                info="A .txt or .jsonl file, a folder, or a Hub data set; may stay empty.",
            )  # fmt: skip
            with gr.Row():
                train = gr.Button("Train heads", variant="primary", min_width=160)
                cancel = gr.Button("Cancel", interactive=False, min_width=80)
            job = gr.HTML(
                views.sentence(
                    "Heads are trained once for a pair of models and then serve every adapter of it. "
                    "Hosted mode on the whole stack needs none: there words cross, and no states."
                )
            )
            timer = gr.Timer(0.5, active=False)
    return HeadsTab(tab, status, plot, table, show, corpus, effort, kind, train, cancel, job, timer)


def wire_heads_tab(tab: HeadsTab, pick: PickTab, engine: Engine, attached: gr.BrowserState) -> None:
    """Connect the tab's events."""
    pair = [pick.source, pick.target]
    shown = tab.job_shown

    def show(source: str, target: str, kept: object) -> tuple[Any, ...]:
        return _quality(engine, Pair(source or "", target or ""), Attached.from_json(kept).heads_job)

    def train(source: str, target: str, corpus: str, effort: str, kind: str, kept: object) -> tuple[Any, ...]:
        space = Attached.from_json(kept)
        request = FitRequest(Pair(source or "", target or ""), corpus or "", EFFORTS[effort], kind)
        try:
            job_id = engine.start_fit(request)
        except Exception as error:
            return said(error), gr.skip(), gr.skip(), gr.skip()
        return *job_updates(engine.job(job_id)), replace(space, heads_job=job_id).to_json()

    def tick(kept: object) -> tuple[Any, ...]:
        return job_updates(engine.job(Attached.from_json(kept).heads_job))

    def cancel(kept: object) -> tuple[Any, ...]:
        job_id = Attached.from_json(kept).heads_job
        engine.cancel(job_id)
        return job_updates(engine.job(job_id))

    tab.show.click(show, [*pair, attached], tab.followers, show_progress="minimal", api_visibility="private")
    tab.train.click(
        train, [*pair, tab.corpus, tab.effort, tab.kind, attached], [*shown, attached],
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    tab.timer.tick(tick, attached, shown, show_progress="hidden", api_visibility="private")
    tab.cancel.click(cancel, attached, shown, show_progress="hidden", api_visibility="private")


def follow(tab: HeadsTab, engine: Engine, pair: Pair, heads_job: str) -> dict[Any, Any]:
    """The heads of a pair, where no model has to be fetched to find them."""
    if engine.is_at_hand(pair.source) and engine.is_at_hand(pair.target):
        shown = _quality(engine, pair, heads_job)
    else:
        shown = views.sentence("Press Show heads: both models are loaded to find their heads."), None, ""
    return dict(zip(tab.followers, shown, strict=True))


def _quality(engine: Engine, pair: Pair, heads_job: str) -> tuple[Any, Any, Any]:
    """The sentence, the plot and the table for the heads of a pair."""
    try:
        facts = engine.heads_facts(pair, heads_job)
    except Exception as error:
        return said(error), None, ""
    if facts is None:
        return views.heads_line(None), None, ""
    return views.heads_line(facts), plots.heads_quality(facts), views.heads_table(facts)


def job_updates(job: Job | None) -> tuple[Any, Any, Any]:
    """What the job's panel, *Cancel* and the timer show for a job as it stands."""
    if job is None:
        return gr.skip(), gr.update(interactive=False), gr.update(active=False)
    running = not job.is_over
    return views.job(job), gr.update(interactive=running and not job.cancelling), gr.update(active=running)
