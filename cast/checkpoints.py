"""Where a model's files are, and whether they are what CAST can load: looked at before any weight is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cast import gguf
from cast.errors import ModelError
from cast.pocket import registry
from cast.progress import OnProgress, ignore
from cast.tensorfiles import TensorInfo, read_header

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder with configuration and weight headers read and found usable."""

    name: str
    folder: Path
    revision: str | None
    config: PreTrainedConfig
    tensors: Mapping[str, TensorInfo]

    @property
    def parameters(self) -> int:
        """Number of weights in the files (tied weights are stored once)."""
        return sum(info.size for info in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in the files."""
        return sum(info.bytes for info in self.tensors.values())


def locate(
    name: str, *, token: str | None = None, cache_dir: Path | None = None, on_progress: OnProgress = ignore
) -> tuple[Path, str | None]:
    """Folder of a model and its revision; fetches a Hub model and unpacks a `.gguf` file when they are not here yet.

    Raises:
        ModelError: the path does not exist.
        RequestError: the pocket zoo has no such model.
        HubError: the Hub cannot be reached or does not have it.
    """
    if registry.is_pocket(name):
        return registry.resolve(name), None
    path = Path(name).expanduser()
    if path.is_dir():
        return path, None
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"The file {name} does not exist; check the path.")
        return gguf.convert(path, cache_dir=cache_dir, on_progress=on_progress), None
    if path.is_file():
        raise ModelError(f"{name} is a file; name a model folder, a .gguf file or a Hub id.")
    if looks_like_path(name):
        raise ModelError(
            f"The folder {name} does not exist; check the path, or name a Hub id such as owner/model."
        )
    from cast import hub

    folder = hub.download(name, kind="model", token=token)
    return folder, folder.name if folder.parent.name == "snapshots" else None


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean something on this machine and not `owner/name` on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def open_checkpoint(
    name: str, *, token: str | None = None, cache_dir: Path | None = None, on_progress: OnProgress = ignore
) -> Checkpoint:
    """Find a model's folder and check it; no weight is read.

    Raises:
        ModelError: see `locate`; or the folder lacks a readable configuration, is not a decoder-only model of a
            family that transformers knows itself, is quantised, or holds no sound safetensors file.
    """
    folder, revision = locate(name, token=token, cache_dir=cache_dir, on_progress=on_progress)
    config = _config(name, folder)
    return Checkpoint(name, folder, revision, config, _tensors(name, folder))


def _config(name: str, folder: Path) -> PreTrainedConfig:
    raw = read_json(
        folder / "config.json", f"{name} has no config.json, so it is not a transformers model folder."
    )
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING_NAMES:
        if "auto_map" in raw:
            raise ModelError(
                f"{name} needs its own program code (trust_remote_code), which CAST does not run; "
                "choose a model that transformers supports itself."
            )
        raise ModelError(
            f"{name} is of the family {family!r}, which this transformers does not know; update it."
        )
    _refuse_other_kinds(name, raw, family)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as cause:  # a configuration from elsewhere can make transformers raise anything
        raise ModelError(
            f"{name}: its config.json cannot be used ({type(cause).__name__}: {cause})."
        ) from cause
    return config


def _refuse_other_kinds(name: str, raw: Mapping[str, Any], family: str) -> None:
    classes = [entry for entry in raw.get("architectures") or () if isinstance(entry, str)]
    encoder = any(entry.endswith(("ForMaskedLM", "ForPreTraining")) for entry in classes)
    if raw.get("is_encoder_decoder") or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encoder:
        raise ModelError(
            f"{name} ({family}) is not a decoder-only language model; CAST carries adapters between models that write "
            "text from left to right, so choose one of those."
        )
    if raw.get("quantization_config"):
        raise ModelError(f"{name} is stored quantised; choose its full-precision version.")


def _tensors(name: str, folder: Path) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in _weight_files(name, folder):
        tensors.update(read_header(file, ModelError))
    return tensors


def _weight_files(name: str, folder: Path) -> list[Path]:
    """The safetensors files that transformers would load, the index's names confined to the folder."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        parts = read_json(index, "").get("weight_map")
        names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
        if not names or any(Path(part).name != part for part in names):
            raise ModelError(f"{name}: its model.safetensors.index.json is damaged; fetch the model again.")
        missing = [part for part in names if not (folder / part).is_file()]
        if missing:
            raise ModelError(f"{name} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}.")
        return [folder / part for part in names]
    if any(True for pattern in _PICKLES for _ in folder.glob(pattern)):
        raise ModelError(
            f"{name} has its weights only as pickle files, which can run code when opened; "
            "choose a version with safetensors."
        )
    raise ModelError(f"{name} has no model.safetensors; choose a folder or Hub id with weights.")


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises:
        ModelError: the file is missing (with the sentence given), or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ModelError(missing) from cause
    except (OSError, ValueError) as cause:
        raise ModelError(
            f"{path.name} of {path.parent.name} is not JSON; fetch or save the model again."
        ) from cause
    if not isinstance(value, dict):
        raise ModelError(
            f"{path.name} of {path.parent.name} is not a JSON object; fetch or save the model again."
        )
    return value
