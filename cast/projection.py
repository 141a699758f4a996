"""Clouds of one space laid on one map by PCA or UMAP, and how faithful the map is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from cast.errors import RequestError
from cast.progress import OnProgress, Progress, ignore
from cast.umap_layout import laid_out, prepare

Method = Literal["umap", "pca"]

_PCA_DIMENSIONS = 50
_NEIGHBOURS = 15
# Trustworthiness sorts all distances: a sample is enough for two digits.
_TRUSTWORTHINESS_SAMPLE = 1000
# Fewer points have no neighbourhoods to speak of.
_FEWEST_POINTS = 20
# UMAP's own start has about this extent.
_UMAP_EXTENT = 10.0


@dataclass(frozen=True, eq=False)
class Projection:
    """Clouds of points after one joint fit."""

    clouds: tuple[np.ndarray, ...]
    """Each [N, k] float64, in the order in which they were given; k = 2 or 3."""
    trustworthiness: float
    """Share of the map's neighbourhoods that are real ones (Venna & Kaski 2001), in [0, 1]."""
    kept_variance: float
    """Share of the standardised variance in the principal components that the map was made from."""


def project(
    clouds: Sequence[np.ndarray],
    method: Method = "umap",
    *,
    dimensions: int = 2,
    seed: int = 0,
    start: Projection | None = None,
    on_progress: OnProgress = ignore,
) -> Projection:
    """Lay clouds of one space on one map: standardise their union, keep its first 50 components, project.

    Args:
        clouds: each [N, d].
        method: `pca` (linear, instant) or `umap` (its first use compiles for some seconds).
        dimensions: k, 2 or 3.
        seed: of UMAP; the same seed gives the same map on the same machine.
        start: a map of the same points from which UMAP begins.
        on_progress: gets the stage `map`, in UMAP a step an epoch, after the steps of `umap_layout.prepare`;
            may raise `Cancelled`.

    Raises:
        RequestError: fewer than 20 points altogether, values that are not finite, or another k.
    """
    if dimensions not in (2, 3):
        raise RequestError(f"A map has 2 or 3 dimensions, not {dimensions}.")
    if method == "pca":
        on_progress(Progress("map", 0, 1))
    points, kept = _reduced(np.concatenate(clouds), dimensions)
    if method == "pca":
        mapped = points[:, :dimensions]
        on_progress(Progress("map", 1, 1))
    else:
        mapped = _umap(points, dimensions, seed, start, on_progress)
    cuts = np.cumsum([len(cloud) for cloud in clouds])[:-1]
    return Projection(tuple(np.split(mapped, cuts)), _trustworthiness(points, mapped, seed), kept)


def _reduced(union: np.ndarray, dimensions: int) -> tuple[np.ndarray, float]:
    """The first principal components of standardised points [N, d], and the share of variance in them."""
    union = union.astype(np.float64)
    if len(union) < _FEWEST_POINTS:
        raise RequestError(f"{len(union)} points make no map; at least {_FEWEST_POINTS} are needed.")
    if not np.isfinite(union).all():
        raise RequestError("Some activations are not finite; load the model in float32 or bfloat16.")
    deviation = union.std(0)
    # A dimension that never varies says nothing, and must not be divided by its rounding error.
    varies = deviation > 1e-12 * (1 + np.abs(union.mean(0)))
    if varies.sum() < dimensions:
        raise RequestError("The activations do not vary in enough dimensions; give more varied text.")
    union = (union[:, varies] - union[:, varies].mean(0)) / deviation[varies]
    pca = PCA(n_components=min(_PCA_DIMENSIONS, *union.shape), svd_solver="full")
    points = pca.fit_transform(union)
    return points, float(pca.explained_variance_ratio_.sum())


def aligned_to(found: Projection, before: Projection) -> Projection:
    """The same map turned and mirrored so that its points lie near those of the map before it."""
    union, earlier = (np.concatenate(maps.clouds) for maps in (found, before))
    centre = union.mean(0)
    turn, _ = orthogonal_procrustes(union - centre, earlier - earlier.mean(0))
    return replace(found, clouds=tuple((cloud - centre) @ turn for cloud in found.clouds))


def _umap(
    points: np.ndarray, dimensions: int, seed: int, start: Projection | None, on_progress: OnProgress
) -> np.ndarray:
    prepare(on_progress)
    places = None
    if start is not None:
        places = np.concatenate(start.clouds)
        places = _UMAP_EXTENT * (places - places.mean(0)) / max(np.abs(places).max(), 1e-12)
    return laid_out(points, dimensions, seed, places, on_progress)


def _trustworthiness(points: np.ndarray, mapped: np.ndarray, seed: int) -> float:
    size = min(len(points), _TRUSTWORTHINESS_SAMPLE)
    chosen = np.random.default_rng(seed).choice(len(points), size=size, replace=False)
    neighbours = min(_NEIGHBOURS, (size - 1) // 2)
    return float(trustworthiness(points[chosen], mapped[chosen], n_neighbors=neighbours))
