"""Plotly figures with transparent grounds and mid-grey ink, so that they sit on dark and on light.

Plotly is imported when the first figure is drawn: the page must answer before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING

from app.runs import BASELINES, Run, lettered, method_label

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from app.facts import HeadsFacts
    from cast.results import Result

# One meaning a colour, as in assets/css/page.css.
SOURCE = "#0072B2"
TARGET = "#D55E00"
ADAPTER = "#009E73"

_RUN_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")

INK = "#7d8a99"
GRID = "rgba(125, 138, 153, 0.25)"
HOVER = "#16202c"


def heads_quality(facts: HeadsFacts) -> go.Figure:
    """Held-out R² and k-NN overlap of each target depth, each with its shuffled control."""
    import plotly.graph_objects as go

    depths = [d.depth for d in facts.depths]
    figure = go.Figure()
    found = facts.depths
    overlap, overlap_control = [d.knn_overlap for d in found], [d.knn_overlap_control for d in found]
    lines = (
        ("R²", [d.r_squared for d in found], [d.r_squared_control for d in found], ADAPTER, "circle"),
        ("k-NN overlap", overlap, overlap_control, SOURCE, "square"),
    )
    for name, values, controls, colour, symbol in lines:
        figure.add_scatter(
            x=depths, y=values, name=name, mode="lines+markers", line={"color": colour},
            marker={"symbol": symbol, "size": 8},
        )  # fmt: skip
        figure.add_scatter(
            x=depths, y=controls, name=f"{name}, pairs shuffled", mode="lines+markers",
            line={"color": colour, "dash": "dot", "width": 1},
            marker={"symbol": f"{symbol}-open", "size": 6}, opacity=0.8,
        )  # fmt: skip
    quiet(figure, height=320)
    figure.update_xaxes(title="Target depth", dtick=1 if len(depths) <= 16 else None)
    lowest = min((min(values) for _, *both, _, _ in lines for values in both), default=0.0)
    figure.update_yaxes(title="Held-out measure", range=[min(-0.1, lowest - 0.05), 1.02])
    return figure


def recovered_lift(runs: Sequence[Run]) -> go.Figure | None:
    """A dot and its 95 % interval for each measured method of the runs; scores where no lift is known.

    A run has a symbol, CAST's own methods have the adapter's colour. None where nothing is measured yet.
    """
    import plotly.graph_objects as go

    known = any(result.lift is not None for run in runs for result in run.results)
    figure, rows = go.Figure(), 0
    for (letter, run), symbol in zip(lettered(runs), cycle(_RUN_SYMBOLS), strict=False):
        dots = [dot for result in run.results if (dot := _dot(result, known))]
        if not dots:
            continue
        rows += len(dots)
        methods, values, lows, highs = zip(*dots, strict=True)
        colours = [INK if method in BASELINES else ADAPTER for method in methods]
        figure.add_scatter(
            y=[method_label(method) for method in methods], x=values,
            name=f"{letter}: {escape(run.title)},<br>{run.time}", mode="markers",
            orientation="h", marker={"symbol": symbol, "size": 12, "color": colours},
            error_x={
                "array": [high - value for value, high in zip(values, highs, strict=True)],
                "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
                "color": INK, "thickness": 2, "width": 6,
            },
            customdata=[f"{low:.2f} to {high:.2f}" for low, high in zip(lows, highs, strict=True)],
            hovertemplate="%{y}: %{x:.2f} (%{customdata})<extra></extra>",
        )  # fmt: skip
    if not rows:
        return None
    quiet(figure, height=150 + 40 * rows)
    figure.update_layout(scattermode="group", showlegend=len(runs) > 1, margin={"l": 16})
    # A dot at an end of the range stands whole beside the axis, and clear of the names.
    figure.update_traces(cliponaxis=False)
    # In two lines: a narrow window has less than one beside the methods' names.
    figure.update_xaxes(title="Recovered lift<br>(1 is retraining)" if known else "Score")
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=12)
    for place in (0, 1):
        figure.add_vline(place, line={"color": INK, "width": 1, "dash": "dot"})
    return figure


def _dot(result: Result, by_lift: bool) -> tuple[str, float, float, float] | None:
    """Method, value, and both ends of its interval; None where the lift is asked for and not known."""
    value = result.lift if by_lift else result.translated
    if value is None:
        return None
    low, high = result.interval if by_lift and result.interval else (value, value)
    return result.method, value, low, high


def quiet(figure: go.Figure, height: int) -> None:
    """Give a figure the page's look."""
    figure.update_layout(
        template="none", height=height, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "IBM Plex Sans, system-ui, sans-serif", "size": 14, "color": INK},
        margin={"l": 48, "r": 16, "t": 16, "b": 48},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        # Over any colour of a point, in light and dark.
        hoverlabel={"align": "left", "bgcolor": HOVER, "bordercolor": HOVER, "font": {"color": "#ffffff"}},
        modebar={"orientation": "h", "bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": SOURCE},
    )  # fmt: skip
    # Room for larger type, as in talk mode.
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
