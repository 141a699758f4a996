"""How much of a skill a translation is expected to have carried over, before any task is scored.

The number is what of the effect arrives on held-out text, 1 - missing, times how far the fitting text reached
what the adapter reacts to. Over the pocket grid it orders *ways* of translating well, and adapters of one way
hardly (docs/fidelity.md, docs/experiments.md): on general text nine tenths of an effect can arrive and the
skill not at all, and nothing that was measured on such text foretells which.
"""

from collections.abc import Sequence

from cast.recipes import Quality, Recipe

REACHED = 0.12
"""Reach below which a text hardly excites an adapter: with five example prompts all that were measured have
more, and on general text few have (docs/fidelity.md, docs/experiments.md)."""
LIKELY, PARTLY = 0.7, 0.3
ENDLESS = (
    "Most of its answers do not end, or it is sure of none: it seems to be an adapter of prose. Of such a "
    "plain LoRA has carried half of what the adapter beside the target has, with example prompts and "
    "without: compare with mode hosted."
)
"""What to do about an adapter that was taught how to write (`benchmarks/real_pair`, *style*)."""


def predicted(quality: Quality | None) -> float | None:
    """The expected recovered lift in [0, 1]; None where nothing was measured.

    Args:
        quality: what was measured on held-out text; a missing reach counts as reached. None for the whole
            source stack hosted by its words, which is what missing effects are measured against.
    """
    if quality is None:
        return 1.0
    if quality.missing is None:
        return None
    return min(1.0, max(0.0, 1 - quality.missing)) * _reached(quality)


def in_words(recipe: Recipe) -> str:
    """The prediction as a sentence for the summary; empty where there is none."""
    quality = recipe.quality
    if quality.predicted is None:
        return ""
    number = f"prediction {quality.predicted:.2f}, a rough guide"
    if quality.predicted >= LIKELY:
        return f"Likely to carry over ({number})."
    if quality.predicted >= PARTLY:
        return f"Likely to carry over in part ({number}): {_reason(quality)}."
    return f"Unlikely to carry over ({number}): {_reason(quality)}."


def expected_in_words(recipe: Recipe, advice: str = "") -> list[str]:
    """What may be expected of a translation, in sentences.

    Args:
        recipe: of the translation.
        advice: what would help where the text hardly excited the adapter, as a clause; empty to say nothing
            of it.
    """
    quality = recipe.quality
    lines = [in_words(recipe), said_in_words(quality), ENDLESS if quality.endless else ""]
    if advice and hardly_excited(quality):
        told = excites_in_words(quality.reach or 0.0, quality.strongest, "What it was fitted on")
        lines.append(f"{told}: {advice}.")
    return [line for line in lines if line]


def said_in_words(quality: Quality) -> str:
    """How many of the answers that nothing was fitted on arrive whole; empty where none were held out."""
    if quality.said is None:
        return ""
    return f"Of answers that it was not fitted on, it would say {100 * quality.said:.0f} % word for word."


def excites(reach: float) -> bool:
    """Whether a text on which an adapter reaches so much excites it."""
    return reach >= REACHED


def excites_in_words(reach: float, strongest: Sequence[str], text: str = "This text") -> str:
    """Whether a text excites an adapter, as a clause that may be gone on with.

    Args:
        reach: the adapter's effect on the text, as a share of that on its strongest tokens.
        strongest: the tokens that it reacts to most.
        text: what the text is called.
    """
    tokens = ", ".join(repr(token) for token in strongest)
    much = "excites" if excites(reach) else "hardly excites"
    return f"{text} {much} the adapter (reach {reach:.2f}; it reacts most to {tokens})"


def hardly_excited(quality: Quality) -> bool:
    """Whether the text that was fitted on hardly excites the adapter."""
    return quality.reach is not None and not excites(quality.reach)


def _reached(quality: Quality) -> float:
    return 1.0 if quality.reach is None else min(1.0, quality.reach / REACHED)


def _reason(quality: Quality) -> str:
    missing = quality.missing or 0.0
    if _reached(quality) < 1 - missing:
        return "the text hardly shows what the adapter does"
    return f"{100 * min(1.0, missing):.0f} % of its effect on held-out text is missing"
