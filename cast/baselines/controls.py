"""Controls: CAST's own modes with one part replaced by chance. What they still carry, chance carries."""

import random
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from cast.adapters import Kernel, Lora
from cast.baselines.registry import Given, baseline
from cast.errors import AdapterError
from cast.gain import matched_gain
from cast.headmaps import AffineHead, HeadPair
from cast.hosting import HostedRunner
from cast.runners import PlainRunner, Runner
from cast.site_fitting import fit_site_maps
from cast.sites import SiteMap, SiteMaps


@baseline(
    "random-heads",
    "control of hosted-states: heads with the fitted means and scales, random weights",
    heads=True,
)
def random_heads(given: Given) -> Runner:
    """The whole source stack through drawn heads: N(0, 1/in) in standardised coordinates."""
    heads = given.fitted_heads()
    generator = torch.Generator().manual_seed(given.config.seed)
    pairs = tuple(
        pair and HeadPair(_drawn(pair.encode, generator), _drawn(pair.decode, generator))
        for pair in heads.pairs
    )
    return HostedRunner(given.source, given.lora, given.target, replace(heads, pairs=pairs), segment=None)


def _drawn(head: AffineHead, generator: torch.Generator) -> AffineHead:
    """An affine head of the same standardised coordinates with random weights."""
    made = AffineHead(head.in_features, head.out_features).requires_grad_(False)
    for name, value in head.named_buffers():
        getattr(made, name).copy_(value)
    made.weight.copy_(torch.randn(made.weight.shape, generator=generator) / head.in_features**0.5)
    return made


@baseline(
    "random-maps", "control of instant: site maps of the fitted norms, random matrices", text=True, heads=True
)
def random_maps(given: Given) -> Runner:
    """A_t = A·P and B_t = s·Q·B with P and Q drawn, each as large (Frobenius) as the fitted one."""
    generator = torch.Generator().manual_seed(given.config.seed)
    maps = []
    for site_map in _site_maps(given).maps:
        encode = AffineHead.of(_as_large(site_map.encode.linear_map(), generator))
        maps.append(SiteMap(site_map.pair, encode, _as_large(site_map.decode, generator)))
    return _plain(given, "random maps", SiteMaps(tuple(maps)).instant(given.lora))


def _as_large(matrix: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(matrix.shape, generator=generator)
    return drawn * (matrix.norm() / drawn.norm())


@baseline(
    "shuffled-layers", "control of instant: each kernel in the block of another one", text=True, heads=True
)
def shuffled_layers(given: Given) -> Runner:
    """The kernels of `instant`, each in the same role of another block; none stays in its own.

    Raises:
        AdapterError: the target has a single block.
    """
    sites = {(site.layer, site.role): site for site in given.target.architecture.sites}
    kernels = _site_maps(given).instant(given.lora)
    layers = sorted({kernel.site.layer for kernel in kernels})
    if len(layers) == 1:
        layers = list(range(1, given.target.depth + 1))
    if len(layers) < 2:
        raise AdapterError(f"{given.target.name} has a single block, so no layers can be exchanged.")
    random.Random(given.config.seed).shuffle(layers)
    place = dict(zip(layers, [*layers[1:], layers[0]], strict=True))
    moved = [
        replace(kernel, site=sites[place[kernel.site.layer], kernel.site.role])
        for kernel in kernels
        if (place[kernel.site.layer], kernel.site.role) in sites
    ]
    return _plain(given, "shuffled layers", tuple(moved))


def _site_maps(given: Given) -> SiteMaps:
    """The maps of mode `instant`."""
    return fit_site_maps(
        given.source,
        given.target,
        given.lora,
        given.fitted_heads(),
        given.texts,
        given.config,
        cache=given.cache,
    )


def _plain(given: Given, name: str, kernels: tuple[Kernel, ...]) -> Runner:
    """As strong as `instant` makes them."""
    lora, config = Lora(name, given.target.name, kernels), given.config
    texts = given.texts[: config.batch_size]
    gain = matched_gain(given.source, given.lora, partial(PlainRunner, given.target, lora), texts, config)
    return PlainRunner(given.target, lora, gain)
