"""The files of a PEFT LoRA: found, checked without loading a weight, and matched against a model's sites."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from cast import hub
from cast.checkpoints import looks_like_path
from cast.errors import AdapterError
from cast.models import LanguageModel, Site
from cast.pocket import registry
from cast.tensorfiles import TensorInfo, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."
MAX_WEIGHT_BYTES = 4 * 2**30
MAX_CONFIG_BYTES = 4 * 2**20

_KEY = re.compile(re.escape(KEY_PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Initial values that leave the base model's weights alone; others (PiSSA, OLoRA, LoftQ, …) do not.
_PLAIN_INITIAL_VALUES = (True, False, "gaussian", "eva", "orthogonal")
# What makes an adapter more than `s·B·A·x` at linear modules: configuration entry → how to call it.
_REFUSED = {
    "use_dora": "DoRA (use_dora)",
    "use_qalora": "QA-LoRA (use_qalora)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "lora_bias": "biases of its own (lora_bias)",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
    "target_parameters": "adapted parameters outside linear modules (target_parameters)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "arrow_config": "routing between adapters (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
}
_VARIANTS = tuple(entry.name for entry in fields(LoraConfig) if entry.metadata.get("is_lora_variant"))
_GROUP_REPEATED = re.compile(r"\)(\*|\+|\{)")
_MAX_PATTERN = 2000


@dataclass(frozen=True)
class AdapterFolder:
    """A LoRA's files on disk with configuration and header read and found sound."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    keys: Mapping[tuple[str, str], str]
    """(module path, `A` or `B`) → name of the tensor in the weights file."""
    tensors: Mapping[str, TensorInfo]
    licence: str | None

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS

    @cached_property
    def targets(self) -> LoraConfig:
        """Which modules are adapted, as PEFT's own matcher takes it."""
        return LoraConfig(
            target_modules=self.config["target_modules"],
            exclude_modules=self.config.get("exclude_modules"),
            layers_to_transform=self.config.get("layers_to_transform"),
            layers_pattern=self.config.get("layers_pattern"),
        )

    def rank(self, module: str) -> int:
        """Rank that the configuration gives to a module."""
        pattern: Mapping[str, int] = self.config.get("rank_pattern") or {}
        return int(pattern.get(get_pattern_key(list(pattern), module), self.config.get("r", 8)))

    def scaling(self, module: str, rank: int) -> float:
        """Factor s on B·A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        pattern: Mapping[str, float] = self.config.get("alpha_pattern") or {}
        alpha = float(pattern.get(get_pattern_key(list(pattern), module), self.config.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


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


def open_folder(path_or_id: str | Path, *, token: str | None = None) -> AdapterFolder:
    """Find an adapter's files and check configuration and header; no weight is read.

    Raises:
        AdapterError: it is missing, damaged, or of a kind that CAST does not carry.
        RequestError: the pocket zoo has no such adapter.
        HubError: the Hub cannot be reached or does not have it.
    """
    name = str(path_or_id)
    folder = _locate(name, token)
    config = _read_config(name, folder)
    _refuse_other_kinds(name, config)
    _check_numbers(name, config)
    tensors = _read_header(name, folder)
    return AdapterFolder(name, folder, config, _module_keys(name, tensors), tensors, _licence(folder))


def inspect(path_or_id: str | Path, *, token: str | None = None) -> LoraSummary:
    """Look at an adapter without loading its weights.

    Raises:
        AdapterError: see `open_folder`.
        HubError: the Hub cannot be reached or does not have it.
    """
    folder = open_folder(path_or_id, token=token)
    modules = {module for module, _ in folder.keys}
    numbered = (re.search(r"\.(\d+)\.", module) for module in modules)
    return LoraSummary(
        name=folder.name,
        base_model=str(folder.config.get("base_model_name_or_path") or ""),
        ranks=tuple(sorted({folder.rank(module) for module in modules})),
        alpha=float(folder.config.get("lora_alpha", 8)),
        modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        layers=len({found.group(1) for found in numbered if found}),
        parameters=sum(info.size for info in folder.tensors.values()),
        weight_bytes=sum(info.bytes for info in folder.tensors.values()),
        rank_stabilised=bool(folder.config.get("use_rslora")),
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
    targeted = {name for name in sites if _targets(folder, name)}
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


def _targets(folder: AdapterFolder, module: str) -> bool:
    return folder.config["target_modules"] == "all-linear" or bool(
        check_target_module_exists(folder.targets, module)
    )


def _check_shapes(folder: AdapterFolder, site: Site, lm: LanguageModel) -> None:
    rank = folder.rank(site.name)
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
    targets = folder.config["target_modules"]
    if isinstance(targets, str):
        return
    modules = [name for name, _ in lm.model.named_modules()]
    for target in sorted(targets):
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


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{name} has no {CONFIG}, so it is not a PEFT adapter; choose another folder.")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("too large")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise AdapterError(f"The {CONFIG} of {name} is not JSON; fetch or save the adapter again.") from cause
    if not isinstance(config, dict):
        raise AdapterError(f"The {CONFIG} of {name} is not a JSON object; fetch or save the adapter again.")
    return config


def _refuse_other_kinds(name: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{name} is a PEFT adapter of type {kind}; CAST carries plain LoRA only.")
    for entry in (*_REFUSED, *_VARIANTS):
        if config.get(entry):
            what = _REFUSED.get(entry, f"the LoRA variant {entry}")
            raise AdapterError(f"{name} uses {what}, which is more than a plain LoRA; train it without.")
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"{name} trains biases (bias={config['bias']!r}); CAST carries plain LoRA, bias='none'."
        )
    initial = config.get("init_lora_weights", True)
    if initial not in _PLAIN_INITIAL_VALUES:
        raise AdapterError(
            f"{name} was started with init_lora_weights={initial!r}, which changes the base model's own "
            "weights; save it converted to a plain LoRA first (see PEFT's guide on PiSSA)."
        )


def _check_numbers(name: str, config: Mapping[str, Any]) -> None:
    """Types and ranges of the entries that are computed with."""
    ranks = [config.get("r", 8), *_values(name, config, "rank_pattern")]
    alphas = [config.get("lora_alpha", 8), *_values(name, config, "alpha_pattern")]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise AdapterError(f"{name} has a rank that is not a whole number above 0; its {CONFIG} is damaged.")
    if not all(type(alpha) in {int, float} and math.isfinite(alpha) for alpha in alphas):
        raise AdapterError(f"{name} has an alpha that is not a finite number; its {CONFIG} is damaged.")
    targets = config.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if not names or not all(isinstance(target, str) and target for target in names):
        raise AdapterError(
            f"{name} does not say which modules it adapts (target_modules); its {CONFIG} is damaged."
        )
    _check_patterns(name, config)


def _values(name: str, config: Mapping[str, Any], entry: str) -> list[Any]:
    pattern = config.get(entry) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(f"{name}: {entry} is not a table; its {CONFIG} is damaged.")
    return list(pattern.values())


def _check_patterns(name: str, config: Mapping[str, Any]) -> None:
    """Let through only regular expressions that cannot take forever on a module's name."""
    patterns = [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]
    for entry in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(entry)
        patterns += value if isinstance(value, list) else [] if value is None else [value]
    for pattern in patterns:
        try:
            sound = (
                isinstance(pattern, str)
                and len(pattern) <= _MAX_PATTERN
                and not _GROUP_REPEATED.search(pattern)
            )
            re.compile(pattern)
        except (re.error, TypeError, OverflowError):
            sound = False
        if not sound:
            raise AdapterError(
                f"{name} names modules by a pattern that CAST does not accept: {str(pattern)[:80]!r}."
            )


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


def _licence(folder: Path) -> str | None:
    """The `license:` entry of the card's front matter."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.\-]+)", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None
