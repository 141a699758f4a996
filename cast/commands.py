"""What each command of the command line does.

A function takes the parsed arguments and two callbacks: `say` prints text for people (nothing with `--json`),
`on_progress` reports. It returns the object that `--json` prints.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cast import (
    adapters,
    comparison,
    generation,
    hub,
    models,
    pipeline,
    prediction,
    training,
)
from cast import (
    evaluate as scores,
)
from cast.errors import OutputError, RequestError, TaskError
from cast.fitting import FitConfig
from cast.heads import HeadSet
from cast.inspection import as_json, heads_facts, inspected
from cast.models import LanguageModel
from cast.pocket import registry
from cast.progress import OnProgress
from cast.recipes import Recipe, TranslationConfig
from cast.results import Result
from cast.runners import PlainRunner, Runner
from cast.storage import check_output_folder, readable_write_errors

Say = Callable[[str], None]
Answer = Mapping[str, Any]

# Settings of a fit that stay at their default unless they are given.
_FIT_SETTINGS = (
    "tokens", "kl_weight", "depths", "batch_size", "learning_rate", "passes", "repeats", "mlp_width"
)  # fmt: skip
_LARGEST_PROMPTS = 1 << 20


def fit(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast fit`."""
    out = Path(args.out)
    check_output_folder(out)
    source, target = _load_pair(args, args.target, on_progress)
    config = FitConfig(
        kind="affine" if args.head == "linear" else "mlp",
        seed=args.seed,
        **{name: value for name in _FIT_SETTINGS if (value := getattr(args, name)) is not None},
    )
    heads = pipeline.fit(
        source, target, out, text=args.corpus, config=config, resume=args.resume, on_progress=on_progress
    )
    say(f"Heads {source.name} → {target.name}, fitted on {heads.recipe.tokens:,} aligned tokens, in {out}")
    _say_heads(heads, say)
    return {"folder": str(out), **heads_facts(heads)}


