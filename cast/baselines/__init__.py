"""Other ways to use a source's adapter on a target, measured beside CAST's; each says where it comes from.

One module a kind: `copying` and `subspaces` see weights alone, `rotations` and `regression` general text too,
`words` both models at generation time, `distillation` what the adapted source answers to example prompts;
`controls` break one part of CAST's own modes.
"""

from cast.baselines import controls, copying, distillation, regression, rotations, subspaces, words
from cast.baselines.registry import BASELINES, Baseline, Given

__all__ = [
    "BASELINES",
    "Baseline",
    "Given",
    "controls",
    "copying",
    "distillation",
    "regression",
    "rotations",
    "subspaces",
    "words",
]
