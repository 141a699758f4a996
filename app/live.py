"""What a running fit shows of itself: tokens a second, the loss so far, and held-out R² by depth, as HTML."""

from collections.abc import Mapping, Sequence

from app.jobs import Job

_WIDTH, _HEIGHT = 240.0, 64.0
_TOKENS = "tokens"
# Stages whose steps are aligned tokens.
_BY_TOKENS = ("heads",)


def pace(job: Job, now: float) -> str:
    """How many tokens a second the current stage takes; empty where it is not told, or not known yet."""
    steps = job.steps_a_second(now)
    if steps is None or job.progress is None or not job.history:
        return ""
    if job.progress.stage in _BY_TOKENS:
        return f"{steps:,.0f} tokens a second"
    first, last = job.history[0], job.progress
    if _TOKENS not in last.metrics or last.done == first.done:
        return ""
    each = (last.metrics[_TOKENS] - first.metrics.get(_TOKENS, 0.0)) / (last.done - first.done)
    return f"{steps * each:,.0f} tokens a second"


def curves(job: Job) -> str:
    """The loss since the stage began and the R² of every depth; empty where the job tells neither."""
    losses = [report.metrics["loss"] for report in job.history if "loss" in report.metrics]
    depths = job.progress.by_depth if job.progress else {}
    drawn = [_line(losses)] if len(losses) > 1 else []
    drawn += [_bars(depths)] if depths else []
    return f'<div class="cast-live">{"".join(drawn)}</div>' if drawn else ""


def _line(values: Sequence[float]) -> str:
    """The values from left to right as a line, its range in words."""
    low, high = min(values), max(values)
    across = _WIDTH / (len(values) - 1)
    points = " ".join(
        f"{place * across:.1f},{_HEIGHT * (1 - (value - low) / ((high - low) or 1.0)):.1f}"
        for place, value in enumerate(values)
    )
    words = f"Training loss, {values[0]:.3g} at first and {values[-1]:.3g} now"
    return (
        f'<figure><svg viewBox="0 -2 {_WIDTH:g} {_HEIGHT + 4:g}" role="img" aria-label="{words}" '
        f'preserveAspectRatio="none"><polyline points="{points}"/></svg>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _bars(by_depth: Mapping[int, float]) -> str:
    """A bar a depth between R² 0 and 1."""
    depths = sorted(by_depth)
    across = _WIDTH / len(depths)
    bars = "".join(
        f'<rect x="{place * across + 1:.1f}" width="{max(1.0, across - 2):.1f}" '
        f'y="{_HEIGHT * (1 - value):.1f}" height="{_HEIGHT * value:.1f}">'
        f"<title>depth {depth}: R² {by_depth[depth]:.2f}</title></rect>"
        for place, depth in enumerate(depths)
        for value in [min(1.0, max(0.0, by_depth[depth]))]
    )
    worst = min(depths, key=lambda depth: by_depth[depth])
    words = (
        f"Held-out R² at target depths {depths[0]} to {depths[-1]} (full height is 1), least at "
        f"{worst}: {by_depth[worst]:.2f}"
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{words}" '
        f'preserveAspectRatio="none"><path d="M0 0H{_WIDTH:g}M0 {_HEIGHT:g}H{_WIDTH:g}"/>{bars}</svg>'
        f"<figcaption>{words}</figcaption></figure>"
    )
