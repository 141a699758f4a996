"""What passes through linear sites at aligned pairs: their inputs, and what decode maps are fitted on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cast.activations import residuals
from cast.alignment import AlignedPairs, align
from cast.architecture import Site
from cast.heads import HeadSet
from cast.models import LanguageModel, TokenBatch
from cast.recipes import DecodeFit
from cast.sites import SitePair

Rows = tuple[Tensor, Tensor]
"""Paired rows x [N, dim_x] and y [N, dim_y]."""


@dataclass(frozen=True)
class PairedSites:
    """One batch of text at N aligned pairs, for each `SitePair` in order.

    Attributes:
        encode: target site input and source site input. decode: what Q is regressed on; for the adjoint the
            gradient at the target site's output and that at the
            source site's output, else source site output and target site output.
        same_input: for each pair the first pair that reads the very same two tensors, as q, k and v do.
    """

    encode: tuple[Rows, ...]
    decode: tuple[Rows, ...]
    same_input: tuple[int, ...]
    pairs: AlignedPairs

    def __len__(self) -> int:
        """Number of aligned pairs N."""
        return len(self.pairs)


@dataclass(frozen=True)
class SiteValues:
    """Site name → [B, n, features] of one forward pass; probes are zeros added to outputs for a gradient."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    probes: dict[str, Tensor]


class SiteReader:
    """Reads batches of text at the sites of both models.

    Args:
        source: the source model.
        target: the target model.
        pairs: the site pairs.
        heads: heads of the two models; their layer map and decode heads define the adjoint.
        decode: what to take for the decode maps.
        seed: of the adjoint's random read-outs.
        max_length: longest row in tokens.
    """

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        pairs: Sequence[SitePair],
        heads: HeadSet,
        *,
        decode: DecodeFit,
        seed: int,
        max_length: int,
    ) -> None:
        self._source, self._target = source, target
        self._heads = heads.to(target.device)
        self._pairs = tuple(pairs)
        self._adjoint = decode == "adjoint"
        self._max_length = max_length
        self._random = torch.Generator().manual_seed(seed)
        first = min(pair.target.layer for pair in pairs)
        self._depths = tuple(depth for depth in heads.depths if depth >= first)

    def read(self, texts: Sequence[str]) -> PairedSites:
        """Run both models on one batch of texts."""
        at_source, at_target = (
            lm.encode(texts, max_length=self._max_length) for lm in (self._source, self._target)
        )
        aligned = align(at_source, at_target)
        mapped = {self._heads.layer_map[depth] for depth in self._depths}
        with torch.set_grad_enabled(self._adjoint):
            # One after the other: source and target may be the same model.
            with watched(
                self._source, {pair.source for pair in self._pairs}, at_source, self._adjoint
            ) as source:
                source_states = residuals(self._source, at_source, mapped)
            with watched(
                self._target, {pair.target for pair in self._pairs}, at_target, self._adjoint
            ) as target:
                target_states = residuals(self._target, at_target, self._depths)
            if self._adjoint:
                worth = self._gradients(source_states, target_states, source, target, aligned)
        first_reader: dict[tuple[int, int], int] = {}
        encode, decode, same_input = [], [], []
        for index, pair in enumerate(self._pairs):
            of_source, of_target = source.inputs[pair.source.name], target.inputs[pair.target.name]
            same_input.append(first_reader.setdefault((of_source.data_ptr(), of_target.data_ptr()), index))
            encode.append((_at_target(of_target, aligned).cpu(), _at_source(of_source, aligned).cpu()))
            if self._adjoint:
                of_source, of_target = worth[0][pair.source.name], worth[1][pair.target.name]
                decode.append((_at_target(of_target, aligned).cpu(), _at_source(of_source, aligned).cpu()))
            else:
                of_source, of_target = source.outputs[pair.source.name], target.outputs[pair.target.name]
                decode.append((_at_source(of_source, aligned).cpu(), _at_target(of_target, aligned).cpu()))
        return PairedSites(tuple(encode), tuple(decode), tuple(same_input), aligned)

    def _gradients(
        self,
        source_states: Mapping[int, Tensor],
        target_states: Mapping[int, Tensor],
        source: SiteValues,
        target: SiteValues,
        aligned: AlignedPairs,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the same random read-outs of both residual streams, at the sites' outputs."""
        source_worth, target_worth = [], []
        for depth in self._depths:
            own = _at_target(target_states[depth], aligned).float()
            mapped = _at_source(source_states[self._heads.layer_map[depth]], aligned).to(own)
            carried = self._heads.at(depth).decode(mapped)
            # Deep residuals are larger by orders of magnitude; every dimension shall have its say.
            u = torch.randn(own.shape, generator=self._random).to(own) / own.detach().std(0).clamp_min(1e-6)
            target_worth.append((u * own).sum())
            source_worth.append((u * carried).sum())
        return (
            gradient_at(torch.stack(source_worth).sum(), source.probes),
            gradient_at(torch.stack(target_worth).sum(), target.probes),
        )


def _at_source(values: Tensor, aligned: AlignedPairs) -> Tensor:
    return values[aligned.row, aligned.source_position]


def _at_target(values: Tensor, aligned: AlignedPairs) -> Tensor:
    return values[aligned.row, aligned.target_position]


@contextmanager
def watched(lm: LanguageModel, sites: Iterable[Site], batch: TokenBatch, probe: bool) -> Iterator[SiteValues]:
    """Keep what passes through sites during a forward pass on `batch`; with probes it records a graph."""
    values = SiteValues({}, {}, {})
    with ExitStack() as stack:
        for site in sites:
            hook = partial(_watch, values, site.name, batch.input_ids.shape, probe)
            stack.callback(lm.architecture.module(site).register_forward_hook(hook).remove)
        yield values


def _watch(
    values: SiteValues,
    name: str,
    shape: torch.Size,
    probe: bool,
    module: nn.Module,
    args: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    # Some families flatten rows and positions on the way into a linear layer.
    values.inputs[name] = args[0].detach().reshape(*shape, -1)
    values.outputs[name] = output.detach().reshape(*shape, -1)
    if not probe:
        return output
    values.probes[name] = torch.zeros_like(values.outputs[name], requires_grad=True)
    return output + values.probes[name].view_as(output)


def gradient_at(worth: Tensor, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of `worth` at every probe; zero where a site has no part in it."""
    found = torch.autograd.grad(worth, list(probes.values()), allow_unused=True)
    return {
        name: torch.zeros_like(probe) if gradient is None else gradient
        for (name, probe), gradient in zip(probes.items(), found, strict=True)
    }
