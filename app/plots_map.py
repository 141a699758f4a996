"""Figures of *Explore*: maps of tokens flat and in space, along the layers, and all layers against all.

Every marker trace of tokens carries `meta` TOKENS, and its point i is token i in each of them:
`assets/js/maps.js` links the panes by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from app import views_map
from app.plots import ADAPTER, GRID, INK, SOURCE, TARGET, quiet

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from app.facts import Drawn, JointMap, LayerFacts, MapPoint

TOKENS, CHOSEN = "tokens", "chosen"
COLOURS = {
    "model": "Model",
    "kind": "Token kind",
    "position": "Position in the text",
    "sentence": "Sentence",
    "shift": "Adapter's effect",
}
"""What a map may be coloured by, with the words for it."""

# Okabe and Ito's colours, which differ for every kind of sight, after those that stand for models.
_KINDS = {
    "word": "#7d8a99",
    "capitalised word": "#CC79A7",
    "rest of a word": "#56B4E9",
    "number": "#E69F00",
    "punctuation": "#8a6d00",
    "space": "#b8a9e0",
}
_SCALE = "Viridis"
_GOLDEN_ANGLE = 137.508
_IN_SCALE = 0.95
_LIGHT, _DARK = "#ffffff", "#16202c"
_HEIGHT = 600
# Of a cell's width and height, from its middle.
_CORNER = 0.36
_CAPTION_WIDTH = 150
# What is not chosen steps back.
_DIMMED = {"selected": {"marker": {"opacity": 1}}, "unselected": {"marker": {"opacity": 0.1}}}
_Place = tuple[float, ...]
# A move of the animation, in milliseconds.
_STEP = {"duration": 500, "easing": "cubic-in-out"}


@dataclass(frozen=True)
class _Side:
    """One model in a map: where its tokens lie, where they move to, and in which pane."""

    name: str
    colour: str
    symbol: str
    places: Sequence[_Place]
    moved: Sequence[_Place] | None
    moved_name: str
    shifts: Sequence[float | None]
    pane: int


def token_map(drawn: Drawn, colour: str = "model") -> go.Figure:
    """A map, flat or in space: joint, as two panes, or along the layers with a slider and a button.

    Args:
        drawn: at least one map; several are the same tokens at one depth after the other.
        colour: a key of `COLOURS`.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    first = drawn[0]
    flat = len(first.points[0].source) == 2
    if first.spaces == "own":
        kind = {"type": "xy" if flat else "scene"}
        titles = [f"{side.name} (depth {depth})" for side, depth in _titled(first)]
        figure = make_subplots(1, 2, specs=[[kind, kind]], subplot_titles=titles, horizontal_spacing=0.04)
    else:
        figure = go.Figure()
    for trace, pane in _traces(first, colour, flat):
        where = {"row": 1, "col": pane + 1} if first.spaces == "own" else {}
        figure.add_trace(trace, **where)
    _name_sides(figure, first)
    if colour == "kind":
        _name_kinds(figure, first)
    quiet(figure, _HEIGHT)
    figure.update_layout(
        dragmode="lasso" if flat else "orbit", legend={"itemsizing": "constant"},
        clickmode="event",
        # Plotly's own bar stands above the legend, which it would cover.
        margin={"t": 72},
    )  # fmt: skip
    if first.spaces == "own":
        # Above the titles of the panes.
        figure.update_layout(legend={"y": 1.08}, margin={"t": 104})
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "title": ""}
    if flat:
        figure.update_xaxes(**bare)
        figure.update_yaxes(**bare)
    else:
        axis = bare | {"showgrid": True, "gridcolor": GRID, "backgroundcolor": "rgba(0,0,0,0)"}
        figure.update_scenes(xaxis=axis, yaxis=axis, zaxis=axis)
    if len(drawn) > 1:
        _animate(figure, drawn, colour, flat)
    return figure


def _titled(drawn: JointMap) -> list[tuple[_Side, int]]:
    return list(zip(_sides(drawn), (drawn.source_depth, drawn.depth), strict=True))


def _sides(drawn: JointMap) -> tuple[_Side, _Side]:
    own, points = drawn.spaces == "own", drawn.points
    carried = "source" if own else f"source, carried by {'the heads' if drawn.by_heads else 'a linear map'}"
    adapted = [point.adapted for point in points if point.adapted is not None]
    translated = [point.translated for point in points if point.translated is not None]
    source_shifts = [point.source_shift for point in points]
    target_shifts = [point.target_shift for point in points]
    return (
        _Side(
            carried, SOURCE, "circle", [p.source for p in points], adapted or None,
            "moved by the adapter", source_shifts, 0,
        ),
        _Side(
            "target", TARGET, "square", [p.target for p in points], translated or None,
            "moved by the translation", target_shifts if translated else source_shifts, int(own),
        ),
    )  # fmt: skip


