"""Explore: both models' states of the same tokens in one map, and all of their layers against each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import plots_map, theme, views, views_map
from app.engine import Engine
from app.facts import Drawn, MapRequest
from app.jobs import Job
from app.saying import said
from app.tabs import layers as layers_part
from app.tabs.layers import LayersPart, create_layers, layer_table, progress, wire_layers
from app.tabs.pick import PickTab
from app.workspace import Attached, Pair, Selection, Workspace

_VIEWS = [("One joint map", "joint"), ("Two linked panes", "own"), ("Along the layers", "along")]
_FINDER = (
    '<div class="cast-player" role="group" aria-label="Go along the layers" hidden>'
    '<button type="button">▶ Play</button>'
    '<input type="range" min="0" step="1" value="0" aria-label="Target depth in the map">'
    "<output></output></div>"
    '<div class="cast-finder"><label>Find tokens <input type="search" autocomplete="off" '
    'placeholder="part of a token"></label><p role="status"></p></div>'
)
_IN_BROWSER = ("PNG", "SVG")
_ON_SERVER = ("HTML", "CSV")
_FIRST_PCA = "PCA first; the UMAP is being computed."


@dataclass(frozen=True)
class ExploreTab:
    """The widgets of the tab; `shown` holds what the plot shows, `job` names the drawing that runs."""

    view: gr.Radio
    depth: gr.Slider
    source_depth: gr.Slider
    dimensions: gr.Radio
    method: gr.Radio
    points: gr.Slider
    adapter: gr.Checkbox
    draw: gr.Button
    stop: gr.Button
    message: gr.HTML
    colour: gr.Dropdown
    plot: gr.Plot
    finder: gr.HTML
    measures: gr.HTML
    exports: dict[str, gr.Button]
    file: gr.DownloadButton
    shown: gr.State
    job: gr.State
    layers: LayersPart

    @property
    def asked(self) -> list[Any]:
        """What a map is made of beside the choice of models, in the order that `request_of` takes."""
        return [
            self.depth, self.source_depth, self.points, self.view, self.dimensions, self.method, self.adapter
        ]  # fmt: skip

    @property
    def kept(self) -> dict[str, Any]:
        """What the browser keeps; the depths follow the models."""
        return {
            "view": self.view, "dimensions": self.dimensions, "method": self.method, "points": self.points,
            "adapter": self.adapter,
        }  # fmt: skip

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets."""
        return [
            self.depth, self.source_depth, self.message, self.plot, self.measures, self.shown, self.colour,
            *self.layers.followers, self.layers.measure,
        ]  # fmt: skip


def create_explore_tab(engine: Engine, start: Workspace) -> ExploreTab:
    """Build the tab, for the depths of the recorded map where there is one."""
    example, pair = engine.showcase, start.selection.pair
    drawn = _recorded(engine, pair)
    deepest = (example.source.depth, example.target.depth) if example else (8, 8)
    at = (drawn[0].source_depth, drawn[0].depth) if drawn else (1, 1)
    with gr.Row():
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            view = gr.Radio(_VIEWS, value="joint", label="Picture")
            depth = gr.Slider(
                0, deepest[1], step=1, value=at[1], label="Target depth",
                info="0 is the embedding, the last is before the final norm.",
            )  # fmt: skip
            source_depth = gr.Slider(
                0, deepest[0], step=1, value=at[0], label="Source depth",
                info="Goes along with the target's, and may be set apart.",
            )  # fmt: skip
            adapter = gr.Checkbox(True, label="Arrows to each token's place under the adapter")
            with gr.Row(elem_classes="cast-detail"):
                dimensions = gr.Radio([("2-D", 2), ("3-D", 3)], value=2, label="Dimensions", min_width=120)
                method = gr.Radio(
                    [("PCA, then UMAP", "umap"), ("PCA", "pca")], value="umap", label="Method", min_width=160
                )
            points = gr.Slider(
                100, 2000, value=300, step=100, label="Tokens in the map", elem_classes="cast-detail"
            )
            with gr.Row():
                draw = gr.Button("Draw the map", variant="primary", min_width=160)
                stop = gr.Button("Stop drawing", interactive=False, min_width=120)
            message = gr.HTML()
        with gr.Column(scale=3, min_width=320):
            colour = gr.Dropdown(
                [(words, key) for key, words in plots_map.COLOURS.items()], value="model", label="Coloured by"
            )
            # Drawn once the page is open, as the grid: plotly takes a while to import.
            plot = gr.Plot(show_label=False, elem_id="cast-map")
            finder = gr.HTML(_FINDER, js_on_load=theme.script("maps"))
            measures = gr.HTML(views_map.measures(drawn))
            with gr.Row(elem_classes="cast-detail"):
                exports = {
                    kind: gr.Button(f"Save {kind}", size="sm", min_width=96)
                    for kind in ("HTML", "PNG", "SVG", "CSV")
                }
            file = gr.DownloadButton("Map", visible="hidden", elem_id="cast-map-file")
    layers = create_layers(engine, pair)
    return ExploreTab(
        view, depth, source_depth, dimensions, method, points, adapter, draw, stop, message, colour, plot,
        finder, measures, exports, file, gr.State(drawn), gr.State(""), layers,
    )  # fmt: skip


