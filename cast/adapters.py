"""LoRA adapters in PEFT's format: read with every check that untrusted input needs, applied, and written."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cast import adapter_files
from cast.adapter_files import AdapterFolder, LoraSummary, inspect
from cast.errors import AdapterError, OutputError
from cast.models import LanguageModel, Site
from cast.storage import check_output_folder, written_folder

__all__ = ["Kernel", "Lora", "LoraSummary", "applied", "inspect", "read", "summed", "write"]


@dataclass(frozen=True, eq=False)
class Kernel:
    """The change K(x) = scaling · B · A · x of one linear site."""

    site: Site
    a: Tensor
    """[r, in]."""
    b: Tensor
    """[out, r]."""
    scaling: float

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.a.shape[0]

    @property
    def delta(self) -> Tensor:
        """The change of the weight as a matrix [out, in]."""
        return self.scaling * (self.b @ self.a)


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter: kernels at sites of one model."""

    name: str
    base_model: str
    """Hub id or name of the model that it belongs to, as its configuration says."""
    kernels: tuple[Kernel, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    """PEFT's configuration as read; empty for an adapter made here."""
    licence: str | None = None

    @property
    def rank(self) -> int:
        """Largest rank of a site."""
        return max(kernel.rank for kernel in self.kernels)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks with a kernel, counted from 1, ascending."""
        return tuple(sorted({kernel.site.layer for kernel in self.kernels}))


def read(path_or_id: str | Path, lm: LanguageModel, *, token: str | None = None) -> Lora:
    """Read an adapter of `lm`: a PEFT folder, a Hub id, or a `pocket:llama/mood` name.

    Several names with ` + ` between them are several adapters at once, as the one that does what they do.

    Returns:
        The adapter with float32 kernels on the CPU, in the order of the model's sites.

    Raises:
        AdapterError: it is missing, damaged, of a kind that CAST does not carry, does not fit the model,
            holds numbers that are not finite, or changes nothing.
        HubError: the Hub cannot be reached or does not have it.
    """
    loras = [_read(name, lm, token) for name in adapter_files.names_in(path_or_id)]
    return summed(lm, loras) if len(loras) > 1 else loras[0]


def _read(name: str, lm: LanguageModel, token: str | None) -> Lora:
    folder = adapter_files.open_folder(name, token=token)
    sites = adapter_files.matched_sites(folder, lm)
    try:
        tensors = load_file(folder.weights)
    except (SafetensorError, OSError) as cause:
        raise AdapterError(f"{folder.name}: its weights cannot be read ({cause}); fetch it again.") from cause
    kernels = tuple(_kernel(folder, site, tensors) for site in sites)
    lora = Lora(
        name=folder.name,
        base_model=folder.config.base_model,
        kernels=kernels,
        config=folder.config.raw,
        licence=folder.licence,
    )
    _refuse_nil_effect(lora)
    return lora


def _kernel(folder: AdapterFolder, site: Site, tensors: Mapping[str, Tensor]) -> Kernel:
    a, b = (tensors[folder.keys[site.name, side]].to(torch.float32) for side in "AB")
    for side, matrix in (("A", a), ("B", b)):
        if not matrix.isfinite().all():
            raise AdapterError(
                f"{folder.name}: lora_{side} of {site.name} holds NaN or infinite numbers; train or fetch "
                "it again."
            )
    return Kernel(site, a, b, folder.config.scaling(site.name, a.shape[0]))


def _refuse_nil_effect(lora: Lora) -> None:
    if all(kernel.scaling == 0 or not kernel.a.any() or not kernel.b.any() for kernel in lora.kernels):
        raise AdapterError(
            f"{lora.name} changes nothing: every kernel is zero; train it before it is carried."
        )


def summed(lm: LanguageModel, loras: Sequence[Lora]) -> Lora:
    """One LoRA of `lm` whose change at each site is exactly the sum of those of several: [A₁; A₂], [B₁ B₂].

    Ranks add up; each scaling is in its own B.
    """
    at_site: dict[str, list[Kernel]] = defaultdict(list)
    for lora in loras:
        for kernel in lora.kernels:
            at_site[kernel.site.name].append(kernel)
    licences = {lora.licence for lora in loras}
    return Lora(
        adapter_files.TOGETHER.join(lora.name for lora in loras),
        loras[0].base_model,
        tuple(_joined(at_site[site.name]) for site in lm.architecture.sites if site.name in at_site),
        # The Hub's word for terms that no single licence states.
        licence=licences.pop() if len(licences) == 1 else "other",
    )


def _joined(kernels: Sequence[Kernel]) -> Kernel:
    """One kernel for several of one site; a single one stays as it is."""
    if len(kernels) == 1:
        return kernels[0]
    a = torch.cat([kernel.a for kernel in kernels])
    b = torch.cat([kernel.scaling * kernel.b for kernel in kernels], 1)
    return Kernel(kernels[0].site, a, b, 1.0)


@contextmanager
def applied(
    lm: LanguageModel, lora: Lora, strength: float = 1.0, *, first_half: bool = False
) -> Iterator[None]:
    """Add `strength · s · B · A · x` to the output of every adapted site while the block runs.

    Gradients flow to activations, and to A and B where they ask for it. Blocks nest, and their changes add
    up. At strength 0 nothing is touched.

    Args:
        lm: the adapter's model.
        lora: kernels at sites of `lm`, in any number type; products are taken in theirs, as PEFT does.
        strength: factor on the change.
        first_half: whether only the first half of a batch's rows is changed, so that one pass reads a text
            with the adapter and without.
    """
    with ExitStack() as hooks:
        if strength != 0:
            # Looked up once: it takes a walk through the modules, and a session enters here at every token.
            device = lm.device
            for kernel in lora.kernels:
                change = _Change(kernel, strength, device, first_half)
                hooks.callback(lm.architecture.module(kernel.site).register_forward_hook(change).remove)
        yield


class _Change:
    """Forward hook of one kernel."""

    def __init__(self, kernel: Kernel, strength: float, device: torch.device, first_half: bool) -> None:
        self.a, self.b = kernel.a.to(device), kernel.b.to(device)
        self.factor = strength * kernel.scaling
        self.first_half = first_half

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.first_half:
            changing, rest = output.chunk(2)
            return torch.cat([self._changed(inputs[0].chunk(2)[0], changing), rest])
        return self._changed(inputs[0], output)

    def _changed(self, x: Tensor, output: Tensor) -> Tensor:
        x = x.to(self.a.dtype)
        change = nn.functional.linear(nn.functional.linear(x, self.a), self.b) * self.factor
        return (output + change).to(output.dtype)


def write(
    lora: Lora,
    folder: Path,
    lm: LanguageModel,
    *,
    card: str,
    extra: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter as a folder that plain `peft` loads onto `lm`, whole or not at all.

    Args:
        lora: kernels at sites of `lm`.
        folder: where it shall stand; missing or empty.
        lm: the model that it belongs to.
        card: text of `README.md`, front matter included.
        extra: further text files by name.
        dtype: number type of the stored weights, float32 or float16.

    Raises:
        AdapterError: the adapter changes nothing, or did not survive being read back.
        OutputError: the folder is not empty, cannot be written, or the disk is full.
    """
    check_output_folder(folder)
    _refuse_nil_effect(lora)
    kernels = [_with_whole_alpha(kernel) for kernel in lora.kernels]
    tensors = {
        f"{adapter_files.KEY_PREFIX}{kernel.site.name}.lora_{side}.weight": matrix.detach()
        .to("cpu", dtype)
        .contiguous()
        for kernel in kernels
        for side, matrix in (("A", kernel.a), ("B", kernel.b))
    }
    texts = {"README.md": card, **(extra or {})}
    if any(Path(name).name != name for name in texts):
        raise OutputError("An adapter's extra files must be plain file names without folders.")
    with written_folder(folder) as draft:
        _peft_config(lora.base_model, kernels, lm).save_pretrained(str(draft))
        save_file(tensors, draft / adapter_files.WEIGHTS, metadata={"format": "pt"})
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        _check_written(draft, lora, lm)


def _with_whole_alpha(kernel: Kernel) -> Kernel:
    """The same kernel with an integral alpha = scaling · rank, which some loaders insist on."""
    alpha = kernel.scaling * kernel.rank
    if abs(alpha - round(alpha)) < 1e-6 and round(alpha) != 0:
        return kernel
    return replace(kernel, b=kernel.b * kernel.scaling, scaling=1.0)


def _peft_config(base_model: str, kernels: list[Kernel], lm: LanguageModel) -> LoraConfig:
    ranks = {kernel.site.name: kernel.rank for kernel in kernels}
    alphas = {kernel.site.name: round(kernel.scaling * kernel.rank) for kernel in kernels}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    modules = _target_modules(list(ranks), lm)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
        target_modules=modules,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: value for name, value in ranks.items() if value != rank},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        fan_in_fan_out=any(kernel.site.fan_in_fan_out for kernel in kernels),
    )
    # PEFT makes a set of them, whose order differs from run to run; an adapter made again is the same file.
    config.target_modules = modules
    return config


def _target_modules(names: list[str], lm: LanguageModel) -> list[str]:
    """The shortest endings of module names that name these modules and no others, else the full names."""
    everything = [name for name, _ in lm.model.named_modules()]
    for parts in (1, 2, 3):
        endings = {".".join(name.split(".")[-parts:]) for name in names}
        named = {name for name in everything if any(name.endswith(f".{ending}") for ending in endings)}
        if named == set(names):
            return sorted(endings)
    return sorted(names)


def _check_written(folder: Path, lora: Lora, lm: LanguageModel) -> None:
    again = {kernel.site.name for kernel in read(folder, lm).kernels}
    if again != {kernel.site.name for kernel in lora.kernels}:
        raise AdapterError(
            "The written adapter reads back with other modules than it was made for; nothing was kept."
        )
