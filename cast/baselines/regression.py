"""Sequential reduced-rank regression: a plain LoRA in closed form, block by block, by forward passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Kernel, Lora, applied
from cast.alignment import AlignedPairs
from cast.architecture import Site
from cast.baselines.registry import Given, baseline
from cast.carrying import Carrier
from cast.errors import AdapterError
from cast.models import TokenBatch
from cast.runners import PlainRunner, Runner
from cast.site_values import watched

# The sites whose outputs are added to the residual stream, in the order in which a block runs them.
_WRITING_ROLES = ("o", "down")
# Share of the inputs' mean power that is added to the diagonal.
_RIDGE = 1e-3


@baseline(
    "reduced-rank-regression",
    "Izenman 1975, with a ridge (Mukherjee & Zhu 2011), of what is missing of the carried change",
    text=True,
    heads=True,
)
def reduced_rank_regression(given: Given) -> Runner:
    """Regress what is missing of the carried residual change on each writing site's input, one by one.

    From the first block that hosts an adapted one to the last, at its attention's and then its MLP's output
    projection: with all kernels so far acting, X holds the site's inputs at the aligned pairs and R the
    carried change c_l of `cast.carrying` minus the change of h_l so far. The kernel is the minimiser of
    ‖R - X·ΔWᵀ‖² + λ‖ΔW‖² of the rank that `compiled` has. Where a family norms a site's output before it is
    added to the stream, the output is taken for what is added.
    """
    target, rank = given.target, given.config.served_rank(given.lora.rank)
    wanted = _wanted(given)
    sites = {(site.layer, site.role): site for site in target.architecture.sites}
    kernels: list[Kernel] = []
    for depth in wanted[0].states:
        for role in _WRITING_ROLES:
            if (site := sites.get((depth, role))) is not None:
                kernels.append(_fitted(given, site, wanted, kernels, rank))
    if not kernels:
        raise AdapterError(f"{target.name} has no output projection that could carry {given.lora.name}.")
    return PlainRunner(target, Lora("reduced-rank regression", target.name, tuple(kernels)))


@dataclass(frozen=True)
class _Wanted:
    """One batch of text, and where the target's states shall be at its N aligned pairs."""

    tokens: TokenBatch
    pairs: AlignedPairs
    states: Mapping[int, Tensor]
    """Depth l → h^T_l + c_l, float32 [N, d_t]."""


def _wanted(given: Given) -> list[_Wanted]:
    carrier = Carrier(given.source, given.target, given.lora, given.fitted_heads(), given.config.max_length)
    batches = (carrier.carry(texts, 1.0) for texts in given.batches())
    return [
        _Wanted(
            batch.tokens,
            batch.pairs,
            {depth: batch.base[depth] + batch.change[depth] for depth in batch.base},
        )
        for batch in batches
    ]


@torch.no_grad()
def _fitted(
    given: Given, site: Site, wanted: Sequence[_Wanted], so_far: Sequence[Kernel], rank: int
) -> Kernel:
    lm, depth = given.target, site.layer
    xx = torch.zeros(site.in_features, site.in_features, dtype=torch.float64)
    xr = torch.zeros(site.in_features, site.out_features, dtype=torch.float64)
    for batch in wanted:
        at = batch.pairs.row, batch.pairs.target_position
        with (
            applied(lm, Lora("so far", lm.name, tuple(so_far))),
            watched(lm, {site}, batch.tokens, False) as values,
        ):
            states = residuals(lm, batch.tokens, [depth])[depth]
        x = values.inputs[site.name][at].cpu().double()
        missing = (batch.states[depth] - states[at].float()).cpu().double()
        xx += x.T @ x
        xr += x.T @ missing
    a, b = reduced_rank(xx, xr, _RIDGE * float(xx.diagonal().mean()), rank)
    return Kernel(site, a.float(), b.float(), 1.0)


def reduced_rank(xx: Tensor, xr: Tensor, ridge: float, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] that minimise ‖R - X·(BA)ᵀ‖² + ridge·‖BA‖² among matrices of a rank.

    Args:
        xx: XᵀX [in, in], float64.
        xr: XᵀR [in, out].
        ridge: λ ≥ 0.
        rank: r.
    """
    gram = xx + ridge * torch.eye(len(xx), dtype=xx.dtype)
    whole = torch.cholesky_solve(xr, torch.linalg.cholesky(gram))
    # The fitted values' own strongest directions: ‖X·W‖² + λ‖W‖² is the trace of this.
    strongest = torch.linalg.eigh(whole.T @ xr).eigenvectors[:, -rank:]
    return (whole @ strongest).T, strongest
