"""How near the expected seconds come: `cast.estimates` beside what fits and translations take here.

    python -m benchmarks.expected --source pocket:llama --target pocket:mistral --adapter pocket:llama/mood

Prints a line for each kind of work. `estimates.TOKEN_SECONDS` is set so that on the pocket zoo, where
products cost next to nothing, the last column is about 1 on one core.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cast import adapters, estimates, models, pipeline
from cast.fitting import FitConfig
from cast.models import ModelSummary
from cast.recipes import TranslationConfig

_MODES = ("instant", "kernel", "compiled")


def shape(summary: ModelSummary) -> estimates.Shape:
    """What of a described model decides how long it takes."""
    return estimates.Shape(summary.width, summary.depth, summary.vocabulary, summary.parameters)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", default="pocket:llama")
    parser.add_argument("--target", default="pocket:mistral")
    parser.add_argument("--adapter", default="pocket:llama/mood")
    parser.add_argument("--tokens", type=int, default=20_000)
    given = parser.parse_args(arguments)
    source, target = models.load(given.source), models.load(given.target)
    shapes = shape(models.describe(given.source)), shape(models.describe(given.target))
    lora = adapters.read(given.adapter, source)
    work: dict[str, tuple[float, Callable[[], object]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for kind in ("affine", "mlp"):
            config = FitConfig(kind=kind, tokens=given.tokens)  # type: ignore[arg-type]
            out = Path(place) / kind

            def fit(config: FitConfig = config, out: Path = out) -> object:
                return pipeline.fit(source, target, out, config=config)

            work[f"heads, {kind}"] = estimates.fit_seconds(*shapes, config), fit
        for mode in _MODES:
            way = TranslationConfig(mode)  # type: ignore[arg-type]

            def carry(way: TranslationConfig = way) -> object:
                return pipeline.translate_adapter(source, target, lora, way)

            work[mode] = estimates.translate_seconds(*shapes, way, prompts=0), carry
        ratios = []
        print(f"{'work':<16}{'expected':>10}{'taken':>10}{'ratio':>8}")
        for name, (expected, act) in work.items():
            # Of this process alone: others may be at work on the machine.
            started = time.process_time()
            act()
            taken = time.process_time() - started
            ratios.append(taken / expected)
            print(f"{name:<16}{expected:>8.1f} s{taken:>8.1f} s{ratios[-1]:>8.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}, at {estimates.TOKEN_SECONDS:g} s a token")


if __name__ == "__main__":
    main()