def translate(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast translate`."""
    out = Path(args.out)
    check_output_folder(out)
    config = _translation_config(args)
    prompts = _read_prompts(args.prompts)
    if args.as_they_stand:
        if not prompts:
            raise RequestError("--as-they-stand is of the prompts in a file; name it with --prompts.")
        config = config.reading_as_they_stand(prompts)
    source = _load(args.source, args, on_progress)
    lora = adapters.read(args.adapter, source)
    made = []
    for name in args.target:
        target = _load(name, args, on_progress)
        folder = out if len(args.target) == 1 else out / _folder_name(name)
        # Without a folder, heads are found, or fitted where the mode cannot do without.
        heads = pipeline.find_heads(source, target, _folder(args.heads)) if args.heads else None
        translated = pipeline.translate_adapter(
            source, target, lora, config,
            heads=heads, text=args.corpus, prompts=prompts, on_progress=on_progress,
        )  # fmt: skip
        translated.save(folder, target)
        recipe = translated.recipe
        say(f"{lora.name} for {target.name}, mode {recipe.mode}, strength {recipe.strength:g}: {folder}")
        if recipe.quality.fvu is not None:
            say(
                f"  {recipe.tokens:,} tokens, {recipe.seconds:.0f} s; unexplained share of the carried "
                f"change {recipe.quality.fvu:.2f} (1 is the bare target)"
            )
        for line in _expectations(recipe):
            say(f"  {line}")
        made.append(
            {"folder": str(folder), "recipe": asdict(recipe), "expectation": prediction.in_words(recipe)}
        )
    return {"translated": as_json(made)}


def evaluate(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast evaluate`."""
    task = scores.read_task(args.data, limit=args.limit)
    lm = _load(args.model, args, on_progress)
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


_SCORES = ("choice", "exact", "style", "bits_per_byte")


def compare(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast compare`."""
    methods = comparison.methods_named(
        args.methods.split(","), seed=args.seed, steps=args.steps, rank=args.rank, strength=args.strength
    )
    task = scores.read_task(args.data, limit=args.limit)
    prompts = _read_prompts(args.prompts)
    source, target = _load_pair(args, args.target, on_progress)
    lora = adapters.read(args.adapter, source)
    retrained = comparison.reference(
        target, args.data, retrained=args.retrained, train=args.train, seed=args.seed, on_progress=on_progress
    )
    heads = pipeline.find_heads(source, target, _folder(args.heads)) if args.heads else None
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


def generate(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast generate`."""
    sampling = generation.Sampling(
        args.max_new_tokens, args.temperature, args.top_p, args.seed, stop=args.stop
    )
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt.replace("\\n", "\n")
    lm = _load(args.model, args, on_progress)
    runner: Runner = PlainRunner(lm)
    if args.adapter:
        runner = pipeline.open_adapter(args.adapter, lm, strength=args.strength, on_progress=on_progress)
    pieces = []
    for piece in generation.generate(runner, prompt, sampling):
        pieces.append(piece)
        if not args.json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    say("")
    return {"model": lm.name, "adapter": args.adapter, "prompt": prompt, "text": "".join(pieces)}


def train_lora(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast train-lora`."""
    out = Path(args.out)
    check_output_folder(out)
    task = scores.read_task(args.data, split="train")
    lm = _load(args.model, args, on_progress)
    small = sum(parameter.numel() for parameter in lm.model.parameters()) < 20_000_000
    config = training.LoraTrainingConfig(
        rank=args.rank,
        alpha=2.0 * args.rank,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate or (2e-3 if small else 5e-4),
    )
    lora = training.train_lora(lm, task.examples, config, seed=args.seed, on_progress=on_progress)
    card = f"---\nlibrary_name: peft\nbase_model: {lm.name}\n---\n\n# A LoRA of {lm.name} for {task.name}\n"
    adapters.write(lora, out, lm, card=card)
    say(f"A LoRA of rank {lora.rank} for {lm.name}, trained on {len(task.examples)} examples: {out}")
    return {"folder": str(out), "model": lm.name, "task": task.name, "config": as_json(asdict(config))}


def manifold(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast manifold`."""
    from app import mapping, plots_map, views_map
    from app.backend import MapRequest
    from app.workspace import Selection

    out = _new_file(args.out)
    if args.layer is None and args.view != "along":
        raise RequestError("Name a target depth with --layer, or show all of them with --view along.")
    source, target = _load_pair(args, args.target, on_progress)
    found = pipeline.find_heads(source, target, _folder(args.heads))
    lora = adapters.read(args.adapter, source) if args.adapter else None
    moved = _moved_states(args.translated, source, target, on_progress) if args.translated else None
    request = MapRequest(
        Selection(args.source, args.target, args.adapter or ""), args.layer or 0, args.source_layer,
        args.points, args.view, args.dimensions, args.method,
    )  # fmt: skip
    *_, drawn = mapping.drawn_maps(
        source, target, found.heads if found else None, lora, moved, request, on_progress=on_progress,
        text=args.corpus, seed=args.seed,
    )  # fmt: skip
    with _written(out):
        plots_map.write(drawn, args.colour, out)
    say(f"{len(drawn[0].points)} tokens of {source.name} and {target.name}: {out}")
    for one in drawn:
        say(f"  target depth {one.depth}, source depth {one.source_depth}")
        for measure in one.measures:
            say(f"    {measure.name:<24} {measure.value:.3f}   shuffled {measure.control:.3f}")
    say(f"  {views_map.belief(drawn)}")
    return {
        "file": str(out),
        "maps": [
            {
                "source_depth": one.source_depth,
                "depth": one.depth,
                "measures": {m.name: {"value": m.value, "control": m.control} for m in one.measures},
                "trustworthiness": one.trustworthiness,
            }
            for one in drawn
        ],
    }


def layers(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast layers`."""
    from app import mapping, plots_map

    out = _new_file(args.out) if args.out else None
    source, target = _load_pair(args, args.target, on_progress)
    found = pipeline.find_heads(source, target)
    facts = mapping.measured_layers(
        source,
        target,
        found.heads if found else None,
        on_progress=on_progress,
        text=args.corpus,
        points=args.points,
        seed=args.seed,
    )
    if out:
        with _written(out):
            plots_map.layer_grid(facts, args.measure).write_html(out, include_plotlyjs=True)
    for grid in facts.grids:
        chance = max(map(max, grid.controls))
        say(f"{grid.name}: source depths down, target depths across (shuffled: at most {chance:.2f})")
        for depth, row in enumerate(grid.values):
            say(f"  {depth:>3}  " + " ".join(f"{value:6.2f}" for value in row))
    return {"file": str(out) if out else None, **as_json(asdict(facts))}


def _new_file(name: str) -> Path:
    out = Path(name)
    if out.exists():
        raise OutputError(f"{out} is there already; name another file.")
    return out


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """Make the folder of a file, and put into a sentence what keeps the block from writing it."""
    with readable_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        yield


def _moved_states(name: str, source: LanguageModel, target: LanguageModel, on_progress: OnProgress) -> Runner:
    """The target with a translated folder that changes its states."""
    made = pipeline.reopened(Path(name), source, target, on_progress=on_progress)
    if made.lora is None and made.heads is None and made.maps is None:
        raise RequestError(
            f"{name} is hosted by words: it moves the target's words and none of its states, so there is "
            "nothing to draw; leave --translated out."
        )
    return made.runner(source, target)


def inspect(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast inspect`."""
    kind, facts = inspected(args.what, _token())
    say(f"{args.what}: {kind}")
    for key, value in facts.items():
        if not isinstance(value, dict | list):
            say(f"  {key:<20} {value}")
    return {"name": args.what, "kind": kind, **facts}


def search(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast search`."""
    hits = hub.search_adapters(args.model, limit=args.limit, token=_token())
    for hit in hits:
        say(f"{hit.repo_id:<60} rank {hit.rank:<4} {hit.downloads:>9,} downloads  {hit.licence}")
    if not hits:
        say(f"The Hub lists no LoRA whose configuration names {args.model} as its base.")
    return {"model": args.model, "adapters": as_json([asdict(hit) for hit in hits])}


def push(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast push`."""
    address = hub.push(Path(args.folder), args.repo, _token(), private=args.private)
    say(f"Published: {address}")
    return {"folder": args.folder, "repo": args.repo, "address": address}


def pocket(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast pocket list`, `build` and `verify`."""
    from cast.pocket import build

    if args.action == "build":
        build.build(args.only, on_progress)
        return _pocket_list(say)
    if args.action == "verify":
        checks = build.verify(args.only, on_progress)
        for check in checks:
            verdict = "ok  " if check.ok else "DIFF"
            say(f"{verdict} {check.what:<50} recorded {check.recorded:.4f}  now {check.measured:.4f}")
        wrong = [check.what for check in checks if not check.ok]
        if wrong:
            raise TaskError(
                f"{len(wrong)} of {len(checks)} recorded scores are not reproduced: {', '.join(wrong)}."
            )
        say(f"All {len(checks)} recorded scores are reproduced.")
        return {"checks": as_json([asdict(check) for check in checks])}
    return _pocket_list(say)


def app(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast app`."""
    if args.port is not None:
        os.environ["GRADIO_SERVER_PORT"] = str(args.port)
    if args.host is not None:
        os.environ["GRADIO_SERVER_NAME"] = args.host
    from app.serve import main

    main()
    return {}


# --- parts ------------------------------------------------------------------------------------------------


def _token() -> str | None:
    """The Hub's token, from the environment; the Hub's own login is found by the client itself."""
    return os.environ.get("HF_TOKEN")


def _load(name: str, args: argparse.Namespace, on_progress: OnProgress) -> LanguageModel:
    dtype = getattr(torch, args.dtype) if args.dtype else None
    try:
        device = torch.device(args.device) if args.device else None
        return models.load(name, device=device, dtype=dtype, token=_token(), on_progress=on_progress)
    except (RuntimeError, AssertionError) as error:
        if args.device is None:
            raise
        raise RequestError(f"The device {args.device!r} cannot be used here; try --device cpu.") from error


def _load_pair(
    args: argparse.Namespace, target: str, on_progress: OnProgress
) -> tuple[LanguageModel, LanguageModel]:
    source = _load(args.source, args, on_progress)
    return source, source if target == args.source else _load(target, args, on_progress)


def _folder(name: str | None) -> Path | None:
    return Path(name) if name else None


def _folder_name(model: str) -> str:
    return model.strip("/").replace(":", "-").replace("/", "--")


def _translation_config(args: argparse.Namespace) -> TranslationConfig:
    segment = args.segment
    if segment is not None and args.mode != "hosted":
        raise RequestError("--segment belongs to --mode hosted; leave it out, or choose that mode.")
    if segment not in (None, "all") and not (segment.isdigit() and int(segment) > 0):
        raise RequestError(f"--segment is {segment!r}; give a number of target blocks, or 'all'.")
    by_readout = args.mode == "compiled" or (args.mode == "hosted" and segment in (None, "all"))
    if args.readout is not None and not by_readout:
        raise RequestError("--readout belongs to compiled, and to hosted with the whole stack; leave it out.")
    settings = {
        "steps": args.steps, "rank": args.rank, "strength": args.strength, "readout": args.readout,
    }  # fmt: skip
    return TranslationConfig(
        mode=args.mode,
        segment=None if segment in (None, "all") else int(segment),
        seed=args.seed,
        **{key: value for key, value in settings.items() if value is not None},
    )


def _read_prompts(name: str | None) -> tuple[str, ...]:
    r"""The prompts of a file, one a line; `\n` in a line stands for a line break."""
    if name is None:
        return ()
    path = Path(name)
    try:
        if path.stat().st_size > _LARGEST_PROMPTS:
            raise RequestError(f"{path} is larger than a megabyte; give a few hundred prompts at most.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"The prompts in {path} cannot be read; give a UTF-8 text file.") from error
    prompts = tuple(line.replace("\\n", "\n") for line in lines if line.strip())
    if not prompts:
        raise RequestError(f"{path} holds no prompt; write one a line.")
    return prompts


def _expectations(recipe: Recipe) -> list[str]:
    """What may be expected of a translation, and what would help, in sentences."""
    lines = [prediction.in_words(recipe)]
    reach, strongest = recipe.quality.reach, recipe.quality.strongest
    if reach is not None and prediction.hardly_excited(recipe.quality):
        told = prediction.excites_in_words(reach, strongest)
        lines.append(f"{told}: give a few example prompts (--prompts FILE).")
    return [line for line in lines if line]


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


def _say_heads(heads: HeadSet, say: Say) -> None:
    say("  depth  encode R² (shuffled)   decode R² (shuffled)")
    for entry in heads.quality:
        encode, decode = entry.encode.r_squared, entry.decode.r_squared
        say(
            f"  {entry.depth:>5}  {encode.value:>9.3f} ({encode.control:.3f})   "
            f"{decode.value:>9.3f} ({decode.control:.3f})"
        )


def _pocket_list(say: Say) -> Answer:
    listed: list[dict[str, Any]] = []
    for name in registry.models():
        card = dict(registry.model_card(name))
        shipped = registry.adapters(name)
        tasks = [adapter.task for adapter in shipped]
        say(f"pocket:{name:<10} {card.get('architecture', '')}, adapters: {', '.join(tasks) or 'none'}")
        listed.append({"name": f"pocket:{name}", "card": as_json(card), "adapters": tasks})
    if not listed:
        say("The pocket zoo is not built here; run `python -m cast pocket build`.")
    return {"models": listed}
