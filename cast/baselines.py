"""Other ways to use a source's adapter on a target, measured beside CAST's; each says where it comes from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from cast.adapters import Kernel, Lora
from cast.alignment import LayerMap
from cast.architecture import Site
from cast.errors import AdapterError
from cast.models import LanguageModel
from cast.runners import PlainRunner, Runner
from cast.vocabulary import VocabularyMap
from cast.wording import WordedRunner

Make = Callable[[LanguageModel, LanguageModel, Lora], Runner]


@dataclass(frozen=True)
class Baseline:
    """One way, by name: (source, target, adapter of the source) → the target with it acting."""

    name: str
    reference: str
    make: Make


_KNOWN: dict[str, Baseline] = {}
BASELINES: Mapping[str, Baseline] = MappingProxyType(_KNOWN)
"""Every baseline by its name; filled when this module is imported."""


def baseline(name: str, reference: str) -> Callable[[Make], Make]:
    """Enter a function as a baseline."""

    def enter(make: Make) -> Make:
        _KNOWN[name] = Baseline(name, reference, make)
        return make

    return enter


@baseline("naive-copy", "the kernels as they are, wherever the shapes allow it")
def naive_copy(source: LanguageModel, target: LanguageModel, lora: Lora) -> Runner:
    """Copy each kernel to the same role of the block at the same relative depth, if its shape fits.

    Raises:
        AdapterError: it fits nowhere.
    """
    fitting = [
        Kernel(site, kernel.a, kernel.b, kernel.scaling)
        for kernel, site in _counterparts(source, target, lora)
        if (kernel.a.shape[1], kernel.b.shape[0]) == (site.in_features, site.out_features)
    ]
    if not fitting:
        raise AdapterError(f"No kernel of {lora.name} has the shape of a layer of {target.name}.")
    return PlainRunner(target, Lora("naive copy", target.name, tuple(fitting)))


@baseline("truncate-and-pad", "ual-adapter on PyPI: cut or padded with zeros to the target's widths")
def truncate_and_pad(source: LanguageModel, target: LanguageModel, lora: Lora) -> Runner:
    """Cut A's columns and B's rows to the target's widths, or pad them with zeros.

    Raises:
        AdapterError: the target has no layer of an adapted role.
    """
    kernels = tuple(
        Kernel(
            site,
            _sized(kernel.a, site.in_features, 1),
            _sized(kernel.b, site.out_features, 0),
            kernel.scaling,
        )
        for kernel, site in _counterparts(source, target, lora)
    )
    if not kernels:
        raise AdapterError(f"{target.name} has no layer like those that {lora.name} adapts.")
    return PlainRunner(target, Lora("truncated and padded", target.name, kernels))


@baseline("proxy-tuning", "arXiv 2401.08565, eq. 1, through a vocabulary map by the texts of tokens")
def proxy_tuning(source: LanguageModel, target: LanguageModel, lora: Lora) -> Runner:
    """The target's logits plus the change of the source's: softmax(s_T + s_S+ - s_S)."""
    return WordedRunner(source, lora, target, vocabulary=_Factors(source, target))


class _Factors(VocabularyMap):
    """Multiplies the target's distribution by the source's factor q / p where both have read one text."""

    def take_over(
        self, own: Tensor, before: Tensor, after: Tensor, pending: Sequence[str], pooling: Tensor
    ) -> Tensor:
        """See `VocabularyMap.take_over`; nothing is pooled, and inside a source token nothing is changed."""
        own, before, after = (logits.float().cpu().log_softmax(-1) for logits in (own, before, after))
        whole = torch.tensor([not text for text in pending])
        factor = self.bridge().factor(before[whole], after[whole], own.shape[-1])
        result = own.clone()
        result[whole] = (own[whole] + factor).log_softmax(-1)
        return result


def _counterparts(source: LanguageModel, target: LanguageModel, lora: Lora) -> Iterator[tuple[Kernel, Site]]:
    """Each kernel with the target's site of its role at the same relative depth, where there is one."""
    layer_map = LayerMap.by_relative_depth(source.depth, target.depth)
    sites = {(site.layer, site.role): site for site in target.architecture.sites}
    for kernel in lora.kernels:
        site = sites.get((layer_map.host_of(kernel.site.layer), kernel.site.role))
        if site is not None:
            yield kernel, site


def _sized(matrix: Tensor, size: int, dim: int) -> Tensor:
    """Cut or padded with zeros to a size along a dimension."""
    kept = matrix.narrow(dim, 0, min(size, matrix.shape[dim]))
    shape = list(kept.shape)
    shape[dim] = size - kept.shape[dim]
    return torch.cat([kept, kept.new_zeros(shape)], dim)
