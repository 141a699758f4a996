"""What stands beside a map, as HTML and CSV: its measures, and how far the picture may be believed."""

import csv
import io
from collections.abc import Sequence
from html import escape

from app.facts import Drawn, JointMap, LayerFacts, Measure
from app.views import SCROLLS, figure, sentence, trust
from cast.layer_measures import NEIGHBOURS

# A share of common neighbours that is less above chance than this is read as nothing.
_CLEAR = 0.1
_AXES = "xyz"


def measures(drawn: Drawn) -> str:
    """The measures of a map beside their shuffled control, and how far the picture may be believed."""
    if not drawn:
        return ""
    told = f'<p class="cast-verdict">{escape(belief(drawn))}</p>'
    note = f'<p class="cast-verdict">{escape(drawn[0].note)}</p>' if drawn[0].note else ""
    table = _of_one(drawn[0]) if len(drawn) == 1 else _of_many(drawn)
    return f'<div class="cast-facts cast-map-facts" {SCROLLS}>{table}{told}{note}</div>'


def _of_one(drawn: JointMap) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(m.name)}</th><td>{figure(m.value)}</td>'
        f'<td class="control">{figure(m.control)}</td></tr>'
        for m in drawn.measures
    )
    return (
        f'<table><thead><tr><th scope="col">{escape(drawn.method.upper())} at target depth {drawn.depth}, '
        f'source depth {drawn.source_depth}</th><th scope="col">Held out</th><th scope="col">Shuffled</th>'
        f"</tr></thead><tbody>{body}</tbody></table>"
    )


def _of_many(drawn: Drawn) -> str:
    names = [m.name for m in drawn[0].measures]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("Depth", *names, "Trust"))
    body = "".join(
        f'<tr><th scope="row">{one.depth} ({one.source_depth})</th>'
        + "".join(
            f'<td>{figure(m.value)} <span class="control">{figure(m.control)}</span></td>'
            for m in one.measures
        )
        + f"<td>{figure(one.trustworthiness or 0.0)}</td></tr>"
        for one in drawn
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def belief(drawn: Drawn) -> str:
    """How far the picture may be believed: what it keeps, what the measures say, and what it is of."""
    worst = min(drawn, key=lambda one: one.trustworthiness if one.trustworthiness is not None else 1.0)
    first = drawn[0]
    dimensions = "two" if len(first.points[0].source) == 2 else "three"
    parts = [
        f"{len(first.points):,} tokens of held-out text; the measures are taken in the full space, the "
        f"picture in {dimensions} dimensions.",
        trust(worst),
        _together(worst if len(drawn) == 1 else first),
    ]
    if first.spaces == "own":
        parts.append("Each model has a map of its own: places may be compared within a pane, not across.")
    elif not all(one.by_heads for one in drawn):
        parts.append(
            "No head belongs to this pair of depths: the source is carried by a linear map that was fitted "
            "on other text for this picture."
        )
    if first.method == "umap":
        parts.append("In a UMAP only who is near whom means something; lengths and gaps do not.")
    return " ".join(filter(None, parts))


def _together(drawn: JointMap) -> str:
    """Whether the clouds belong together, by the measure that needs no map."""
    found = next((m for m in drawn.measures if m.name == NEIGHBOURS), None)
    if found is None:
        return ""
    if found.value - found.control < _CLEAR:
        return "Hardly any neighbours are shared by the two models: do not read closeness into it."
    return (
        f"The two models share {100 * found.value:.0f} % of each token's nearest neighbours, "
        f"{100 * found.control:.0f} % by chance."
    )


def layers_line(facts: LayerFacts | None, measure: str) -> str:
    """What to do with the grid of layers, or how to get one."""
    if facts is None:
        return sentence("Press Compare all layers for every source depth against every target depth.")
    grid = next(grid for grid in facts.grids if grid.name == measure)
    best = max(
        ((value, i, j) for i, row in enumerate(grid.values) for j, value in enumerate(row)),
        key=lambda entry: entry[0],
    )
    chance = max(max(row) for row in grid.controls)
    return sentence(
        f"{measure} of {facts.tokens:,} tokens, without heads. Most alike: source depth {best[1]} and target "
        f"depth {best[2]} ({figure(best[0])}); with the tokens shuffled at most {figure(chance)}. Dots: "
        "the pairs of the heads; square: the pair that is set. Click a cell to draw its pair, or set both "
        "depths above."
    )


def csv_of(drawn: Drawn) -> str:
    """Every token of a map as a row: its places, how far it moves, and where it stands in its text."""
    sheet = io.StringIO()
    axes = _AXES[: len(drawn[0].points[0].source)]
    clouds = ("source", "adapted", "target", "translated")
    writer = csv.writer(sheet)
    writer.writerow(
        ["method", "source_depth", "target_depth", *(f"{cloud}_{axis}" for cloud in clouds for axis in axes),
         "source_shift", "target_shift", "token", "kind", "context", "after", "text", "sentence", "position"]
    )  # fmt: skip
    for one in drawn:
        for p in one.points:
            places = [
                value
                for place in (p.source, p.adapted, p.target, p.translated)
                for value in (place or [""] * len(axes))
            ]
            shifts = ["" if shift is None else shift for shift in (p.source_shift, p.target_shift)]
            told = [_plain(text) for text in (p.token, p.kind, p.context, p.after)]
            writer.writerow(
                [one.method, one.source_depth, one.depth, *places, *shifts, *told, p.text, p.sentence,
                 p.position]
            )  # fmt: skip
    return sheet.getvalue()


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def caption(measures: Sequence[Measure]) -> str:
    """All measures in a line, their controls in brackets."""
    return "; ".join(f"{m.name} {figure(m.value)} ({figure(m.control)})" for m in measures)
