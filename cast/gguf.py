"""Local `.gguf` files: unpacked once into a bfloat16 safetensors folder, then loaded like any other."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from cast.building import ONE_AT_A_TIME
from cast.errors import ModelError, first_line
from cast.progress import OnProgress, Progress, ignore
from cast.storage import cache_folder, written_folder

_SAMPLE_BYTES = 2**20
_MAGIC = b"GGUF"


def convert(path: Path, *, cache_dir: Path | None = None, on_progress: OnProgress = ignore) -> Path:
    """Folder with the model of a `.gguf` file as `config.json`, bfloat16 safetensors and a fast tokenizer.

    The first call takes tens of seconds and the memory of the whole model; later ones find the folder in the
    cache. A quantised weight has at most 8 bits, so bfloat16 loses nothing of it that matters.

    Raises:
        ModelError: the file is not GGUF, or of a family that transformers cannot read.
        OutputError: the cache cannot be written.
    """
    folder = (cache_dir or cache_folder()) / "gguf" / f"{path.stem}-{_digest(path)}"
    if (folder / "config.json").is_file():
        return folder
    on_progress(Progress("convert", 0, 2))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        with ONE_AT_A_TIME:
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
    except Exception as cause:  # a file from elsewhere can make the readers raise anything
        raise ModelError(
            f"{path.name} cannot be read as a language model ({first_line(cause)}); "
            "use the model's safetensors folder or Hub id instead."
        ) from cause
    on_progress(Progress("convert", 1, 2))
    _forget_quantisation(model)
    with written_folder(folder, replace=True) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    on_progress(Progress("convert", 2, 2))
    return folder


def _forget_quantisation(model: torch.nn.Module) -> None:
    """Drop the record that makes transformers refuse to save a model whose weights are dense by now."""
    for holder in (model, model.config, getattr(model, "generation_config", None)):
        for name in ("hf_quantizer", "quantization_config", "quantization_method", "is_quantized"):
            if holder is not None and name in vars(holder):
                delattr(holder, name)


def _digest(path: Path) -> str:
    """Key of a file's content: its size and both ends, since reading gigabytes whole would take long."""
    try:
        with path.open("rb") as file:
            start = file.read(_SAMPLE_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - _SAMPLE_BYTES))
            end = file.read()
    except OSError as cause:
        raise ModelError(f"{path} cannot be read ({cause.strerror}); check the path.") from cause
    if not start.startswith(_MAGIC):
        raise ModelError(f"{path.name} is not a GGUF file; name a .gguf file, a model folder or a Hub id.")
    return hashlib.sha256(str(size).encode() + start + end).hexdigest()[:12]
