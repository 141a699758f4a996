"""A picture of two models' activations in one space, and the measures that must stand beside it.

A map by UMAP shows neighbourhoods, not distances, and can draw any two clouds apart or together. So both
clouds are fitted jointly, the map's own faithfulness (trustworthiness) is measured, and the claim that they
belong together rests on the held-out measures with their shuffled control, not on the picture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from torch import Tensor

from cast.activations import paired_batch
from cast.adapters import Lora, applied
from cast.errors import CorpusError, RequestError
from cast.heads import HeadPair, HeadSet
from cast.measures import Measured, Measurement, cosine, debiased_cka, knn_overlap, measured, r_squared
from cast.models import LanguageModel
from cast.progress import OnProgress, Progress, ignore

Method = Literal["umap", "pca"]

_PCA_DIMENSIONS = 50
_NEIGHBOURS = 15
# Trustworthiness sorts all distances: a sample is enough for two digits.
_TRUSTWORTHINESS_SAMPLE = 1000
# Fewer points have no neighbourhoods to speak of.
_FEWEST_POINTS = 20
_CONTEXT = 24


@dataclass(frozen=True, eq=False)
class Projection:
    """Two clouds of points after one joint fit."""

    method: Method
    source: np.ndarray
    """[N, k] float64, k = 2 or 3."""
    target: np.ndarray
    """[M, k] float64."""
    trustworthiness: float
    """Share of the map's neighbourhoods that are real ones (Venna & Kaski 2001), in [0, 1]."""
    kept_variance: float
    """Share of the standardised variance in the principal components that the map was made from."""


@dataclass(frozen=True, eq=False)
class Manifold:
    """Source and target activations at one depth, token by token, in the target's space.

    Row i of every array belongs to the same place of the same text.
    """

    depth: int
    """Target depth l."""
    source_depth: int
    """m(l)."""
    method: Method
    source: np.ndarray
    """[N, k]: where D_l(h^S_{m(l)}) lies on the map."""
    target: np.ndarray
    """[N, k]: where h^T_l lies."""
    adapted: np.ndarray | None
    """[N, k]: where D_l(h^{S+}_{m(l)}) lies, with the source's adapter; None without one."""
    tokens: tuple[str, ...]
    """The target's token at each place, as it stands in the text."""
    contexts: tuple[str, ...]
    """The text up to and with the token, shortened from the left."""
    measures: dict[str, Measured]
    """R², cosine, k-NN overlap, debiased CKA of the clouds in full width, each with its shuffled control."""
    trustworthiness: float
    kept_variance: float


def project(
    source_points: np.ndarray,
    target_points: np.ndarray,
    method: Method = "umap",
    *,
    dimensions: int = 2,
    seed: int = 0,
) -> Projection:
    """Lay two clouds of one space on one map: standardise the union, keep its first 50 components, project.

    Args:
        source_points: [N, d].
        target_points: [M, d].
        method: `pca` (linear, instant) or `umap` (its first use compiles for some seconds).
        dimensions: k, 2 or 3.
        seed: of UMAP; the same seed gives the same map on the same machine.

    Raises:
        RequestError: fewer than 20 points altogether, values that are not finite, or another k.
    """
    if dimensions not in (2, 3):
        raise RequestError(f"A map has 2 or 3 dimensions, not {dimensions}.")
    union = np.concatenate([source_points, target_points]).astype(np.float64)
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
    reduced = pca.fit_transform(union)
    mapped = reduced[:, :dimensions] if method == "pca" else _umap(reduced, dimensions, seed)
    return Projection(
        method=method,
        source=mapped[: len(source_points)],
        target=mapped[len(source_points) :],
        trustworthiness=_trustworthiness(reduced, mapped, seed),
        kept_variance=float(pca.explained_variance_ratio_.sum()),
    )


