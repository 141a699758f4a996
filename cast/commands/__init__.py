"""What each command of the command line does; `cast.cli` finds it here by its name.

A function takes the parsed arguments and two callbacks: `say` prints text for people (nothing with `--json`),
`on_progress` reports. It returns the object that `--json` prints.
"""

from cast.commands.carrying import fit, generate, train_lora, translate
from cast.commands.looking import inspect, pocket, push, search
from cast.commands.measuring import compare, evaluate
from cast.commands.page import app, layers, manifold

__all__ = [
    "app",
    "compare",
    "evaluate",
    "fit",
    "generate",
    "inspect",
    "layers",
    "manifold",
    "pocket",
    "push",
    "search",
    "train_lora",
    "translate",
]