def wire_explore_tab(
    tab: ExploreTab, pick: PickTab, way: list[Any], engine: Engine, attached: gr.BrowserState
) -> None:
    """Connect the tab's events; `way` is mode and segment, which say what moves the target."""
    depths = [tab.source_depth, tab.depth]
    drawing = [tab.plot, tab.measures, tab.shown, tab.message, tab.stop, tab.job]

    def draw(
        source: str, target: str, lora: str, mode: str, segment: int, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        *asked, colour, kept, before = values
        request = request_of(Selection.of(source, target, lora, mode, segment), *asked)
        found: Job | Drawn
        try:
            for found in engine.maps.draw(request, Attached.from_json(kept), before or ""):
                if isinstance(found, Job):
                    yield *[gr.skip()] * 3, *progress(found), found.id
                else:
                    waits = request.method == "umap" and found[0].method == "pca"
                    words = views.sentence(_FIRST_PCA if waits else "")
                    yield (
                        figure(found, colour), views_map.measures(found), found, words,
                        gr.update(interactive=waits), gr.skip(),
                    )  # fmt: skip
        except Exception as error:
            yield *[gr.skip()] * 3, said(error), gr.update(interactive=False), gr.skip()

    def go_along(source: str, target: str, depth: int) -> Any:
        table = layer_table(engine, Pair(source or "", target or ""))
        return table[int(depth)] if int(depth) < len(table) else gr.skip()

    arguments = [
        draw, [*pick.chosen, *way, *tab.asked, tab.colour, attached, tab.job], drawing
    ]  # fmt: skip
    # Drawing anew stops the drawing before, so a press must reach the server while one runs.
    how = {
        "show_progress": "hidden", "trigger_mode": "multiple", "concurrency_limit": 16,
        "concurrency_id": "maps", "api_visibility": "private",
    }  # fmt: skip
    tab.draw.click(*arguments, **how)
    wire_layers(tab.layers, pick, depths, tab.finder, engine, attached).then(*arguments, **how)
    tab.stop.click(engine.maps.cancel, tab.job, None, show_progress="hidden", api_visibility="private")
    tab.depth.input(
        go_along, [pick.source, pick.target, tab.depth], tab.source_depth, show_progress="hidden",
        trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
    tab.colour.input(
        figure, [tab.shown, tab.colour], tab.plot, show_progress="hidden", api_visibility="private"
    )
    _wire_exports(tab, engine)


def _wire_exports(tab: ExploreTab, engine: Engine) -> None:
    """Pictures are made in the browser, of what it shows; files are written by the server."""
    for kind in _IN_BROWSER:
        tab.exports[kind].click(
            None, js=f"() => window.castMap.save({kind.lower()!r})", api_visibility="private"
        )

    def write(kind: str, drawn: Drawn, colour: str) -> tuple[Any, str]:
        try:
            return str(engine.maps.written(drawn, colour, kind)), ""
        except Exception as error:
            return gr.skip(), said(error)

    for kind in _ON_SERVER:
        tab.exports[kind].click(
            lambda drawn, colour, kind=kind: write(kind, drawn, colour), [tab.shown, tab.colour],
            [tab.file, tab.message], show_progress="minimal", api_visibility="private",
        ).success(
            None, tab.file, js="(file) => window.castMap.take(file)", api_visibility="private"
        )  # fmt: skip


def request_of(
    selection: Selection, depth: int, source_depth: int, points: int, view: str, dimensions: int, method: str,
    adapter: bool,
) -> MapRequest:  # fmt: skip
    """What the widgets ask for."""
    return MapRequest(
        selection, int(depth), int(source_depth), int(points), view, int(dimensions), method, bool(adapter)
    )


def figure(drawn: Drawn, colour: str = "model") -> Any:
    """The figure of a map for the page, or None where nothing is drawn."""
    return plots_map.for_page(plots_map.token_map(drawn, colour)) if drawn else None


def follow(tab: ExploreTab, engine: Engine, pair: Pair) -> dict[Any, Any]:
    """The recorded map of a pair, or none yet; the depth sliders reach the models' last blocks."""
    drawn, table = _recorded(engine, pair), layer_table(engine, pair)
    updates: dict[Any, Any] = {}
    if table:
        deepest = len(table) - 1
        at = drawn[0].depth if drawn else deepest // 2
        beside = drawn[0].source_depth if drawn else table[at]
        updates = {
            tab.depth: gr.update(maximum=deepest, value=at),
            tab.source_depth: gr.update(maximum=table[-1], value=beside),
        }
    return (
        updates
        | layers_part.follow(tab.layers, engine, pair)
        | {
            tab.message: "" if drawn else views.sentence("Press Draw the map to look at this pair."),
            tab.plot: figure(drawn),
            tab.measures: views_map.measures(drawn),
            tab.shown: drawn,
            tab.colour: "model",
        }
    )


def _recorded(engine: Engine, pair: Pair) -> Drawn:
    example = engine.showcase
    return (example.joint_map,) if example and example.joint_map and example.pair == pair else ()
