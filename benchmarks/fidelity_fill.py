"""Fills in what kept results lack and what can be measured without a compiled fit or a task score.

    python -m benchmarks.fidelity_fill --what own         the adapters' own off-task cost, beside the methods'
    python -m benchmarks.fidelity_fill --what coverage    how far the fitting text excites the adapter
    python -m benchmarks.fidelity_fill --what missing     what of the effect held-out text does not show, of
                                                          every method but `compiled`

Each file is written anew as it is done, so the command can be stopped and started again; scores stay as they
are, and with them the commit that made them.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.fidelity import (
    RESULTS,
    example_prompts,
    general_bits,
    heads_of,
    loaded,
    own_cost,
    pairs_named,
)
from cast import adapters, comparison, pipeline
from cast.coverage import covered
from cast.errors import CastError
from cast.pocket import registry
from cast.prediction import predicted
from cast.recipes import Quality, TranslationConfig
from cast.results import Result, read_results
from cast.translate import answered_prompts


def own(result: Result) -> dict[str, Any]:
    """The adapters' own off-task costs, and what the target needs without any."""
    source, target, task = names(result)
    return {
        "source_off_task": own_cost(source, task),
        "retrained_off_task": own_cost(target, task),
        "general_bits": general_bits(target),
    }


def coverage(result: Result) -> dict[str, Any]:
    """Coverage and reach of the text of a compiled translation, which is made again without the fit.

    Example prompts are made more as the code does now, whatever it did when the result was made.
    """
    if not result.method.startswith("compiled") or result.reach is not None:
        return {}
    source, target, task = names(result)
    lm, config = loaded(source), TranslationConfig(seed=result.seed)
    lora = adapters.read(f"{registry.PREFIX}{source}/{task}", lm)
    examples = example_prompts(task) if result.text == "prompts" else []
    texts = pipeline.fitting_text(lm, loaded(target), config, prompts=bool(examples))
    answers = answered_prompts(lm, loaded(target), lora, examples, texts, config)
    shown = covered(lm, lora, texts, [answer.text for answer in answers], config)
    return {"coverage": shown.energy, "reach": shown.reach}


def missing(result: Result) -> dict[str, Any]:
    """What held-out text says of a method that costs seconds; the translation is made again for it."""
    if result.method.startswith("compiled") or result.missing is not None:
        return {}
    source, target, task = names(result)
    lm = loaded(source)
    (method,) = comparison.methods_named([result.method], seed=result.seed)
    lora = adapters.read(f"{registry.PREFIX}{source}/{task}", lm)
    _, facts = comparison.made_by(
        method, lm, loaded(target), lora, heads=heads_of(source, target, result.seed)
    )
    return {"missing": facts["missing"]}


def names(result: Result) -> tuple[str, str, str]:
    """Source, target and task by the zoo's short names."""
    source, target, task = (
        name.removeprefix(registry.PREFIX) for name in (result.source, result.target, result.task)
    )
    return source, target, task


def expected(result: Result) -> float | None:
    """The prediction from what the result holds."""
    if result.missing is None:
        return None
    quality = Quality(kl_carried_base=1.0, kl_carried_adapted=result.missing, reach=result.reach)
    return predicted(quality)


WAYS: dict[str, Callable[[Result], dict[str, Any]]] = {"own": own, "coverage": coverage, "missing": missing}


def main() -> int:
    """Parse, and fill in result by result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=WAYS, required=True)
    parser.add_argument("--pairs", type=pairs_named, help="only these: llama:mistral,qwen:neox")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="only these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    for result in read_results(arguments.results):
        if arguments.pairs and names(result)[:2] not in arguments.pairs:
            continue
        if arguments.methods and result.method not in arguments.methods:
            continue
        try:
            filled = replace(result, **WAYS[arguments.what](result))
        except CastError as error:
            failed += 1
            print(f"{result.file_name}: {error}", file=sys.stderr, flush=True)
            continue
        filled = replace(filled, predicted=expected(filled))
        if filled != result:
            filled.write_result(arguments.results)
            print(result.file_name, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
