"""Kernels moved as they are, into the layer of the same role at the same relative depth."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cast.adapters import Kernel, Lora
from cast.alignment import LayerMap
from cast.architecture import Site
from cast.baselines.registry import Given, baseline
from cast.errors import AdapterError
from cast.runners import PlainRunner, Runner


@baseline("naive-copy", "the kernels as they are, wherever the shapes allow it")
def naive_copy(given: Given) -> Runner:
    """Copy each kernel to the same role of the block at the same relative depth, if its shape fits.

    Raises:
        AdapterError: it fits nowhere.
    """
    target = given.target
    fitting = [
        Kernel(site, kernel.a, kernel.b, kernel.scaling)
        for kernel, site in _counterparts(given)
        if (kernel.a.shape[1], kernel.b.shape[0]) == (site.in_features, site.out_features)
    ]
    if not fitting:
        raise AdapterError(f"No kernel of {given.lora.name} has the shape of a layer of {target.name}.")
    return PlainRunner(target, Lora("naive copy", target.name, tuple(fitting)))


@baseline("truncate-and-pad", "ual-adapter on PyPI: cut or padded with zeros to the target's widths")
def truncate_and_pad(given: Given) -> Runner:
    """Cut A's columns and B's rows to the target's widths, or pad them with zeros.

    Raises:
        AdapterError: the target has no layer of an adapted role.
    """
    target = given.target
    kernels = tuple(
        Kernel(
            site,
            _sized(kernel.a, site.in_features, 1),
            _sized(kernel.b, site.out_features, 0),
            kernel.scaling,
        )
        for kernel, site in _counterparts(given)
    )
    if not kernels:
        raise AdapterError(f"{target.name} has no layer like those that {given.lora.name} adapts.")
    return PlainRunner(target, Lora("truncated and padded", target.name, kernels))


def _counterparts(given: Given) -> Iterator[tuple[Kernel, Site]]:
    """Each kernel with the target's site of its role at the same relative depth, where there is one."""
    layer_map = LayerMap.by_relative_depth(given.source.depth, given.target.depth)
    sites = {(site.layer, site.role): site for site in given.target.architecture.sites}
    for kernel in given.lora.kernels:
        site = sites.get((layer_map.host_of(kernel.site.layer), kernel.site.role))
        if site is not None:
            yield kernel, site


def _sized(matrix: Tensor, size: int, dim: int) -> Tensor:
    """Cut or padded with zeros to a size along a dimension."""
    kept = matrix.narrow(dim, 0, min(size, matrix.shape[dim]))
    shape = list(kept.shape)
    shape[dim] = size - kept.shape[dim]
    return torch.cat([kept, kept.new_zeros(shape)], dim)
