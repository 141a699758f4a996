"""Explore: source and target states of the same tokens in one map, beside what the map is worth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import plots, views
from app.backend import JointMap
from app.engine import Engine
from app.saying import said
from app.tabs.pick import PickTab, target_depth
from app.workspace import Attached, Pair, Workspace


@dataclass(frozen=True)
class ExploreTab:
    """The widgets of the tab."""

    depth: gr.Slider
    points: gr.Slider
    draw: gr.Button
    message: gr.HTML
    plot: gr.Plot
    measures: gr.HTML

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets."""
        return [self.depth, self.message, self.plot, self.measures]


def create_explore_tab(engine: Engine, start: Workspace) -> ExploreTab:
    """Build the tab; the recorded map, where there is one, is drawn from the start."""
    example, recorded = engine.showcase, _recorded(engine, start.selection.pair)
    with gr.Row():
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            depth = gr.Slider(
                0, example.target.depth if example else 8, step=1, label="Target depth",
                value=recorded.depth if recorded else 1,
                info="0 is the embedding, the last is before the final norm.",
            )  # fmt: skip
            points = gr.Slider(100, 2000, value=300, step=100, label="Tokens in the map")
            draw = gr.Button("Draw the map", variant="primary")
            message = gr.HTML()
            measures = gr.HTML(views.measures(recorded) if recorded else "")
        with gr.Column(scale=3, min_width=320):
            plot = gr.Plot(plots.joint_map(recorded) if recorded else None, show_label=False)
    return ExploreTab(depth, points, draw, message, plot, measures)


def wire_explore_tab(tab: ExploreTab, pick: PickTab, engine: Engine, attached: gr.BrowserState) -> None:
    """Connect the tab's events."""
    pair = [pick.source, pick.target]

    def draw(
        source: str, target: str, depth: int, points: int, kept: object
    ) -> Iterator[tuple[Any, Any, str]]:
        job = Attached.from_json(kept).heads_job
        yield gr.skip(), gr.skip(), views.sentence("Reading both models on held-out text.")
        try:
            for drawn in engine.joint_maps(Pair(source or "", target or ""), int(depth), int(points), job):
                more = "PCA first; the UMAP is being computed." if drawn.method == "pca" else ""
                yield plots.joint_map(drawn), views.measures(drawn), views.sentence(more)
        except Exception as error:
            yield gr.skip(), gr.skip(), said(error)

    tab.draw.click(
        draw, [*pair, tab.depth, tab.points, attached], [tab.plot, tab.measures, tab.message],
        show_progress="hidden", concurrency_limit=4, api_visibility="private",
    )  # fmt: skip


def follow(tab: ExploreTab, engine: Engine, pair: Pair) -> dict[Any, Any]:
    """The recorded map of a pair, or none yet; the depth slider reaches the target's last block."""
    recorded, depth = _recorded(engine, pair), target_depth(engine, pair)
    place = gr.skip()
    if depth is not None:
        place = gr.update(maximum=depth, value=recorded.depth if recorded else depth // 2)
    return {
        tab.depth: place,
        tab.message: "" if recorded else views.sentence("Press Draw the map to look at this pair."),
        tab.plot: plots.joint_map(recorded) if recorded else None,
        tab.measures: views.measures(recorded) if recorded else "",
    }


def _recorded(engine: Engine, pair: Pair) -> JointMap | None:
    example = engine.showcase
    return example.joint_map if example and example.pair == pair else None
