"""Where a model's files are, and whether they are what CAST can load: looked at before any weight is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import NotASafetensorsRepoError
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cast import gguf, hub
from cast.errors import HubError, ModelError, first_line
from cast.pocket import registry
from cast.progress import OnProgress, ignore
from cast.tensorfiles import TensorInfo, read_header

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Outline:
    """What a model's configuration and weight headers say, found usable."""

    name: str
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


@dataclass(frozen=True)
class Checkpoint(Outline):
    """A model's folder on this machine."""

    folder: Path
    revision: str | None
    """Commit of a Hub snapshot; None for local models."""

    @property
    def tokenizer_kind(self) -> str:
        """Algorithm of the tokenizer, such as `Unigram` or `byte-level BPE`."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return "unknown"
        state = read_json(path, "")
        kind = str((state.get("model") or {}).get("type") or "BPE")
        return f"byte-level {kind}" if '"ByteLevel"' in json.dumps(state.get("decoder")) else kind


def is_remote(name: str) -> bool:
    """Whether a name means a model that only the Hub can answer for: no local thing, and not offline."""
    local = registry.is_pocket(name) or looks_like_path(name) or Path(name).expanduser().exists()
    return not local and not name.lower().endswith(".gguf") and not constants.is_offline_mode()


def locate(
    name: str, *, token: str | None = None, cache_dir: Path | None = None, on_progress: OnProgress = ignore
) -> tuple[Path, str | None]:
    """Folder of a model and its revision; a Hub model is fetched and a `.gguf` file unpacked at first use.

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
        ModelError: see `locate`; or the folder lacks a readable configuration, is not a decoder-only model of
            a family that transformers knows itself, is quantised, or holds no sound safetensors file.
    """
    folder, revision = locate(name, token=token, cache_dir=cache_dir, on_progress=on_progress)
    missing = f"{name} has no config.json, so it is not a transformers model folder; check the path."
    config = _config(name, read_json(folder / "config.json", missing))
    return Checkpoint(name, config, _tensors(name, folder), folder, revision)


def open_remote(name: str, *, token: str | None = None) -> tuple[Outline, str]:
    """Look at a Hub model without fetching its weights: its outline, and the class of its tokenizer.

    Raises:
        ModelError: see `open_checkpoint`.
        HubError: the Hub cannot be reached or does not have it.
    """
    config = _config(name, hub.fetch_config(name, token=token))
    tokenizer = hub.fetch_config(name, "tokenizer_config.json", token=token).get("tokenizer_class")
    try:
        files = HfApi().get_safetensors_metadata(name, token=token).files_metadata.values()
    except NotASafetensorsRepoError as cause:
        raise ModelError(f"{name} has no safetensors weights; choose a version that has them.") from cause
    except Exception as cause:  # no connection, a refusal, or a header that is none
        raise HubError(
            f"The Hub does not tell the sizes of {name} ({first_line(cause)}); try later."
        ) from cause
    tensors = {
        key: TensorInfo(info.dtype, tuple(info.shape)) for file in files for key, info in file.tensors.items()
    }
    return Outline(name, config, tensors), str(tokenizer or "unknown")


def _config(name: str, raw: Mapping[str, Any]) -> PreTrainedConfig:
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING_NAMES:
        if "auto_map" in raw:
            raise ModelError(
                f"{name} needs its own program code (trust_remote_code), which CAST does not run; "
                "choose a model that transformers supports itself."
            )
        raise ModelError(
            f"{name} is of the family {family!r}, which this transformers does not know; "
            "update transformers or choose another model."
        )
    _refuse_other_kinds(name, raw, family)
    try:
        return CONFIG_MAPPING[family].from_dict(dict(raw))
    except Exception as cause:  # a configuration from elsewhere can make transformers raise anything
        raise ModelError(
            f"The config.json of {name} cannot be used ({first_line(cause)}); fetch or save it again."
        ) from cause


def _refuse_other_kinds(name: str, raw: Mapping[str, Any], family: str) -> None:
    classes = [entry for entry in raw.get("architectures") or () if isinstance(entry, str)]
    encoder = any(entry.endswith(("ForMaskedLM", "ForPreTraining")) for entry in classes)
    if raw.get("is_encoder_decoder") or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encoder:
        raise ModelError(
            f"{name} ({family}) is not a decoder-only language model; CAST carries adapters between models "
            "that write text from left to right, so choose one of those."
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
