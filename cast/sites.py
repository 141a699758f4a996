"""Which target site takes over from which source site, and the plain LoRA that linear maps between them give.

A *site map* carries one adapted source site to one target site: the encode side P brings the target site's
input into the source site's input space, the decode side Q brings the kernel's change into the target site's
output. Sites are paired by role inside the block that hosts them, so fused and separate projections, gated
and plain MLPs meet; how a family lays out the rows of a fused projection is learnt by Q and needs no table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.adapters import Kernel, Lora
from cast.alignment import LayerMap
from cast.errors import AdapterError, HeadsError
from cast.heads import AffineHead
from cast.models import Architecture, Site

# For each source role the target roles that do the same work, best first; of the first entry that the target
# block has whole, every role takes part.
_COUNTERPARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "q": (("q",), ("qkv",)),
    "k": (("k",), ("qkv",)),
    "v": (("v",), ("qkv",)),
    "qkv": (("qkv",), ("q", "k", "v")),
    "o": (("o",),),
    "gate": (("gate",), ("gate_up",), ("up",)),
    "up": (("up",), ("gate_up",)),
    "gate_up": (("gate_up",), ("gate", "up"), ("up",)),
    "down": (("down",),),
}
# In an MLP without a gate, `up` alone decides what passes, as gate and up together do elsewhere.
_UNGATED_UP = (("gate", "up"), ("gate_up",), ("up",))
_ATTENTION_ROLES = frozenset({"q", "k", "v", "qkv", "o"})


@dataclass(frozen=True)
class SitePair:
    """One source site and a target site that takes (a share of) its kernel."""

    source: Site
    target: Site
    weight: float = 1.0
    """Share of the kernel's change; the shares of target sites that do one and the same work sum to 1."""


def pair_sites(
    adapted: Iterable[Site], source: Architecture, target: Architecture, layer_map: LayerMap
) -> tuple[SitePair, ...]:
    """Pair every adapted source site with the target sites of the block that hosts it.

    A fused site whose parts stand separately in the target goes to each part at weight 1: the parts are
    different outputs. Where several target sites do the source site's one work, they share it. A site without
    counterpart goes to its block's output projection (attention or MLP).

    Args:
        adapted: source sites that carry a kernel; layers count from 1.
        source: the source model's architecture.
        target: the target model's architecture.
        layer_map: which target block hosts which source blocks.

    Raises:
        AdapterError: the hosting target block has no linear site at all.
    """
    by_layer: dict[int, list[Site]] = {}
    for site in target.sites:
        by_layer.setdefault(site.layer, []).append(site)
    gated = {site.layer for site in source.sites if site.role in {"gate", "gate_up"}}
    pairs: list[SitePair] = []
    for site in adapted:
        host = layer_map.host_of(site.layer)
        block = by_layer.get(host, [])
        if not block:
            raise AdapterError(
                f"Block {host} of the target has no linear layer that could carry {site.name}; "
                "choose a target whose blocks hold linear layers."
            )
        found, parts = _counterparts(site, block, gated=site.layer in gated)
        share = 1.0 if parts else 1.0 / len(found)
        pairs.extend(SitePair(site, counterpart, share) for counterpart in found)
    return tuple(pairs)


def _counterparts(site: Site, block: Sequence[Site], *, gated: bool) -> tuple[list[Site], bool]:
    """Target sites for one source site, and whether they are different parts of its output."""
    roles = {candidate.role for candidate in block}
    choices = _UNGATED_UP if site.role == "up" and not gated else _COUNTERPARTS.get(site.role, ())
    for choice in choices:
        if roles.issuperset(choice):
            parts = len(choice) > 1 and site.role in {"qkv", "gate_up"}
            found = [candidate for candidate in block if candidate.role in choice]
            return found, parts and len(found) == len(choice)
    preferred = ("o", "down") if site.role in _ATTENTION_ROLES else ("down", "o")
    for role in preferred:
        for candidate in block:
            if candidate.role == role:
                return [candidate], False
    return [block[-1]], False


@dataclass(frozen=True)
class SiteMap:
    """The fitted way from one source site to one target site."""

    pair: SitePair
    encode: AffineHead
    """P: target site input [..., in_t] to source site input [..., in_s]."""
    decode: Tensor
    """Q, float32 [out_t, out_s]: a change of the source site's output to one of the target site's output."""


@dataclass(frozen=True)
class SiteMaps:
    """All site maps of one adapter's sites for an ordered pair of models."""

    maps: tuple[SiteMap, ...]

    def covering(self, lora: Lora) -> tuple[tuple[SiteMap, Kernel], ...]:
        """Each map with the kernel that it carries.

        Raises:
            HeadsError: a kernel's site has no map.
        """
        kernels = {kernel.site.name: kernel for kernel in lora.kernels}
        missing = kernels.keys() - {site_map.pair.source.name for site_map in self.maps}
        if missing:
            raise HeadsError(f"No site map reaches {min(missing)}; fit the site maps for this adapter.")
        return tuple(
            (site_map, kernels[site_map.pair.source.name])
            for site_map in self.maps
            if site_map.pair.source.name in kernels
        )

    def instant(self, lora: Lora, strength: float = 1.0) -> tuple[Kernel, ...]:
        """The plain kernels A_t = A·P, B_t = strength·weight·s·Q·B on the target's sites, at scaling 1.

        Exact for affine maps without intercept: the kernels then do what encode, frozen kernel and decode do.
        Several source sites on one target site stand one below the other: their ranks add up.

        Raises:
            HeadsError: a kernel's site has no map.
            RequestError: an encode side is not affine.
        """
        sides: dict[Site, list[tuple[Tensor, Tensor]]] = {}
        for site_map, kernel in self.covering(lora):
            a = kernel.a @ site_map.encode.linear_map().detach().to(kernel.a)
            gain = strength * site_map.pair.weight * kernel.scaling
            b = gain * (site_map.decode.to(kernel.b) @ kernel.b)
            sides.setdefault(site_map.pair.target, []).append((a, b))
        return tuple(
            Kernel(site, torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1), 1.0)
            for site, parts in sides.items()
        )
