"""Weight-space transfers: the singular directions of the base weights stand for each other. No text is read.

With W = U Σ Vᵀ the base weights of two paired layers, s of the source and t of the target, ΔW_s = s·B·A of
the source is carried to ΔW_t. Both papers compare models of one architecture and leave open which layers
belong together when depths differ: here those of one role at the same relative depth, as everywhere in CAST.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cast.adapters import Kernel, Lora
from cast.architecture import Site
from cast.baselines.registry import Given, baseline
from cast.models import LanguageModel
from cast.runners import PlainRunner, Runner
from cast.sites import SitePair

# Cross-LoRA's own truncation; narrower layers keep all their directions.
_TRUNCATED = 320


@baseline("cross-lora", "arXiv 2508.05232, eq. 1-7: LoRA-Align and LoRA-Shift on rank-truncated SVDs")
def cross_lora(given: Given) -> Runner:
    """ΔW_t = Ũ Ũᵀ ΔW_s Ṽ Ṽᵀ (eq. 7), Ũ = P_U·U_s with P_U = argmin ‖P·U_s - U_t‖ (eq. 3-6), Ṽ alike.

    U and V hold the strongest singular directions, 320 at most and as many of both layers. Since U_s has
    orthonormal columns, P_U = U_t·U_sᵀ and Ũ = U_t. Eq. 7 multiplies matrices of the target's width with
    ΔW_s, which has the source's; where a width differs, ΔW_s is first carried by the paper's own map, P_U on
    the left or P_Vᵀ on the right, without which eq. 7 has no meaning. The rank stays the kernel's.
    """
    return _runner(given, "Cross-LoRA", list(_cross_lora_kernels(given)))


def _cross_lora_kernels(given: Given) -> Iterator[tuple[SitePair, Tensor, Tensor]]:
    for pair, kernel in _paired(given):
        (u_s, v_s), (u_t, v_t) = _directions(given, pair)
        left, right = u_t @ _shared(u_s, u_t).T, v_t @ _shared(v_s, v_t).T
        yield pair, kernel.a.double() @ right.T, pair.weight * kernel.scaling * (left @ kernel.b.double())


@baseline("lora-x", "arXiv 2501.16559: U_t U_tᵀ (U_s ΔΣ V_sᵀ) V_t V_tᵀ, ΔΣ diagonal")
def lora_x(given: Given) -> Runner:
    """The source's change of singular values, projected onto the singular subspaces of the target's weight.

    A LoRA-X adapter is U_s·ΔΣ·V_sᵀ with a diagonal ΔΣ; the nearest one to a plain LoRA in Frobenius norm is
    ΔΣ = diag(U_sᵀ ΔW_s V_s). Where the widths agree it is projected by U_t·U_tᵀ and V_t·V_tᵀ; where one
    differs, U_s is first mapped by the paper's P = argmin ‖P·U_s - U_t‖, so that it becomes U_t itself. The
    paper leaves out layers whose subspaces are unlike; models trained apart have no alike ones, so here none
    is left out. What comes out is cut to the kernel's rank by an SVD.
    """
    return _runner(given, "LoRA-X", list(_lora_x_kernels(given)))


def _lora_x_kernels(given: Given) -> Iterator[tuple[SitePair, Tensor, Tensor]]:
    for pair, kernel in _paired(given):
        (u_s, v_s), (u_t, v_t) = _directions(given, pair)
        shift = torch.einsum("or,oi,ir->r", u_s, kernel.delta.double(), v_s)
        left, right = (
            t @ _shared(s, t).T @ s if len(s) == len(t) else t for s, t in ((u_s, u_t), (v_s, v_t))
        )
        a, b = low_rank((left * shift) @ right.T, kernel.rank)
        yield pair, a, pair.weight * b


def _shared(of_source: Tensor, of_target: Tensor) -> Tensor:
    """What reads coordinates along the target's directions [width, r] out of a vector of the source."""
    return of_target if len(of_source) == len(of_target) else of_source


def _paired(given: Given) -> Iterator[tuple[SitePair, Kernel]]:
    kernels = {kernel.site: kernel for kernel in given.lora.kernels}
    return ((pair, kernels[pair.source]) for pair in given.site_pairs())


def _directions(given: Given, pair: SitePair) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """U [out, r] and V [in, r] of the two base weights, strongest first, r the same for both."""
    weights = weight_of(given.source, pair.source), weight_of(given.target, pair.target)
    rank = min(_TRUNCATED, *(size for weight in weights for size in weight.shape))
    found = []
    for weight in weights:
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        found.append((left[:, :rank], right[:rank].T))
    return found[0], found[1]


def weight_of(lm: LanguageModel, site: Site) -> Tensor:
    """The base weight of a linear site as float64 [out, in], on the CPU."""
    module = lm.architecture.module(site)
    assert isinstance(module.weight, nn.Parameter)
    weight = module.weight.detach().cpu().double()
    return weight.T if site.fan_in_fan_out else weight


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of the nearest matrix of a rank to delta [out, in]."""
    left, spectrum, right = torch.linalg.svd(delta, full_matrices=False)
    return right[:rank], left[:, :rank] * spectrum[:rank]


def _runner(given: Given, name: str, sides: list[tuple[SitePair, Tensor, Tensor]]) -> Runner:
    """The target with a plain LoRA; several source sites on one target site stand one below the other."""
    by_site: dict[Site, list[tuple[Tensor, Tensor]]] = {}
    for pair, a, b in sides:
        by_site.setdefault(pair.target, []).append((a.float(), b.float()))
    kernels = tuple(
        Kernel(site, torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1), 1.0)
        for site, parts in by_site.items()
    )
    return PlainRunner(given.target, Lora(name, given.target.name, kernels))
