"""Assembles the page: every object that lives as long as the server is made here, and nowhere else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app import theme
from app.backend import Backend
from app.engine import Engine
from app.jobs import Jobs
from app.showcase import Showcase
from app.tabs import generate as generate_tab
from app.tabs import heads as heads_tab
from app.tabs.explore import ExploreTab, create_explore_tab, depth_range, wire_explore_tab
from app.tabs.generate import GenerateTab, create_generate_tab, wire_generate_tab
from app.tabs.heads import HeadsTab, create_heads_tab, wire_heads_tab
from app.tabs.mode import segment_range
from app.tabs.opening import still_open
from app.tabs.pick import PickTab, chosen_updates, create_pick_tab, describe, wire_pick_tab
from app.workspace import Attached, Selection, Workspace, clamp_strength
from cast.errors import CastError

_TAGLINE = "Carry a LoRA from the model it was trained on to another model."
# Keeps other programs on the same origin from misreading the entry; nothing secret is stored.
_BROWSER_KEY = "cast-browser-v1"


@dataclass(frozen=True)
class Page:
    """The page and the objects behind it."""

    blocks: gr.Blocks
    engine: Engine
    jobs: Jobs


def build(backend: Backend, folder: Path, recording: Path | None = None) -> Page:
    """Build the page on a backend.

    Args:
        backend: the library, or a stand-in.
        folder: takes what jobs write.
        recording: the example that is shown at first; the shipped one by default.
    """
    jobs = Jobs()
    showcase = _showcase(recording or theme.assets_folder() / "showcase.json")
    engine = Engine(backend, jobs, folder, showcase)
    start = _start(engine)
    with gr.Blocks(title="CAST", analytics_enabled=False) as blocks:
        # Two stores, so that a changed choice and a started job never overwrite each other.
        workspace = gr.BrowserState(start.to_json(), storage_key="cast-workspace", secret=_BROWSER_KEY)
        attached = gr.BrowserState(Attached().to_json(), storage_key="cast-jobs", secret=_BROWSER_KEY)
        gr.HTML(f'<header class="cast-header">{theme.logo()}<h1>CAST</h1><p>{_TAGLINE}</p></header>')
        pick = create_pick_tab(engine, start)
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate = create_generate_tab(engine, start)
            with gr.Tab("Heads") as tab:
                heads = create_heads_tab(tab, engine, start)
            with gr.Tab("Explore"):
                explore = create_explore_tab(engine, start)
        wire_pick_tab(pick, engine)
        wire_generate_tab(generate, pick, engine, attached)
        wire_heads_tab(heads, pick, engine, attached)
        wire_explore_tab(explore, pick, engine, attached)
        _wire_workspace(blocks, pick, generate, heads, explore, engine, workspace, attached)
    return Page(blocks, engine, jobs)


def _showcase(path: Path) -> Showcase | None:
    try:
        return Showcase.load(path)
    except CastError:
        # The page works without its recorded example; the panes then say what to do first.
        return None


def _start(engine: Engine) -> Workspace:
    if engine.showcase:
        chosen = engine.showcase.selection
        return Workspace(
            chosen.source,
            chosen.target,
            chosen.adapter,
            chosen.mode,
            chosen.segment or 0,
            engine.showcase.strength,
            engine.showcase.prompt,
        )
    models = [option.name for option in engine.models()]
    if not models:
        return Workspace()
    adapter = next((option.name for option in engine.adapters(models[0])), "")
    prompt = next(iter(engine.prompts(adapter)), "")
    return Workspace(models[0], models[1 % len(models)], adapter, prompt=prompt)


def _wire_workspace(
    blocks: gr.Blocks,
    pick: PickTab,
    generate: GenerateTab,
    heads: HeadsTab,
    explore: ExploreTab,
    engine: Engine,
    workspace: gr.BrowserState,
    attached: gr.BrowserState,
) -> None:
    """Choices are kept in the visitor's browser; a reload restores them and takes up running jobs again."""
    options = generate.options
    choices = [*pick.chosen, *options.way, options.strength, generate.prompt]

    def keep(
        source: str, target: str, adapter: str, mode: str, segment: int, strength: float, prompt: str
    ) -> dict[str, str | float]:
        space = Workspace(
            source or "",
            target or "",
            adapter or "",
            mode,
            int(segment),
            clamp_strength(strength),
            prompt or "",
        )
        return space.to_json()

    def restore(kept: object, kept_jobs: object) -> tuple[Any, ...]:
        space, jobs = Workspace.from_json(kept), Attached.from_json(kept_jobs)
        translation = engine.job(jobs.translate_job)
        mode, jobs = generate_tab.adopted(translation, jobs, space.mode)
        return (
            *chosen_updates(engine, space.selection),
            mode,
            # The target's depth is read once the page is open; until then the slider reaches what was kept.
            gr.update(maximum=max(1, space.segment), value=space.segment),
            space.strength,
            space.prompt,
            *generate_tab.job_updates(translation),
            *heads_tab.job_updates(engine.job(jobs.heads_job)),
            jobs.to_json(),
        )

    def follow(source: str, target: str, adapter: str, segment: int, kept_jobs: object) -> tuple[Any, ...]:
        selection = Selection.of(source, target, adapter)
        return (
            *describe(engine, selection),
            still_open(engine, Attached.from_json(kept_jobs), selection),
            depth_range(engine, selection.pair),
            segment_range(engine, selection.pair, int(segment)),
        )

    jobs_shown = [generate.job, generate.cancel, generate.download, generate.timer]
    jobs_shown += [heads.job, heads.cancel, heads.timer]
    blocks.load(
        restore,
        [workspace, attached],
        [*choices, *jobs_shown, attached],
        show_progress="hidden",
        api_visibility="private",
    ).then(
        follow,
        [*pick.chosen, options.segment, attached],
        [pick.picture, pick.summary, pick.notice, explore.depth, options.segment],
        show_progress="hidden",
        api_visibility="private",
    )
    for widget in choices:
        widget.change(
            keep, choices, workspace, show_progress="hidden", trigger_mode="always_last",
            api_visibility="private",
        )  # fmt: skip
