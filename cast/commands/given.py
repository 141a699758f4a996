"""What the arguments of several commands mean: models, folders, prompts."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cast import models
from cast.errors import RequestError
from cast.json_lines import JsonLine, read_json_lines
from cast.models import LanguageModel
from cast.progress import OnProgress

Say = Callable[[str], None]
Answer = Mapping[str, Any]

_LARGEST_PROMPTS = 1 << 24


def hub_token() -> str | None:
    """The Hub's token, from the environment; the Hub's own login is found by the client itself."""
    return os.environ.get("HF_TOKEN")


def load(name: str, args: argparse.Namespace, on_progress: OnProgress) -> LanguageModel:
    """A model, on the device and in the number type that are asked for."""
    dtype = getattr(torch, args.dtype) if args.dtype else None
    try:
        device = torch.device(args.device) if args.device else None
        return models.load(name, device=device, dtype=dtype, token=hub_token(), on_progress=on_progress)
    except (RuntimeError, AssertionError) as error:
        if args.device is None:
            raise
        raise RequestError(f"The device {args.device!r} cannot be used here; try --device cpu.") from error


def load_pair(
    args: argparse.Namespace, target: str, on_progress: OnProgress
) -> tuple[LanguageModel, LanguageModel]:
    """Source and target; loaded once where they are the same."""
    source = load(args.source, args, on_progress)
    return source, source if target == args.source else load(target, args, on_progress)


def named_folder(name: str | None) -> Path | None:
    """The folder of that name; None where none is named."""
    return Path(name) if name else None


def read_prompts(name: str | None) -> tuple[str, ...]:
    r"""The prompts of a file, one a line; `\n` in a line stands for a line break.

    A `.jsonl` file holds an object a line with a field `prompt`, as a task file does; answers are not read.
    """
    if name is None:
        return ()
    path = Path(name)
    try:
        if path.stat().st_size > _LARGEST_PROMPTS:
            raise RequestError(f"{path} is larger than 16 MiB; give a few thousand prompts at most.")
        prompts = _prompts_of_task(path) if path.suffix == ".jsonl" else _prompt_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"The prompts in {path} cannot be read; give a UTF-8 text file.") from error
    if not prompts:
        raise RequestError(f"{path} holds no prompt; write one a line.")
    return prompts


def _prompt_lines(path: Path) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.replace("\\n", "\n") for line in lines if line.strip())


def _prompts_of_task(path: Path) -> tuple[str, ...]:
    return tuple(_prompt_of(line) for line in read_json_lines(path, RequestError))


def _prompt_of(line: JsonLine) -> str:
    prompt = line.text("prompt")
    if not prompt:
        raise RequestError(f"{line.where}: the prompt is empty.")
    return prompt
