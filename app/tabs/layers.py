"""Explore's lower half: every source depth against every target depth, and the pair that the map shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import plots_map, views, views_map
from app.engine import Engine
from app.facts import LayerFacts
from app.jobs import Job, JobState
from app.saying import said
from app.tabs.pick import PickTab
from app.workspace import Attached, Pair, Selection
from cast.errors import RequestError
from cast.layer_measures import MEASURES


@dataclass(frozen=True)
class LayersPart:
    """The widgets; `facts` holds what the plot shows, `job` names the comparison that runs."""

    compare: gr.Button
    stop: gr.Button
    measure: gr.Radio
    line: gr.HTML
    plot: gr.Plot
    facts: gr.State
    job: gr.State

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets."""
        return [self.line, self.plot, self.facts]


def create_layers(engine: Engine, pair: Pair) -> LayersPart:
    """Build the lower half, with the words on a recorded grid."""
    facts = _recorded(engine, pair)
    with gr.Row():
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            measure = gr.Radio(list(MEASURES), value=MEASURES[0], label="All layers against all layers")
            with gr.Row():
                compare = gr.Button("Compare all layers", min_width=200)
                stop = gr.Button("Stop comparing", interactive=False, min_width=200)
            line = gr.HTML(views_map.layers_line(facts, MEASURES[0]))
        with gr.Column(scale=3, min_width=320):
            plot = gr.Plot(show_label=False, elem_id="cast-layers")
    return LayersPart(compare, stop, measure, line, plot, gr.State(facts), gr.State(""))


def wire_layers(
    part: LayersPart,
    pick: PickTab,
    depths: list[Any],
    clicks: gr.HTML,
    engine: Engine,
    attached: gr.BrowserState,
) -> gr.events.Dependency:
    """Connect the comparison, the choice of a measure, and the cells.

    Args:
        part: the widgets.
        pick: the pickers.
        depths: the sliders of source and target depth.
        clicks: passes on, as `select`, which cell was clicked.
        engine: what compares.
        attached: what the visitor has made.

    Returns:
        The event after which the sliders stand at the clicked pair.
    """
    pair = [pick.source, pick.target]

    def compare(
        source: str, target: str, measure: str, i: int, j: int, kept: object, before: str
    ) -> Iterator[tuple[Any, ...]]:
        chosen = Pair(source or "", target or "")
        try:
            for found in engine.maps.layers(chosen, Attached.from_json(kept), before or ""):
                if isinstance(found, Job):
                    words, stop = progress(found)
                    yield words, gr.skip(), gr.skip(), stop, found.id
                else:
                    plot = grid(found, measure, (int(i), int(j)), layer_table(engine, chosen))
                    yield views_map.layers_line(found, measure), plot, found, gr.skip(), gr.skip()
        except Exception as error:
            yield said(error), gr.skip(), gr.skip(), gr.update(interactive=False), gr.skip()

    def paint(
        source: str, target: str, measure: str, i: int, j: int, facts: LayerFacts | None
    ) -> tuple[Any, Any]:
        table = layer_table(engine, Pair(source or "", target or ""))
        return views_map.layers_line(facts, measure), grid(facts, measure, (int(i), int(j)), table)

    def take(
        source: str, target: str, measure: str, facts: LayerFacts | None, event: gr.EventData
    ) -> tuple[int, int, Any]:
        at = clicked(event.pair)
        return *at, grid(facts, measure, at, layer_table(engine, Pair(source or "", target or "")))

    part.compare.click(
        compare, [*pair, part.measure, *depths, attached, part.job], [*part.followers, part.stop, part.job],
        show_progress="hidden", trigger_mode="multiple", concurrency_limit=16, api_visibility="private",
    )  # fmt: skip
    part.stop.click(engine.maps.cancel, part.job, None, show_progress="hidden", api_visibility="private")
    gr.on(
        [part.measure.input, *(slider.release for slider in depths)],
        paint, [*pair, part.measure, *depths, part.facts], [part.line, part.plot],
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
    return clicks.select(
        take, [*pair, part.measure, part.facts], [*depths, part.plot], show_progress="hidden",
        trigger_mode="multiple", api_visibility="private",
    )  # fmt: skip


def progress(job: Job) -> tuple[Any, Any]:
    """What the line beside a picture and its stop button show of a job; what it found says the rest."""
    told = job.state in (JobState.DONE, JobState.FAILED)
    return gr.skip() if told else views.job(job), gr.update(interactive=not (job.is_over or job.cancelling))


def clicked(cell: object) -> tuple[int, int]:
    """(source depth, target depth) of a cell, as the browser tells it.

    Raises:
        RequestError: it tells something else.
    """
    if isinstance(cell, list) and len(cell) == 2 and all(type(depth) is int for depth in cell):
        return cell[0], cell[1]
    raise RequestError("That is no cell of the grid.")


def follow(part: LayersPart, engine: Engine, pair: Pair) -> dict[Any, Any]:
    """The recorded grid of a pair, or none yet."""
    facts, drawn = _recorded(engine, pair), None
    if facts and engine.showcase and engine.showcase.joint_map:
        at = engine.showcase.joint_map
        drawn = grid(facts, MEASURES[0], (at.source_depth, at.depth), layer_table(engine, pair))
    return {
        part.measure: MEASURES[0],
        part.line: views_map.layers_line(facts, MEASURES[0]),
        part.plot: drawn,
        part.facts: facts,
    }


def grid(facts: LayerFacts | None, measure: str, at: tuple[int, int] | None, table: Sequence[int]) -> Any:
    """The figure of a grid, or None without one."""
    return plots_map.layer_grid(facts, measure, at, table) if facts else None


def layer_table(engine: Engine, pair: Pair) -> tuple[int, ...]:
    """The source depth of each target depth; empty where the models are not known, which the summary says."""
    models = Selection.of(pair.source, pair.target, "")
    return engine.layer_map(engine.facts(models)) if engine.knows(models) else ()


def _recorded(engine: Engine, pair: Pair) -> LayerFacts | None:
    example = engine.showcase
    return example.layers if example and example.pair == pair else None
