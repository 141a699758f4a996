"""The files of a PEFT LoRA: found, checked without loading a weight, and matched against a model's sites."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from cast import hub
from cast.adapter_config import CONFIG, AdapterConfig, read_config
from cast.checkpoints import is_remote, looks_like_path
from cast.errors import AdapterError, HubError, first_line
from cast.models import LanguageModel, Site
from cast.pocket import registry
from cast.tensorfiles import TensorInfo, read_header

WEIGHTS = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."
MAX_WEIGHT_BYTES = 4 * 2**30
TOGETHER = " + "
"""Between the names of adapters that act at once."""
MOST_TOGETHER = 8

_KEY = re.compile(re.escape(KEY_PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class AdapterOutline:
    """What a LoRA's configuration and weight header say, found sound."""

    name: str
    config: AdapterConfig
    tensors: Mapping[str, TensorInfo]
    keys: Mapping[tuple[str, str], str]
    """(module path, `A` or `B`) → name of the tensor in the weights file."""
    licence: str | None


@dataclass(frozen=True)
class AdapterFolder(AdapterOutline):
    """A LoRA's files on this machine."""

    weights: Path
    """The safetensors file."""


@dataclass(frozen=True)
class LoraSummary:
    """What can be said of an adapter before its weights are loaded."""

    name: str
    base_model: str
    ranks: tuple[int, ...]
    """The ranks that occur, ascending."""
    alpha: float
    modules: tuple[str, ...]
    """Last parts of the adapted modules' names, sorted."""
    layers: int
    """Number of blocks with an adapted module."""
    parameters: int
    weight_bytes: int
    rank_stabilised: bool
    licence: str | None


def names_in(path_or_id: str | Path) -> tuple[str, ...]:
    """The adapters that a name stands for: one, or several with ` + ` between them.

    Raises:
        AdapterError: they are more than may act at once, or a name between two signs is missing.
    """
    name = str(path_or_id)
    if TOGETHER not in name or os.path.exists(os.path.expanduser(name)):
        return (name,)
    names = tuple(part.strip() for part in name.split(TOGETHER))
    if len(names) > MOST_TOGETHER or not all(names):
        raise AdapterError(f"{name[:120]} does not name two to {MOST_TOGETHER} adapters; write X{TOGETHER}Y.")
    return names


def open_folder(path_or_id: str | Path, *, token: str | None = None) -> AdapterFolder:
    """Find an adapter's files and check configuration and header; no weight is read.

    Raises:
        AdapterError: it is missing, damaged, or of a kind that CAST does not carry.
        RequestError: the pocket zoo has no such adapter.
        HubError: the Hub cannot be reached or does not have it.
    """
    name = str(path_or_id)
    folder = _locate(name, token)
    config = AdapterConfig.checked(name, read_config(name, folder))
    tensors = _read_header(name, folder)
    return AdapterFolder(
        name,
        config,
        tensors,
        _module_keys(name, tensors),
        hub.licence_of(hub.read_card(folder)),
        folder / WEIGHTS,
    )


def _open_remote(name: str, token: str | None) -> AdapterOutline:
    """The same of an adapter on the Hub, its weights not fetched."""
    config = AdapterConfig.checked(name, hub.fetch_config(name, CONFIG, token=token))
    try:
        header = HfApi().parse_safetensors_file_metadata(name, WEIGHTS, token=token)
    except Exception as cause:  # a missing file, a refusal, or a header that is none
        raise HubError(f"The Hub does not show {WEIGHTS} of {name} ({first_line(cause)}).") from cause
    tensors = {key: TensorInfo(info.dtype, tuple(info.shape)) for key, info in header.tensors.items()}
    licence = hub.licence_of(hub.fetch_card(name, token=token))
    return AdapterOutline(name, config, tensors, _module_keys(name, tensors), licence)


def inspect(path_or_id: str | Path, *, token: str | None = None) -> LoraSummary:
    """Look at an adapter without loading its weights, or fetching them where only the Hub has it.

    Raises:
        AdapterError: see `open_folder`.
        HubError: the Hub cannot be reached or does not have it.
    """
    name = str(path_or_id)
    remote = "/" in name and is_remote(name)
    folder = _open_remote(name, token) if remote else open_folder(path_or_id, token=token)
    modules = {module for module, _ in folder.keys}
    numbered = (re.search(r"\.(\d+)\.", module) for module in modules)
    return LoraSummary(
        name=folder.name,
        base_model=folder.config.base_model,
        ranks=tuple(sorted({folder.config.rank(module) for module in modules})),
        alpha=float(folder.config.raw.get("lora_alpha", 8)),
        modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        layers=len({found.group(1) for found in numbered if found}),
        parameters=sum(info.size for info in folder.tensors.values()),
        weight_bytes=sum(info.bytes for info in folder.tensors.values()),
        rank_stabilised=bool(folder.config.raw.get("use_rslora")),
        licence=folder.licence,
    )