def _traces(drawn: JointMap, colour: str, flat: bool) -> list[tuple[Any, int]]:
    """Every trace with its pane, in the order in which `_animate` moves them."""
    import plotly.graph_objects as go

    scatter = go.Scatter if flat else go.Scatter3d
    sides, traces = _sides(drawn), []
    if drawn.spaces == "joint":
        line = {"color": GRID if flat else INK, "width": 1}
        joined = scatter(
            **_lines(sides[0].places, sides[1].places), mode="lines", line=line, name="same token",
            hoverinfo="skip", opacity=1.0 if flat else 0.3,
        )  # fmt: skip
        traces.append((joined, 0))
    traces += [(_arrows(side, flat), side.pane) for side in sides if side.moved is not None]
    hover = [_hover(point) for point in drawn.points]
    for side in sides:
        tokens = scatter(
            **_columns(side.places), mode="markers", name=side.name, text=hover, meta=TOKENS,
            hovertemplate="%{text}<br>" + side.name + "<extra></extra>",
            **(_DIMMED if flat else {}),
            marker={"symbol": side.symbol, "size": 8 if flat else 4, "opacity": 0.9}
            | ({"line": {"color": "rgba(255, 255, 255, 0.7)", "width": 0.7}} if flat else {})
            | _painted(drawn, side, colour),
        )  # fmt: skip
        traces.append((tokens, side.pane))
    if not flat:
        # In space nothing can be dimmed: what is chosen is ringed instead.
        for pane in sorted({side.pane for side in sides}):
            ring = {"symbol": "circle-open", "size": 12, "color": INK, "line": {"width": 3}}
            chosen = scatter(
                x=[], y=[], z=[], mode="markers", marker=ring, meta=CHOSEN, showlegend=False, hoverinfo="skip"
            )
            traces.append((chosen, pane))
    return traces


def _arrows(side: _Side, flat: bool) -> Any:
    """From each token's place to its place under the adapter; in space a dot stands for the head."""
    import plotly.graph_objects as go

    moved = side.moved or ()
    look = {"color": ADAPTER, "width": 1.5 if flat else 3}
    shared = {"name": side.moved_name, "hoverinfo": "skip", "opacity": 0.75, "mode": "lines+markers"}
    sizes = [0, 8 if flat else 3, 0] * len(moved)
    if not flat:
        dots = {"color": ADAPTER, "size": sizes, "symbol": "diamond"}
        return go.Scatter3d(**_lines(side.places, moved), line=look, marker=dots, **shared)
    heads = {"symbol": "arrow", "angleref": "previous", "size": sizes, "color": ADAPTER}
    dash = {"dash": "solid" if side.symbol == "circle" else "dot"}
    return go.Scatter(**_lines(side.places, moved), line=look | dash, marker=heads, **shared)


def _painted(drawn: JointMap, side: _Side, colour: str) -> dict[str, Any]:
    """The colours of one side's markers."""
    points = drawn.points
    if colour == "kind":
        return {"color": [_KINDS.get(point.kind, INK) for point in points]}
    if colour == "sentence":
        hues = [point.sentence * _GOLDEN_ANGLE % 360 for point in points]
        return {"color": [f"hsl({hue:.0f}, 60%, 50%)" for hue in hues]}
    if colour == "position":
        values = [float(point.position) for point in points]
        return _scaled(values, max(values), "position", side)
    known = [shift for each in _sides(drawn) for shift in each.shifts if shift is not None]
    if colour == "shift" and known:
        return _scaled([shift or 0.0 for shift in side.shifts], _nearly_all(known), "effect", side)
    return {"color": side.colour}


def _scaled(values: Sequence[float], most: float, title: str, side: _Side) -> dict[str, Any]:
    """A scale from 0 that both models share, and one bar for it."""
    bar = {"title": {"text": title}, "thickness": 12, "len": 0.6}
    return {
        "color": values, "colorscale": _SCALE, "cmin": 0, "cmax": most or 1.0,
        "showscale": side.symbol == "circle", "colorbar": bar,
    }  # fmt: skip


def _nearly_all(values: Sequence[float]) -> float:
    """The end of a scale on which a few outliers do not make all the others one colour."""
    return sorted(values)[int(_IN_SCALE * (len(values) - 1))] or max(values)


