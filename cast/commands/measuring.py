"""`cast evaluate` and `cast compare`: what scores adapters and ways to carry them."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cast import adapters, comparison, pipeline
from cast import evaluate as scores
from cast.commands.given import Answer, Say, load, load_pair, named_folder, read_prompts
from cast.inspection import as_json
from cast.progress import OnProgress
from cast.results import Result
from cast.runners import PlainRunner, Runner

_SCORES = ("choice", "exact", "style", "bits_per_byte")


def evaluate(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast evaluate`."""
    task = scores.read_task(args.data, limit=args.limit)
    lm = load(args.model, args, on_progress)
    runners: list[tuple[str, Runner]] = [("base", PlainRunner(lm))]
    runners += [
        (name, pipeline.open_adapter(name, lm, strength=args.strength, on_progress=on_progress))
        for name in args.adapter
    ]
    say(f"{lm.name} on {task.name}, {len(task.examples)} examples, scored by {task.metric}")
    reports = []
    for name, runner in runners:
        report = scores.evaluate(runner, task, on_progress=on_progress).summary()
        say(
            f"  {name:<40} "
            + "  ".join(f"{key} {_figure(report[key])}" for key in _SCORES if report[key] is not None)
        )
        reports.append({"adapter": None if name == "base" else name, **report})
    return {"model": lm.name, "task": task.name, "reports": as_json(reports)}


def compare(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast compare`."""
    methods = comparison.methods_named(
        args.methods.split(","), seed=args.seed, steps=args.steps, rounds=args.rounds, rank=args.rank,
        strength=args.strength,
    )  # fmt: skip
    task = scores.read_task(args.data, limit=args.limit)
    prompts = read_prompts(args.prompts)
    source, target = load_pair(args, args.target, on_progress)
    lora = adapters.read(args.adapter, source)
    retrained = comparison.reference(
        target, args.data, retrained=args.retrained, train=args.train, seed=args.seed, on_progress=on_progress
    )
    heads = pipeline.find_heads(source, target, named_folder(args.heads)) if args.heads else None
    text = args.corpus or pipeline.default_corpus(source, target)
    ends = comparison.ends_of_the_scale(
        source, target, lora, task, retrained=retrained, text=text, on_progress=on_progress
    )
    say(f"{task.name}, {source.name} → {target.name}, {len(task.examples)} examples, scored by {task.metric}")
    say(f"  {'source base':<28} {_figure(ends.source_base.score)}")
    say(
        f"  {'source with its adapter':<28} {_figure(ends.source_adapted.score)}{_cost(ends.source_off_task)}"
    )
    say(f"  {'target base':<28} {_figure(ends.base.score)}")
    if ends.retrained:
        cost = _cost(ends.retrained_off_task)
        say(f"  {'retrained on the target':<28} {_figure(ends.retrained.score)}{cost}")
        if ends.retrained.score - ends.base.score < scores.MINIMUM_LIFT:
            say("  Retraining gains less than 10 points here, so recovered lift is left out.")
    results, failures = [], []
    for outcome in comparison.compared(
        source, target, lora, ends, methods,
        heads=heads, text=text, prompts=prompts, on_progress=on_progress,
    ):  # fmt: skip
        if isinstance(outcome, comparison.Failure):
            failures.append(outcome)
            say(f"  {outcome.method:<28} {outcome.error}")
            continue
        results.append(outcome)
        say(_result_line(outcome))
        if args.results:
            outcome.write_result(Path(args.results))
    if failures and not results:
        raise failures[0].error
    return {
        "results": as_json([asdict(result) for result in results]),
        "failures": {failure.method: str(failure.error) for failure in failures},
    }


def _result_line(result: Result) -> str:
    line = f"  {result.method:<28} {_figure(result.translated)}"
    if result.lift is not None and result.interval is not None:
        low, high = result.interval
        line += f"   recovered lift {result.lift:.2f} [{low:.2f}, {high:.2f}]"
    return f"{line}{_cost(result.off_task)}   {result.seconds:.0f} s"


def _cost(off_task: float | None) -> str:
    return "" if off_task is None else f"   off-task {100 * off_task:+.1f} %"


def _figure(value: Any) -> str:
    return f"{value:.3f}"