def matched_sites(folder: AdapterFolder, lm: LanguageModel) -> list[Site]:
    """The sites of `lm` that the adapter changes, checked against names and shapes.

    Raises:
        AdapterError: a target module is not in the model, a tensor belongs to no site or is missing, or
            its shape does not fit.
    """
    _refuse_unknown_targets(folder, lm)
    sites = {site.name: site for site in lm.architecture.sites}
    modules = {module for module, _ in folder.keys}
    if strange := sorted(modules - sites.keys()):
        raise AdapterError(
            f"{folder.name} adapts {strange[0]}, which is no linear layer inside a block of {lm.name}; "
            "it was made for another model, or adapts embeddings or the head, which CAST does not carry."
        )
    targeted = {name for name in sites if folder.config.adapts(name)}
    if beyond := sorted(modules - targeted):
        raise AdapterError(
            f"{folder.name} holds weights of {beyond[0]}, which its configuration does not target."
        )
    if lacking := sorted(targeted - modules):
        raise AdapterError(
            f"{folder.name} lacks the weights of {len(lacking)} of {len(targeted)} target modules, first "
            f"{lacking[0]}; it is incomplete, or was made for another model than {lm.name}."
        )
    matched = [site for site in lm.architecture.sites if site.name in modules]
    for site in matched:
        _check_shapes(folder, site, lm)
    return matched


def _check_shapes(folder: AdapterFolder, site: Site, lm: LanguageModel) -> None:
    rank = folder.config.rank(site.name)
    for side, expected in (("A", (rank, site.in_features)), ("B", (site.out_features, rank))):
        shape = folder.tensors[folder.keys[site.name, side]].shape
        if shape != expected:
            raise AdapterError(
                f"{folder.name}: lora_{side} of {site.name} is {_times(shape)} and {lm.name} at rank {rank} "
                f"needs {_times(expected)}; the adapter was made for another model."
            )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _refuse_unknown_targets(folder: AdapterFolder, lm: LanguageModel) -> None:
    modules = [name for name, _ in lm.model.named_modules()]
    for target in folder.config.module_names:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise AdapterError(
                f"{folder.name} targets modules called {target!r}, and {lm.name} ({lm.family}) has none; "
                "choose an adapter of this model."
            )


def _locate(name: str, token: str | None) -> Path:
    if registry.is_pocket(name):
        return registry.resolve(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise AdapterError(
            f"{name} is a file; name the adapter's folder, which holds {CONFIG} and {WEIGHTS}."
        )
    if looks_like_path(name) or "/" not in name:
        raise AdapterError(
            f"The folder {name} does not exist; check the path, or name a Hub id such as owner/adapter."
        )
    return hub.download(name, kind="adapter", token=token)


def _read_header(name: str, folder: Path) -> dict[str, TensorInfo]:
    path = folder / WEIGHTS
    if not path.is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise AdapterError(
                f"{name} has its weights only as a pickle file, which can run code when opened; "
                f"save it as {WEIGHTS} first."
            )
        raise AdapterError(f"{name} has no {WEIGHTS}; fetch or save the adapter again.")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise AdapterError(
            f"{name} is larger than {MAX_WEIGHT_BYTES // 2**30} GiB, which no LoRA needs to be."
        )
    return read_header(path, AdapterError)


def _module_keys(name: str, tensors: Mapping[str, TensorInfo]) -> dict[tuple[str, str], str]:
    keys: dict[tuple[str, str], str] = {}
    for key, info in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or not info.dtype.endswith(("F16", "F32", "F64")):
            raise AdapterError(
                f"{name} holds {key[:120]} ({info.dtype}), which is not a LoRA matrix of a linear layer; "
                "CAST carries plain LoRA only."
            )
        keys[match["module"], match["side"]] = key
    halves = sorted(module for module, side in keys if (module, "A" if side == "B" else "B") not in keys)
    if halves or not keys:
        raise AdapterError(
            f"{name} is incomplete: {halves[0] if halves else WEIGHTS} lacks its matrices; fetch it again."
        )
    return keys