def _name_sides(figure: go.Figure, drawn: JointMap) -> None:
    """Where a side's tokens have many colours, the legend would show that of its first one."""
    for side in _sides(drawn):
        if all(isinstance(trace.marker.color, str) for trace in figure.select_traces({"name": side.name})):
            continue
        figure.update_traces(selector={"name": side.name}, legendgroup=side.name, showlegend=False)
        mark = {"symbol": side.symbol, "color": INK, "size": 8}
        _add_mark(figure, drawn, name=side.name, legendgroup=side.name, marker=mark)


def _name_kinds(figure: go.Figure, drawn: JointMap) -> None:
    for kind, colour in _KINDS.items():
        if any(point.kind == kind for point in drawn.points):
            _add_mark(figure, drawn, name=kind, marker={"color": colour, "size": 8})


def _add_mark(figure: go.Figure, drawn: JointMap, **how: Any) -> None:
    """A mark that stands in the legend alone; in space too, where a flat one would bring its axes along."""
    import plotly.graph_objects as go

    flat = len(drawn.points[0].source) == 2
    nowhere = {axis: [None] for axis in ("xy" if flat else "xyz")}
    figure.add_trace((go.Scatter if flat else go.Scatter3d)(**nowhere, mode="markers", **how))


def _hover(point: MapPoint) -> str:
    # Plotly knows no other names of characters than these three.
    escaped = partial(escape, quote=False)
    before = point.context.removesuffix(point.token)
    told = [
        f"{escaped(before)}<b>{escaped(point.token)}</b>{escaped(point.after)}".replace("\n", "⏎"),
        point.kind,
    ]
    shifts = (("adapter", point.source_shift), ("translation", point.target_shift))
    told += [f"the {name} moves it by {shift:.2f}" for name, shift in shifts if shift is not None]
    return "<br>".join(told)


def _columns(places: Sequence[_Place]) -> dict[str, list[float]]:
    return {
        axis: [place[at] for place in places] for at, axis in zip(range(len(places[0])), "xyz", strict=False)
    }


def _lines(first: Sequence[_Place], second: Sequence[_Place]) -> dict[str, list[float | None]]:
    """One line from each place of `first` to its place of `second`."""
    found: dict[str, list[float | None]] = {}
    for at, axis in zip(range(len(first[0])), "xyz", strict=False):
        found[axis] = [value for a, b in zip(first, second, strict=True) for value in (a[at], b[at], None)]
    return found


def _animate(figure: go.Figure, drawn: Drawn, colour: str, flat: bool) -> None:
    """A frame for each depth, a slider over them, and a button that goes through them."""
    import plotly.graph_objects as go

    # Plotly moves flat markers smoothly; in space it has to draw anew.
    how = {
        "frame": {"duration": _STEP["duration"], "redraw": not flat},
        "transition": _STEP if flat else {"duration": 0},
        "mode": "immediate",
    }
    axes = "xy" if flat else "xyz"
    frames, steps = [], []
    for one in drawn:
        moved = [{axis: trace[axis] for axis in axes} for trace, _ in _traces(one, colour, flat)]
        scatter = go.Scatter if flat else go.Scatter3d
        name = str(one.depth)
        frames.append(go.Frame(name=name, data=[scatter(**m) for m in moved], traces=list(range(len(moved)))))
        steps.append({"method": "animate", "label": f"{name} ({one.source_depth})", "args": [[name], how]})
    figure.frames = frames
    slider = {
        "steps": steps, "active": 0, "pad": {"t": 16}, "len": 0.8, "x": 0.2,
        "currentvalue": {"prefix": "Target depth (source depth): ", "font": {"size": 14}},
    }  # fmt: skip
    play = {
        "type": "buttons", "x": 0, "y": 0, "xanchor": "left", "yanchor": "top", "pad": {"t": 32},
        "showactive": False,
        "buttons": [
            {"label": "▶ Play", "method": "animate", "args": [None, how | {"fromcurrent": False}]},
        ],
    }  # fmt: skip
    figure.update_layout(sliders=[slider], updatemenus=[play], height=_HEIGHT + 64, margin={"b": 96})
    if flat:
        places = [p for one in drawn for side in _sides(one) for p in (*side.places, *(side.moved or ()))]
        for axis, at in (("xaxis", 0), ("yaxis", 1)):
            low, high = min(p[at] for p in places), max(p[at] for p in places)
            room = 0.04 * (high - low or 1.0)
            figure.update_layout({axis: {"range": [low - room, high + room]}})


