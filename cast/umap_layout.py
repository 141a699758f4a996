"""UMAP in steps of its own functions: whoever waits sees how far it is, and may stop it between two.

`umap.UMAP` does the same in one call that says nothing for its first seconds. Beyond 4,096 points it also
looks for neighbours approximately, with a search that compiles for longer than the exact one takes for a map.
"""

import re
import sys

import numpy as np
from sklearn.neighbors import NearestNeighbors

from cast.progress import OnProgress, Progress

_NEIGHBOURS = 15
# UMAP's own defaults.
_SPREAD, _LEAST_DISTANCE, _NEGATIVES = 1.0, 0.1, 5
# Of ten parts of the time, the import takes two, the first function six and the second the rest.
_IMPORTED, _FIRST_COMPILED, _PREPARED = 2, 8, 10
_MODULE = "umap.umap_"


def prepare(on_progress: OnProgress) -> None:
    """Import and compile what UMAP runs: seconds once in a process, nothing afterwards, and then no report.

    Args:
        on_progress: gets the stage `umap`, after the import and each of the two functions.
    """
    if _MODULE not in sys.modules:
        on_progress(Progress("umap", 0, _PREPARED))
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    if compute_membership_strengths.signatures:
        return
    places = np.tile(np.arange(3), (3, 1))
    distances = places.astype(np.float32)
    on_progress(Progress("umap", _IMPORTED, _PREPARED))
    sigmas, rhos = smooth_knn_dist(distances, 3.0, local_connectivity=1.0)
    on_progress(Progress("umap", _FIRST_COMPILED, _PREPARED))
    compute_membership_strengths(places, distances, sigmas, rhos, None)
    on_progress(Progress("umap", _PREPARED, _PREPARED))


def laid_out(
    points: np.ndarray, dimensions: int, seed: int, start: np.ndarray | None, on_progress: OnProgress
) -> np.ndarray:
    """UMAP of points by Euclidean distance, on one thread: the same seed gives the same map.

    Args:
        points: [N, d].
        dimensions: k of the map.
        seed: of the start and of the optimisation.
        start: [N, k] places to begin from; by default the graph's spectral ones.
        on_progress: gets the stage `map`, a step an epoch; may raise `Cancelled` between two.

    Returns:
        [N, k] float64.
    """
    from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    points = points.astype(np.float32)
    neighbours = min(_NEIGHBOURS, len(points) - 1)
    random = np.random.RandomState(seed)
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(points)
    distances, places = search.kneighbors(points)
    # By rounding a point lies a little off itself, and UMAP would take that for its nearest neighbour.
    distances[places == np.arange(len(points))[:, None]] = 0.0
    graph, _, _ = fuzzy_simplicial_set(
        points, neighbours, random, "euclidean", knn_indices=places, knn_dists=distances
    )
    a, b = find_ab_params(_SPREAD, _LEAST_DISTANCE)
    placed, _ = simplicial_set_embedding(
        points, graph, dimensions, initial_alpha=1.0, a=a, b=b, gamma=1.0,
        negative_sample_rate=_NEGATIVES, n_epochs=None,
        init="spectral" if start is None else start.astype(np.float32), random_state=random,
        metric="euclidean", metric_kwds={}, densmap=False, densmap_kwds={}, output_dens=False,
        tqdm_kwds=_Epochs(on_progress).bar,
    )  # fmt: skip
    return np.asarray(placed, dtype=np.float64)


class _Epochs:
    """The file to which UMAP's progress bar is written: its only word between two epochs."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    @property
    def bar(self) -> dict[str, object]:
        return {
            "file": self, "disable": False, "bar_format": "{n_fmt}/{total_fmt}", "mininterval": 0.2,
            "miniters": 1,
        }  # fmt: skip

    def write(self, text: str) -> None:
        if found := re.search(r"(\d+)/(\d+)", text):
            self._on_progress(Progress("map", int(found[1]), int(found[2])))

    def flush(self) -> None:
        pass
