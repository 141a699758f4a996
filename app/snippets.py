"""What a visitor may copy: the equivalent `cast` command of a choice, and what loads a translated folder."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from app.facts import FitOptions, FitRequest, MapRequest, TranslateRequest
from app.runs import READ_PROMPTS, EvaluateRequest
from app.workspace import Pair, Selection

PROMPTS_FILE = "prompts.txt"
_POCKET = "pocket:"
# The ranks that vLLM can be told to serve at most; up to the first it serves without being told.
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)


def translate(request: TranslateRequest) -> str:
    """`cast translate` for what *Translate* would do; steps and prompts are of a compiled fit only."""
    selection = request.selection
    words = ["cast", "translate", *_pair(selection.pair), "--adapter", selection.adapter]
    words += ["--mode", selection.mode]
    if selection.segment is not None:
        words += ["--segment", str(selection.segment)]
    if selection.mode == "compiled":
        words += _fitting(request)
        words += ["--as-they-stand"] if request.prompts and not request.expand else []
    return shlex.join([*words, "--out", "out/"])


def fit(request: FitRequest) -> str:
    """`cast fit` for what *Train heads* would do; settings at their default are left out."""
    words = ["cast", "fit", *_pair(request.pair), "--tokens", str(request.tokens)]
    words += ["--head", "linear" if request.kind == "affine" else "mlp"]
    words += ["--corpus", request.corpus] if request.corpus else []
    for name, value in asdict(request.options).items():
        if value != getattr(FitOptions(), name):
            told = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
            words += [f"--{name.replace('_', '-')}", told]
    return shlex.join([*words, "--out", "heads/"])


def manifold(request: MapRequest, translated: str = "") -> str:
    """`cast manifold` for what *Draw the map* would do; `translated` is the folder that it shows as well."""
    chosen = request.selection
    words = ["cast", "manifold", *_pair(chosen.pair), "--layer", str(request.depth)]
    words += [] if request.source_depth is None else ["--source-layer", str(request.source_depth)]
    words += ["--points", str(request.points), "--method", request.method]
    words += ["--dimensions", str(request.dimensions), "--view", request.view]
    if chosen.adapter and request.adapter:
        words += ["--adapter", chosen.adapter]
        words += ["--translated", translated] if translated else []
    return shlex.join([*words, "--out", "map.html"])


def compare(request: EvaluateRequest) -> str:
    """`cast compare` for what *Run* would do."""
    chosen = request.selection
    words = ["cast", "compare", *_pair(chosen.pair), "--adapter", chosen.adapter, "--data", request.task]
    words += ["--methods", ",".join(request.methods), "--limit", str(request.limit)]
    if READ_PROMPTS & set(request.methods):
        words += _fitting(request)
    for flag, value in (
        ("--retrained", request.retrained),
        ("--train", request.train),
        ("--corpus", request.corpus),
    ):
        words += [flag, value] if value else []
    return shlex.join([*words, "--results", "results/"])


def generate(target: str, folder: str, prompt: str = "Once upon a time") -> str:
    """`cast generate` for a translated folder of any mode."""
    return shlex.join(["cast", "generate", "--model", target, "--adapter", folder, "--prompt", prompt])


def push(folder: str, repo: str, private: bool) -> str:
    """`cast push` for a folder; the token comes from the environment, and is never written down."""
    return shlex.join(["cast", "push", folder, repo, *(["--private"] if private else [])])


def load_with_peft(target: str, folder: str) -> str:
    """Python that loads a plain LoRA with PEFT, and writes a text with it."""
    return "\n".join(
        [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            *_base(target),
            "tokenizer = AutoTokenizer.from_pretrained(base)",
            "model = AutoModelForCausalLM.from_pretrained(base)",
            f"model = PeftModel.from_pretrained(model, {_quoted(folder)})",
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=40, do_sample=False)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    )


def serve_with_vllm(target: str, folder: str, rank: int) -> str:
    """The vLLM command that serves a plain LoRA under the folder's name."""
    served = next((allowed for allowed in _VLLM_RANKS if rank <= allowed), rank)
    words = ["--enable-lora", "--lora-modules", shlex.quote(f"{folder}=./{folder}")]
    words += ["--max-lora-rank", str(served)] if served > _VLLM_RANKS[0] else []
    base = shlex.quote(target)
    if len(_base(target)) > 2:
        code = "; ".join(line for line in _base(target) if line) + "; print(base)"
        base = f'"$(python -c {shlex.quote(code)})"'
    return f"vllm serve {base} {' '.join(words)}"


def run_folder(target: str, folder: str) -> str:
    """Python that runs a recipe, which holds no weights."""
    return "\n".join(
        [
            "from cast import generation, models, pipeline",
            "",
            f"target = models.load({_quoted(target)})",
            f"runner = pipeline.open_adapter({_quoted(folder)}, target)",
            'for piece in generation.generate(runner, "Once upon a time"):',
            '    print(piece, end="", flush=True)',
        ]
    )


def run_hosted(selection: Selection) -> str:
    """Python that runs hosted mode at once, with nothing written."""
    return "\n".join(
        [
            "from cast import adapters, generation, models, pipeline",
            "from cast.recipes import TranslationConfig",
            "",
            f"source = models.load({_quoted(selection.source)})",
            f"target = models.load({_quoted(selection.target)})",
            f"lora = adapters.read({_quoted(selection.adapter)}, source)",
            f'config = TranslationConfig("hosted", segment={selection.segment})',
            "runner = pipeline.translate_adapter(source, target, lora, config).runner(source, target)",
            'for piece in generation.generate(runner, "Once upon a time"):',
            '    print(piece, end="", flush=True)',
        ]
    )


def _fitting(request: TranslateRequest | EvaluateRequest) -> list[str]:
    """What is asked of a compiled fit; steps that suit the target are nothing to be told."""
    words = ["--steps", str(request.steps)] if request.steps else []
    return words + (["--prompts", PROMPTS_FILE] if request.prompts else [])


def _pair(pair: Pair) -> Sequence[str]:
    return "--source", pair.source, "--target", pair.target


def _quoted(name: str) -> str:
    """A name as Python writes it in double quotes, which a shell's single quotes can hold."""
    return json.dumps(name, ensure_ascii=False)


def _base(target: str) -> list[str]:
    """Python that sets `base` to what transformers loads: an id, or the folder of what only CAST knows."""
    if target.startswith(_POCKET):
        return ["from cast.pocket import registry", "", f"base = str(registry.resolve({_quoted(target)}))"]
    if target.endswith(".gguf"):
        code = f"base = str(gguf.convert(Path({_quoted(target)})))"
        return ["from pathlib import Path", "from cast import gguf", "", code]
    return ["", f"base = {_quoted(target)}"]
