"""The configuration of a PEFT LoRA: what is refused by name, and PEFT's rules for the rest."""

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

from cast.errors import AdapterError

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 4 * 2**20

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
class AdapterConfig:
    """A plain LoRA's configuration, found sound."""

    name: str
    raw: Mapping[str, Any]

    @classmethod
    def checked(cls, name: str, raw: Mapping[str, Any]) -> "AdapterConfig":
        """Refuse whatever is more than a plain LoRA, or cannot be computed with.

        Raises:
            AdapterError: with the reason by name.
        """
        _refuse_other_kinds(name, raw)
        _check_numbers(name, raw)
        return cls(name, raw)

    @property
    def base_model(self) -> str:
        """Hub id or name of the model that it belongs to."""
        return str(self.raw.get("base_model_name_or_path") or "")

    @property
    def module_names(self) -> list[str]:
        """Names or endings of the adapted modules; empty where an expression says which."""
        targets = self.raw["target_modules"]
        return [] if isinstance(targets, str) else sorted(targets)

    def adapts(self, module: str) -> bool:
        """Whether a linear module inside a block is adapted, by PEFT's own matcher."""
        return self.raw["target_modules"] == "all-linear" or bool(
            check_target_module_exists(self.targets, module)
        )

    @cached_property
    def targets(self) -> LoraConfig:
        """Which modules are adapted, as PEFT's own matcher takes it."""
        return LoraConfig(
            target_modules=self.raw["target_modules"],
            exclude_modules=self.raw.get("exclude_modules"),
            layers_to_transform=self.raw.get("layers_to_transform"),
            layers_pattern=self.raw.get("layers_pattern"),
        )

    def rank(self, module: str) -> int:
        """Rank that the configuration gives to a module."""
        pattern: Mapping[str, int] = self.raw.get("rank_pattern") or {}
        return int(pattern.get(get_pattern_key(list(pattern), module), self.raw.get("r", 8)))

    def scaling(self, module: str, rank: int) -> float:
        """Factor s on B·A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        pattern: Mapping[str, float] = self.raw.get("alpha_pattern") or {}
        alpha = float(pattern.get(get_pattern_key(list(pattern), module), self.raw.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self.raw.get("use_rslora") else rank)


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """The JSON object of an adapter's configuration file.

    Raises:
        AdapterError: there is none, or it is not a JSON object.
    """
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
