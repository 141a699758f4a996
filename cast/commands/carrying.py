"""`cast fit`, `translate`, `generate` and `train-lora`: what makes heads, adapters and text."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from cast import adapters, generation, pipeline, prediction, training
from cast import evaluate as scores
from cast.commands.given import Answer, Say, load, load_pair, named_folder, read_prompts
from cast.errors import RequestError
from cast.fitting import FitConfig
from cast.heads import HeadSet
from cast.inspection import as_json, heads_facts
from cast.progress import OnProgress
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner, Runner
from cast.storage import check_output_folder

# Settings of a fit that stay at their default unless they are given.
_FIT_SETTINGS = (
    "tokens", "kl_weight", "layers", "encode_reads", "depths", "batch_size", "learning_rate", "passes",
    "repeats", "mlp_width",
)  # fmt: skip


def fit(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast fit`."""
    out = Path(args.out)
    check_output_folder(out)
    source, target = load_pair(args, args.target, on_progress)
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
    prompts = read_prompts(args.prompts)
    if args.as_they_stand:
        if not prompts:
            raise RequestError("--as-they-stand is of the prompts in a file; name it with --prompts.")
        config = config.reading_as_they_stand(prompts)
    source = load(args.source, args, on_progress)
    lora = adapters.read(args.adapter, source)
    made = []
    for name in args.target:
        target = load(name, args, on_progress)
        folder = out if len(args.target) == 1 else out / _folder_name(name)
        # Without a folder, heads are found, or fitted where the mode cannot do without.
        heads = pipeline.find_heads(source, target, named_folder(args.heads)) if args.heads else None
        translated = pipeline.translate_adapter(
            source, target, lora, config,
            heads=heads, text=args.corpus, prompts=prompts, on_progress=on_progress,
        )  # fmt: skip
        translated.save(folder, target)
        recipe = translated.recipe
        say(f"{lora.name} for {target.name}, mode {recipe.mode}, strength {recipe.strength:g}: {folder}")
        if recipe.tokens and (missing := recipe.quality.missing) is not None:
            say(
                f"  {recipe.tokens:,} tokens, {recipe.seconds:.0f} s; of the carried effect "
                f"{1 - missing:.0%} arrives on held-out text"
            )
        for line in prediction.expected_in_words(recipe, _more_prompts(given=bool(prompts))):
            say(f"  {line}")
        made.append(
            {"folder": str(folder), "recipe": asdict(recipe), "expectation": prediction.in_words(recipe)}
        )
    return {"translated": as_json(made)}


def generate(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast generate`."""
    sampling = generation.Sampling(
        args.max_new_tokens, args.temperature, args.top_p, args.seed, stop=args.stop
    )
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt.replace("\\n", "\n")
    lm = load(args.model, args, on_progress)
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
    lm = load(args.model, args, on_progress)
    config = training.LoraTrainingConfig(
        rank=args.rank,
        alpha=2.0 * args.rank,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate or training.suited_rate(lm),
    )
    lora = training.train_lora(lm, task.examples, config, seed=args.seed, on_progress=on_progress)
    card = f"---\nlibrary_name: peft\nbase_model: {lm.name}\n---\n\n# A LoRA of {lm.name} for {task.name}\n"
    adapters.write(lora, out, lm, card=card)
    say(f"A LoRA of rank {lora.rank} for {lm.name}, trained on {len(task.examples)} examples: {out}")
    return {"folder": str(out), "model": lm.name, "task": task.name, "config": as_json(asdict(config))}


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
        "steps": args.steps, "rounds": args.rounds, "rank": args.rank, "strength": args.strength,
        "readout": args.readout,
    }  # fmt: skip
    return TranslationConfig(
        mode=args.mode,
        segment=None if segment in (None, "all") else int(segment),
        seed=args.seed,
        **{key: value for key, value in settings.items() if value is not None},
    )


def _more_prompts(*, given: bool) -> str:
    """What would help where a text hardly excites an adapter, as a clause."""
    # A prompt of several lines that was written as such has been read as several prompts.
    helps = r"others, each on one line, \n where it breaks" if given else "a few (--prompts FILE)"
    return f"as example prompts give {helps}"


def _say_heads(heads: HeadSet, say: Say) -> None:
    say("  depth  encode R² (shuffled)   decode R² (shuffled)")
    for entry in heads.quality:
        encode, decode = entry.encode.r_squared, entry.decode.r_squared
        say(
            f"  {entry.depth:>5}  {encode.value:>9.3f} ({encode.control:.3f})   "
            f"{decode.value:>9.3f} ({decode.control:.3f})"
        )
