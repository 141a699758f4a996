"""The guided tour in six steps: a recorded run told for an audience, as HTML and SVG.

Nothing here is computed when the tour is given; what speaks live stands beside it (`app.tabs.stage`).
"""

from collections.abc import Sequence
from html import escape

from app import picture, views
from app.facts import JointMap, MapPoint
from app.showcase import Showcase, SkillScore

_WIDTH, _HEIGHT = 1200.0, 480.0
_MARGIN = 16.0
LIVE_STEPS = {1: "", 2: "", 4: "strength"}
"""The steps that run the models, and what the arrow keys up and down change in them."""


def steps(example: Showcase, skill: str) -> str:
    """Every step as a section of its own; the style sheet shows one of them.

    Args:
        example: the recorded run that is told.
        skill: what its adapter teaches, in words.
    """
    told = [
        ("The adapter is locked into its model", _locked(example, skill), _source_stack(example)),
        ("The target does not have the skill", _apart(example), _facts(example)),
        ("Carry it over: no data, no training", _carried(example), _stacks(example)),
        ("Side by side, live", _live(example), ""),
        ("One map for both models", _believed(example), _map(example.joint_map)),
        ("How much arrives", _arrived(example), _numbers(example)),
    ]
    return "".join(
        _section(number, len(told), title, words, shown, views.shortened(example.prompt))
        for number, (title, words, shown) in enumerate(told, 1)
    )


def _section(number: int, of: int, title: str, words: str, shown: str, prompt: str) -> str:
    asked = f'<blockquote class="tour-prompt">{escape(prompt)}</blockquote>'
    live = ' data-live="1"' if number in LIVE_STEPS else ""
    strength = ' data-strength="1"' if LIVE_STEPS.get(number) else ""
    return (
        f'<section class="tour-step" data-step="{number}"{live}{strength}>'
        f'<p class="tour-place">{number} of {of}</p>'
        f'<h2 id="cast-tour-title-{number}" tabindex="-1">{escape(title)}</h2>'
        f'<p class="tour-words">{escape(words)}</p>{shown}{asked if live else ""}</section>'
    )


def _locked(example: Showcase, skill: str) -> str:
    return (
        f'A LoRA has taught {example.source.name} one skill: "{skill}" Its matrices fit the '
        f"{example.source.depth} blocks of this model, {example.source.width} wide, and those of no other."
    )


def _apart(example: Showcase) -> str:
    return (
        f"{example.target.name} is of another make. {views.verdict(example.source, example.target)} "
        "Training it anew would need the data, and often nobody has them any more."
    )


def _carried(example: Showcase) -> str:
    if example.selection.by_words:
        return (
            "The source reads along with its frozen adapter, and the target takes over the words that the "
            "adapter moves."
        )
    return "The frozen adapter acts inside the target, through heads that were trained once for the pair."


def _live(example: Showcase) -> str:
    return (
        "The same prompt and the same draw for all four, on this machine, now. "
        "Arrow up and arrow down change the strength of what is carried, from 0 to 2."
    )


def _believed(example: Showcase) -> str:
    drawn = example.joint_map
    if drawn is None:
        return "No map was recorded for this pair."
    told = ", ".join(f"{m.name} {views.figure(m.value)} ({views.figure(m.control)})" for m in drawn.measures)
    return (
        f"The same {len(drawn.points):,} tokens of held-out text: the source's states through the heads, and "
        f"the target's own. In brackets with the pairs shuffled: {told}. {views.trust(drawn)}"
    )


def _arrived(example: Showcase) -> str:
    if not example.skills:
        return "No scores were recorded for this pair."
    return (
        f"Every skill that ships for this pair, {example.scored} test prompts each, in percent. The target "
        "alone, with the carried adapter, and with one that was trained on it. The price: source and target "
        "run together."
    )


def _source_stack(example: Showcase) -> str:
    return picture.stack(example.source, example.adapter)


def _facts(example: Showcase) -> str:
    return views.compatibility(example.source, example.target, None)


def _stacks(example: Showcase) -> str:
    table = example.heads.layer_map if example.heads else ()
    table = table or picture.relative_layer_map(example.source.depth, example.target.depth)
    return picture.stacks(example.source, example.target, example.adapter, table, example.selection.by_words)


def _numbers(example: Showcase) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Skill", "Target", "Target + carried", "Trained on it")
    )
    body = "".join(_row(skill) for skill in example.skills)
    chosen = example.selection
    command = (
        f"cast translate --source {chosen.source} --target {chosen.target} --adapter {chosen.adapter} "
        "--out out/"
    )
    return (
        f'<div class="cast-facts tour-numbers" {views.SCROLLS}>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f'</table></div><p class="tour-words">Next: a plain LoRA of the target to keep.</p>'
        f'<pre class="tour-command"><code>{escape(command)}</code></pre>'
    )


def _row(skill: SkillScore) -> str:
    cells = (
        (skill.target, "target"),
        (skill.translated, "adapter"),
        (skill.retrained, "retrained"),
    )
    shown = "".join(
        f'<td><span class="tour-bar tour-bar-{kind}"><i style="width:{100 * value:.0f}%"></i></span>'
        f"{100 * value:.0f}</td>"
        for value, kind in cells
    )
    return f'<tr><th scope="row">{escape(skill.skill)}</th>{shown}</tr>'


def _map(drawn: JointMap | None) -> str:
    """The joint map as SVG: source states round, target states square, a line from one to the other."""
    if drawn is None or not drawn.points:
        return ""
    fit = _Fit(drawn.points)
    lines, circles, squares = [], [], []
    for point in drawn.points:
        (sx, sy), (tx, ty) = fit(point.source), fit(point.target)
        lines.append(f"M{sx:.1f} {sy:.1f}L{tx:.1f} {ty:.1f}")
        title = f"<title>{escape(point.context)}</title>"
        circles.append(f'<circle cx="{sx:.1f}" cy="{sy:.1f}" r="4">{title}</circle>')
        squares.append(f'<rect x="{tx - 3.5:.1f}" y="{ty - 3.5:.1f}" width="7" height="7">{title}</rect>')
    words = f"{len(drawn.points)} tokens, each at its place in the source and in the target"
    return (
        f'<figure class="tour-map"><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{escape(words)}"><path class="tour-pairs" d="{"".join(lines)}"/>'
        f'<g class="tour-source">{"".join(circles)}</g><g class="tour-target">{"".join(squares)}</g></svg>'
        '<figcaption><span><i class="mark mark-source"></i>source, through the heads</span>'
        '<span><i class="mark mark-target"></i>target</span></figcaption></figure>'
    )


class _Fit:
    """Places of a map in the picture; a map's axes mean nothing, so each is stretched to fill it."""

    def __init__(self, points: Sequence[MapPoint]) -> None:
        places = [place for point in points for place in (point.source, point.target)]
        self._left = min(x for x, _ in places)
        self._top = max(y for _, y in places)
        self._across = (_WIDTH - 2 * _MARGIN) / ((max(x for x, _ in places) - self._left) or 1.0)
        self._down = (_HEIGHT - 2 * _MARGIN) / ((self._top - min(y for _, y in places)) or 1.0)

    def __call__(self, place: tuple[float, ...]) -> tuple[float, float]:
        return (
            _MARGIN + (place[0] - self._left) * self._across,
            _MARGIN + (self._top - place[1]) * self._down,
        )
