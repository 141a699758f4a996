"""How well predicted activations agree with the true ones: pure functions on arrays [N, d].

Dimensions of a residual stream differ by orders of magnitude (some carry values a thousand times the rest),
so every measure here first standardises each dimension by the *truth's* mean and deviation. Without that, a
head that gets three massive dimensions right and nothing else would look perfect. All sums are in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
Measurement = Callable[[Array, Array], float]


@dataclass(frozen=True)
class Measured:
    """A measure beside its control.

    Attributes:
        value: the measure on the pairs as they belong together.
        control: the same measure after the truth's rows were shuffled.
    """

    value: float
    control: float


def measured(measure: Measurement, prediction: Array, truth: Array, *, seed: int = 0) -> Measured:
    """Take a measure, and its control on shuffled pairs."""
    return Measured(measure(prediction, truth), measure(prediction, shuffled(truth, seed=seed)))


def shuffled(rows: Array, *, seed: int = 0) -> Tensor:
    """The same rows [N, d] in a random order, by which every control is made."""
    rows = torch.as_tensor(rows)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def r_squared(prediction: Array, truth: Array) -> float:
    """Share of the truth's variance that is predicted: 1 - residual/variance, averaged over the dimensions.

    Args:
        prediction: [N, d].
        truth: [N, d]; dimensions that do not vary are left out.

    Returns:
        1 for a perfect prediction, 0 for the mean, below 0 for worse than the mean; 0 if nothing varies.
    """
    predicted, true = _standardised(prediction, truth)
    if not true.numel():
        return 0.0
    return 1.0 - float((predicted - true).square().mean())


def cosine(prediction: Array, truth: Array) -> float:
    """Mean cosine between predicted and true rows, both standardised by the truth."""
    predicted, true = _standardised(prediction, truth)
    if not true.numel():
        return 0.0
    return float(torch.nn.functional.cosine_similarity(predicted, true, dim=1).mean())


def knn_overlap(x: Array, y: Array, *, neighbours: int = 10) -> float:
    """Mutual k-nearest-neighbour overlap (Huh et al., arXiv 2405.07987): mean share of common neighbours.

    Args:
        x: [N, d_x].
        y: [N, d_y], another view of the same rows.
        neighbours: k; at most N - 1 are used.

    Returns:
        A share in [0, 1]; by chance it is k / (N - 1).
    """
    return shared_neighbours(nearest(x, neighbours), nearest(y, neighbours))


def debiased_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment with the unbiased HSIC estimator (Song et al. 2012; arXiv 2405.01012).

    The plain estimator grows with d / N even for independent rows; this one is about 0 there.

    Args:
        x: [N, d_x], N at least 4.
        y: [N, d_y].

    Returns:
        1 where the two have the same geometry, about 0 where they share none; 0 if N is below 4.
    """
    return aligned_grams(hollow_gram(x), hollow_gram(y))


def _standardised(prediction: Array, truth: Array) -> tuple[Tensor, Tensor]:
    predicted, true = (torch.as_tensor(rows).detach().cpu().double() for rows in (prediction, truth))
    mean, deviation = true.mean(0), true.std(0, unbiased=False)
    varies = deviation > 1e-12 * (1 + mean.abs())
    mean, deviation = mean[varies], deviation[varies]
    return (predicted[:, varies] - mean) / deviation, (true[:, varies] - mean) / deviation


def _own_scale(rows: Array) -> Tensor:
    return _standardised(rows, rows)[1]


def nearest(rows: Array, neighbours: int = 10) -> Tensor:
    """Which rows are the k nearest of each by cosine, itself left out: half of `knn_overlap`.

    Args:
        rows: [N, d].
        neighbours: k; at most N - 1 are used.

    Returns:
        [N, N] bool.
    """
    similarity = torch.nn.functional.normalize(_own_scale(rows), dim=1)
    similarity = similarity @ similarity.T
    k = max(0, min(neighbours, len(similarity) - 1))
    similarity.fill_diagonal_(-torch.inf)
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, similarity.topk(k, dim=1).indices, True)


def shared_neighbours(x: Tensor, y: Tensor) -> float:
    """Share of `nearest` neighbours [N, N] that two views have in common; 0 where there are none."""
    return float((x & y).sum()) / max(1, int(x.sum()))


def hollow_gram(rows: Array) -> Tensor:
    """Gram matrix [N, N] of standardised rows [N, d] with a zero diagonal: half of `debiased_cka`."""
    rows = _own_scale(rows)
    return (rows @ rows.T).fill_diagonal_(0)


def aligned_grams(x: Tensor, y: Tensor) -> float:
    """`debiased_cka` of two views by their `hollow_gram`s [N, N]."""
    if len(x) < 4:
        return 0.0
    scale = _unbiased_hsic(x, x) * _unbiased_hsic(y, y)
    return float(_unbiased_hsic(x, y) / scale.sqrt()) if scale > 0 else 0.0


def _unbiased_hsic(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 5 of Song et al. 2012 for Gram matrices [N, N] with zero diagonals, times N(N-3)."""
    n = len(a)
    trace, sum_a, sum_b = (a * b).sum(), a.sum(0), b.sum(0)
    return trace + sum_a.sum() * sum_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sum_a @ sum_b)
