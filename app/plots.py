"""Plotly figures with transparent grounds and mid-grey ink, so that they sit on dark and on light.

Plotly is imported when the first figure is drawn: the page must answer before that.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from app.theme import ADAPTER, SOURCE, TARGET

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from app.backend import HeadsFacts, JointMap

_INK = "#7d8a99"
_GRID = "rgba(125, 138, 153, 0.25)"


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
    _quiet(figure, height=320)
    figure.update_xaxes(title="Target depth", dtick=1 if len(depths) <= 16 else None)
    figure.update_yaxes(title="Held-out measure", range=[-0.1, 1.02])
    return figure


def joint_map(drawn: JointMap) -> go.Figure:
    """Source states through the heads (circles) and target states (squares), joined by token."""
    import plotly.graph_objects as go

    figure = go.Figure()
    hover = [f"{escape(p.context)}<br><b>{escape(p.token)}</b>" for p in drawn.points]
    joined_x: list[float | None] = []
    joined_y: list[float | None] = []
    for point in drawn.points:
        joined_x += [point.source[0], point.target[0], None]
        joined_y += [point.source[1], point.target[1], None]
    figure.add_scatter(
        x=joined_x, y=joined_y, mode="lines", line={"color": _GRID, "width": 1}, name="same token",
        hoverinfo="skip",
    )  # fmt: skip
    sides = (
        ("source through the heads", [p.source for p in drawn.points], SOURCE, "circle"),
        ("target", [p.target for p in drawn.points], TARGET, "square"),
    )
    for name, places, colour, symbol in sides:
        figure.add_scatter(
            x=[p[0] for p in places], y=[p[1] for p in places], mode="markers", name=name, text=hover,
            hovertemplate="%{text}<extra>" + name + "</extra>",
            marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.75},
        )  # fmt: skip
    _quiet(figure, height=560)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
    return figure


def _quiet(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="none", height=height, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "IBM Plex Sans, system-ui, sans-serif", "size": 14, "color": _INK},
        margin={"l": 48, "r": 16, "t": 16, "b": 48},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
