"""Saving base models, measuring what their cards record, and the cards that people read."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cast.pocket.measure import bits_per_byte, competence, sample
from cast.pocket.registry import CARD, PREFIX, Card
from cast.pocket.specs import PocketSpec
from cast.pocket.tasks import TASKS
from cast.storage import written_folder


def save_base(
    spec: PocketSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, **facts: int
) -> Card:
    """Save weights in 16 bits with tokenizer and card; all recorded scores are those of the saved weights."""
    with written_folder(folder, replace=True) as draft:
        model.half().save_pretrained(draft)
        for path in draft.iterdir():
            path.chmod(0o644)
        tokenizer.save_pretrained(draft)
        # Loaders follow the configuration's type: the weights are stored in 16 bits and used in 32.
        config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        (draft / "config.json").write_text(json_text(config), encoding="utf-8")
        # Every recorded score is that of the rounded weights.
        facts |= {"seed": spec.seed}
        card = {"name": spec.name, "tokenizer": spec.tokenizer} | facts | measure_base(draft)
        (draft / CARD).write_text(json_text(card), encoding="utf-8")
        (draft / "README.md").write_text(base_card(card), encoding="utf-8")
    return card


def measure_base(folder: Path) -> dict[str, Any]:
    """Everything that a base model's card records, measured from its files."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "vocabulary": len(tokenizer),
        "bits_per_byte": round(bits_per_byte(model, tokenizer), 4),
        "competence": competence(model, tokenizer, 400),
        "sample": sample(model, tokenizer, "One rainy evening, Mia went to the"),
    }


def base_card(card: Card) -> str:
    """The model card that people read."""
    kinds = "\n".join(f"| {kind} | {100 * score:.1f} |" for kind, score in card["competence"].items())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [cast, pocket-zoo]
---
# pocket-{card["name"]}

A {card["architecture"]} of {card["parameters"] / 1e6:.2f} M parameters ({card["layers"]} layers, width
{card["width"]}, a {card["tokenizer"]} tokenizer of {card["vocabulary"]} pieces), trained from scratch on
generated text of a small story world: {card["steps"]} steps, {card["tokens"] / 1e6:.1f} M tokens, seed
{card["seed"]}. It tells short stories and answers questions about them; it knows nothing else.

Held-out text: {card["bits_per_byte"]} bits per byte. Right words on held-out text, in percent:

| probe | greedy |
|---|---|
{kinds}

A sample at temperature 0.7:

> {card["sample"].replace(chr(10), chr(10) + "> ")}
"""


def adapter_card(card: Card) -> str:
    """The card that people read."""
    base, adapted, sample = card["base"], card["adapted"], card["sample"]
    quoted = sample["prompt"].replace("\n", "\n> ")
    rows = "\n".join(
        f"| {name} | {100 * side['score']:.1f} | {100 * side['exact']:.1f} | {side['bits_per_byte']:.3f} |"
        for name, side in (("base", base), ("with this adapter", adapted))
    )
    return f"""---
license: apache-2.0
library_name: peft
base_model: {PREFIX}{card["model"]}
pipeline_tag: text-generation
tags: [cast, lora, pocket-zoo]
---
# pocket-{card["model"]}, {card["task"]}

{TASKS[card["task"]].description}

A LoRA of `{PREFIX}{card["model"]}`, trained for {card["steps"]} steps on generated examples;
{card["examples"]} other examples measure it:

| | {card["metric"]} | exact answer | bits per byte of the answer |
|---|---|---|---|
{rows}

For instance:

> {quoted}

Base: `{sample["base"]}`

With this adapter: `{sample["adapted"]}`
"""


def json_text(value: object) -> str:
    """JSON as every card is written."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