def _umap(points: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    # Imported here: it compiles for seconds, and the linear map needs none of it.
    from umap import UMAP

    neighbours = min(_NEIGHBOURS, len(points) - 1)
    # A fixed seed runs on one thread; saying so ourselves avoids UMAP's warning about it.
    mapper = UMAP(n_components=dimensions, n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(mapper.fit_transform(points), dtype=np.float64)


def _trustworthiness(points: np.ndarray, mapped: np.ndarray, seed: int) -> float:
    size = min(len(points), _TRUSTWORTHINESS_SAMPLE)
    chosen = np.random.default_rng(seed).choice(len(points), size=size, replace=False)
    neighbours = min(_NEIGHBOURS, (size - 1) // 2)
    return float(trustworthiness(points[chosen], mapped[chosen], n_neighbors=neighbours))


@dataclass(frozen=True)
class _Place:
    """Activations at aligned places of one batch of texts."""

    source: Tensor  # [N, d_t], decoded
    target: Tensor  # [N, d_t]
    adapted: Tensor | None
    tokens: list[str]
    contexts: list[str]


def manifold(
    source_lm: LanguageModel,
    target_lm: LanguageModel,
    heads: HeadSet,
    texts: Iterable[str],
    depth: int,
    *,
    lora: Lora | None = None,
    points: int = 2000,
    method: Method = "umap",
    dimensions: int = 2,
    seed: int = 0,
    batch_size: int = 16,
    on_progress: OnProgress = ignore,
) -> Manifold:
    """Map both models' activations at one target depth, the source's carried over by the decode head.

    Args:
        source_lm: the source model.
        target_lm: the target model.
        heads: of this ordered pair.
        texts: held-out general text, none of it fitted on; only as much is read as is needed.
        depth: target depth l, 0 … L_t.
        lora: adapter of the source, to show where it moves the tokens.
        points: aligned tokens on the map.
        method: `umap` or `pca`.
        dimensions: 2 or 3.
        seed: of the choice of tokens, and of UMAP.
        batch_size: texts at once.
        on_progress: gets stages `activations` and `map`.

    Raises:
        RequestError: the target has no such depth.
        CorpusError: the texts hold too few aligned tokens.
    """
    if not 0 <= depth <= target_lm.depth:
        raise RequestError(f"{target_lm.name} has depths 0 to {target_lm.depth}; there is no depth {depth}.")
    pair = heads.at(depth)
    places: list[_Place] = []
    found = 0
    for place in _places(source_lm, target_lm, heads, pair, texts, depth, lora, batch_size):
        places.append(place)
        found += len(place.tokens)
        on_progress(Progress("activations", min(found, points), points))
        # Twice as many as are shown, so that the tokens on the map come from many texts.
        if found >= 2 * points:
            break
    if 2 * found < _FEWEST_POINTS:
        raise CorpusError(
            f"The texts hold {found} aligned tokens; a map needs {_FEWEST_POINTS // 2} at least."
        )
    chosen = np.sort(np.random.default_rng(seed).choice(found, size=min(points, found), replace=False))
    source, target = (
        torch.cat(rows)[chosen] for rows in zip(*((p.source, p.target) for p in places), strict=True)
    )
    adapted = torch.cat([p.adapted for p in places if p.adapted is not None])[chosen] if lora else None
    on_progress(Progress("map", 0, 1))
    clouds = source if adapted is None else torch.cat([source, adapted])
    projection = project(clouds.numpy(), target.numpy(), method, dimensions=dimensions, seed=seed)
    on_progress(Progress("map", 1, 1))
    tokens = [token for place in places for token in place.tokens]
    contexts = [context for place in places for context in place.contexts]
    return Manifold(
        depth=depth,
        source_depth=heads.layer_map[depth],
        method=method,
        source=projection.source[: len(chosen)],
        target=projection.target,
        adapted=None if adapted is None else projection.source[len(chosen) :],
        tokens=tuple(tokens[index] for index in chosen),
        contexts=tuple(contexts[index] for index in chosen),
        measures=_measures(source, target),
        trustworthiness=projection.trustworthiness,
        kept_variance=projection.kept_variance,
    )


@torch.no_grad()
def _places(
    source_lm: LanguageModel,
    target_lm: LanguageModel,
    heads: HeadSet,
    pair: HeadPair,
    texts: Iterable[str],
    depth: int,
    lora: Lora | None,
    batch_size: int,
) -> Iterator[_Place]:
    iterator = iter(texts)
    while chunk := tuple(islice(iterator, batch_size)):
        batch = paired_batch(source_lm, target_lm, chunk, heads.layer_map, depths=[depth])
        adapted = None
        if lora is not None:
            with applied(source_lm, lora):
                moved = paired_batch(source_lm, target_lm, chunk, heads.layer_map, depths=[depth])
            adapted = pair.decode(moved.source[depth]).cpu()
        tokens, contexts = _labels(target_lm, chunk, batch.pairs.row, batch.pairs.target_position)
        yield _Place(
            pair.decode(batch.source[depth]).cpu(), batch.target[depth].cpu(), adapted, tokens, contexts
        )


def _labels(
    lm: LanguageModel, texts: tuple[str, ...], row: Tensor, position: Tensor
) -> tuple[list[str], list[str]]:
    """The text of each token, and the stretch of text that ends with it."""
    ends = lm.encode(texts, max_length=256).ends.tolist()
    tokens, contexts = [], []
    for r, p in zip(row.tolist(), position.tolist(), strict=True):
        end = ends[r][p]
        # Tokens that share a character share their end: the token's own text starts at the end before.
        start = max((before for before in ends[r][:p] if before < end), default=0)
        tokens.append(texts[r][max(start, 0) : end])
        contexts.append(("…" if end > _CONTEXT else "") + texts[r][max(0, end - _CONTEXT) : end])
    return tokens, contexts


def _measures(source: Tensor, target: Tensor) -> dict[str, Measured]:
    named: dict[str, Measurement] = {
        "R²": r_squared,
        "cosine": cosine,
        "k-NN overlap": knn_overlap,
        "CKA": debiased_cka,
    }
    return {name: measured(measure, source, target) for name, measure in named.items()}
