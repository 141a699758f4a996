"""Assembles the page: every object that lives as long as the server is made here, and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from app import theme
from app.answers import AnswerTables
from app.backend import Backend
from app.endpoints import offer_endpoints
from app.engine import Engine
from app.evaluations import Evaluations
from app.expansions import Expansions, KeptList
from app.exports import Exports
from app.jobs import Jobs
from app.runs import Kept, RunStore
from app.searching import HubSearch
from app.showcase import Showcase
from app.tabs import command
from app.tabs.choice import Latest, Stores, Tabs, wire_choice
from app.tabs.evaluate import compare_command, create_evaluate_tab, wire_evaluate_tab, wire_restore
from app.tabs.explore import create_explore_tab, wire_explore_tab
from app.tabs.export import create_export_tab, push_command, wire_export_tab
from app.tabs.generate import create_generate_tab, wire_generate_tab
from app.tabs.heads import create_heads_tab, wire_heads_tab
from app.tabs.pick import create_pick_tab, wire_pick_tab
from app.tabs.prompts import wire_prompts_panel
from app.tabs.ready import create_ready, wire_ready
from app.tabs.remembering import remember
from app.tabs.several import create_several_panel, wire_several_panel
from app.tabs.stage import create_stage, create_tour, wire_link, wire_stage
from app.workspace import Attached, Workspace
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

    def close(self) -> None:
        """Ask everything in the background to stop: a running job would keep the interpreter from ending."""
        self.jobs.close()
        self.engine.maps.close()


def build(backend: Backend, folder: Path, recording: Path | None = None, kept: Path | None = None) -> Page:
    """Build the page on a backend.

    Args:
        backend: the library, or a stand-in.
        folder: takes what jobs write.
        recording: the example that is shown at first; the shipped one by default.
        kept: takes what is to be found again another day, as what was measured; the cache by default.
    """
    jobs = Jobs()
    showcase = _showcase(recording or theme.assets_folder() / "showcase.json")
    engine = Engine(backend, jobs, folder, showcase, kept=kept)
    store = RunStore(kept and kept / "runs")
    evaluations = Evaluations(backend, engine, jobs, store, folder)
    start = _start(engine)
    with gr.Blocks(title="CAST", fill_width=True, analytics_enabled=False) as blocks:
        stores = Stores(
            _store(start.choice(), "cast-choice"),
            _store(start.settings(), "cast-settings"),
            _store(Attached().to_json(), "cast-jobs"),
            _store(KeptList().to_json(), "cast-prompts"),
        )
        with gr.Row(elem_classes="cast-top"):
            gr.HTML(f'<header class="cast-header">{theme.logo()}<h1>CAST</h1><p>{_TAGLINE}</p></header>')
            stage = create_stage(engine)
        ready = create_ready(engine)
        pick = create_pick_tab(engine, start)
        with gr.Tabs(elem_classes="cast-tabs"):
            with gr.Tab("Generate"):
                generate = create_generate_tab(engine, start)
                several = create_several_panel()
                translate_line = command.create_command()
            with gr.Tab("Heads") as tab:
                heads = create_heads_tab(tab, engine, start)
                heads_line = command.create_command()
            with gr.Tab("Explore"):
                explore = create_explore_tab(engine, start)
                map_line = command.create_command()
            with gr.Tab("Evaluate"):
                evaluate = create_evaluate_tab(evaluations, start)
            with gr.Tab("Export") as tab:
                export = create_export_tab(tab)
        tour = create_tour()
        wire_stage(stage, tour, engine)
        wire_link(stage, [*pick.chosen, *generate.settings])
        wire_pick_tab(pick, engine, HubSearch(backend))
        expansions = Expansions(backend, engine, jobs)
        run = wire_generate_tab(generate, pick, engine, expansions, stores.attached, stores.listed)
        wire_prompts_panel(
            blocks,
            generate.prompts,
            generate.steps,
            expansions,
            [stores.choice, stores.attached],
            stores.listed,
        )
        tabled = _store({"job": ""}, "cast-answers")
        wire_several_panel(
            blocks,
            several,
            generate,
            pick,
            engine,
            AnswerTables(engine, jobs),
            folder,
            stores.attached,
            tabled,
        )
        exports = Exports(backend, engine, folder)
        wire_heads_tab(heads, pick, engine, exports, stores.attached)
        wire_explore_tab(explore, pick, generate.options.way, engine, stores.attached)
        measured = _store(Kept().to_json(), "cast-runs")
        wire_evaluate_tab(evaluate, generate.hints, evaluations, stores, measured)
        put_back = [wire_restore(blocks, evaluate, evaluations, measured)]
        wire_export_tab(export, generate.options, exports, stores)
        lines = [
            command.of_translate(translate_line, generate, expansions, stores.listed),
            command.of_fit(heads_line, heads),
            command.of_map(map_line, explore, generate.options.way, exports, stores.attached),
            compare_command(evaluate, generate.hints),
            push_command(export, exports),
        ]  # fmt: skip
        command.wire_commands(lines, stores.choice, start.selection)
        tabs = Tabs(pick, generate, heads, explore)
        for name, widgets in (
            ("heads", vars(heads.form)), ("explore", explore.kept), ("evaluate", evaluate.kept),
        ):  # fmt: skip
            put_back.append(remember(blocks, _store({}, f"cast-{name}-form"), widgets))
        latest = gr.State(Latest())
        put_back.append(wire_choice(blocks, tabs, engine, expansions, stores, latest))
        wire_ready(ready, tabs, engine, expansions, stores, latest, run)
        for event in put_back:
            event.then(
                None, js=f"() => window.castStage.restored({len(put_back)})", api_visibility="private"
            )  # fmt: skip
        blocks.load(None, js="() => window.castStage.ready()", api_visibility="private")
        offer_endpoints(engine)
    return Page(blocks, engine, jobs)


def _store(value: Mapping[str, object], key: str) -> gr.BrowserState:
    return gr.BrowserState(value, storage_key=key, secret=_BROWSER_KEY)


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
