"""Where heads are weak, in words."""

from collections.abc import Sequence

from app.facts import DepthFacts, HeadsFacts

_WEAK, _STRONG = 0.5, 0.8


def is_weak(depth: DepthFacts) -> bool:
    """Whether half of what a depth holds, or more, is lost on the way."""
    return depth.r_squared < _WEAK


def weakness(facts: HeadsFacts) -> str:
    """Which depths lose how much, and what that means for what crosses there."""
    weak = [depth.depth for depth in facts.depths if is_weak(depth)]
    middling = [depth.depth for depth in facts.depths if _WEAK <= depth.r_squared < _STRONG]
    if not weak and not middling:
        return f"No depth is weak: everywhere at least {_STRONG:.0%} of the variance arrives."
    told = []
    if weak:
        told.append(
            f"Weak at target {_depths(weak)}: less than half of the variance arrives there, so a change that "
            "crosses there by states (block by block, instant, kernel) is mostly noise."
        )
    if middling:
        told.append(f"Middling at target {_depths(middling)}: {_WEAK:.0%} to {_STRONG:.0%} arrives.")
    if facts.depths[-1].depth in weak:
        told.append(
            "The last depth is the one by which the target speaks; more tokens, or the MLP form, help there."
        )
    return " ".join(told)


def _depths(depths: Sequence[int]) -> str:
    """Depths as people say them: runs of them as ranges."""
    runs: list[list[int]] = []
    for depth in depths:
        if runs and depth == runs[-1][-1] + 1:
            runs[-1].append(depth)
        else:
            runs.append([depth])
    said = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    words = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return f"depth {words}" if len(depths) == 1 else f"depths {words}"