def for_page(figure: go.Figure) -> go.Figure:
    """A figure whose frames Gradio hands on to the browser: it passes the layout, and drops frames.

    Plotly's slider and button hear no key: what goes along the layers on the page is `assets/js/maps.js`.
    """
    told: dict[str, Any] = {"frames": [frame.to_plotly_json() for frame in figure.frames]}
    for slider in figure.layout.sliders:
        told["steps"] = [{"label": step.label, "args": step.args} for step in slider.steps]
        figure.update_layout(height=_HEIGHT, margin={"b": 16})
    figure.update_layout(meta=told)
    figure.frames = figure.layout.sliders = figure.layout.updatemenus = ()
    return figure


def write(drawn: Drawn, colour: str, path: Path) -> None:
    """Write a map: its tokens as a table where the file is a `.csv`, else as a page of its own."""
    if path.suffix == ".csv":
        path.write_text(views_map.csv_of(drawn), encoding="utf-8")
    else:
        _write_html(drawn, colour, path)


def _write_html(drawn: Drawn, colour: str, path: Path) -> None:
    """A page that needs no network, with the measures under the map."""
    figure = token_map(drawn, colour)
    one, last = drawn[0], drawn[-1]
    depths = f"target depth {one.depth}, source depth {one.source_depth}"
    if len(drawn) > 1:
        depths = f"target depths {one.depth} to {last.depth}"
    words = [f"{one.method.upper()}, {depths}. Held out, with the pairs shuffled in brackets:"]
    words += [f"{each.depth}: {views_map.caption(each.measures)}" for each in drawn]
    words += [views_map.belief(drawn), one.note]
    lines = [line for text in words if text for line in wrap(text, _CAPTION_WIDTH)]
    told = "<br>".join(escape(line, quote=False) for line in lines)
    below = 112 if len(drawn) > 1 else 8
    figure.add_annotation(
        text=told, xref="paper", yref="paper", x=0, y=0, xanchor="left", yanchor="top",
        yshift=-below, align="left", showarrow=False, font={"size": 12},
    )  # fmt: skip
    room = below + 18 * len(lines) + 16
    figure.update_layout(margin={"b": room}, height=_HEIGHT + room)
    figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False}, auto_play=False)


def layer_grid(
    facts: LayerFacts, measure: str, chosen: tuple[int, int] | None = None, table: Sequence[int] = ()
) -> go.Figure:
    """One measure of all source depths against all target depths.

    Args:
        facts: the measures.
        measure: which of them.
        chosen: (source depth, target depth) of the map, in a square.
        table: the source depth that belongs to each target depth, with a dot in the cell's corner.
    """
    import plotly.graph_objects as go

    grid = next(grid for grid in facts.grids if grid.name == measure)
    rows, columns = len(grid.values), len(grid.values[0])
    figure = go.Figure()
    figure.add_heatmap(
        z=grid.values, customdata=grid.controls, colorscale=_SCALE, zmin=0, zmax=1,
        texttemplate="%{z:.2f}" if max(rows, columns) <= 12 else None, xgap=1, ygap=1,
        # Above the cells, which so have the whole width of a narrow window.
        colorbar={
            "orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "thickness": 12,
            "title": {"text": measure, "side": "top"},
        },
        hovertemplate=(
            "source depth %{y}, target depth %{x}<br>" + measure
            + " %{z:.2f} (shuffled %{customdata:.2f})<extra></extra>"
        ),
    )  # fmt: skip
    # Marks keep to the cells' edges, whatever their size, and the figures can be read between them.
    figure.add_scatter(
        x=[depth + _CORNER for depth in range(len(table))], y=[depth + _CORNER for depth in table],
        mode="markers", hoverinfo="skip", showlegend=False,
        marker={"size": 7, "color": _LIGHT, "line": {"width": 1.5, "color": _DARK}},
    )  # fmt: skip
    if chosen:
        i, j = chosen
        edge = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
        # Light under dark, to be seen on every colour of the scale.
        for width, colour in ((6, _LIGHT), (3, _DARK)):
            figure.add_shape(**edge, line={"width": width, "color": colour})
    quiet(figure, height=400)
    figure.update_layout(margin={"t": 72})
    figure.update_xaxes(title="Target depth", dtick=1 if columns <= 16 else None, showgrid=False)
    figure.update_yaxes(title="Source depth", dtick=1 if rows <= 16 else None, showgrid=False)
    return figure
