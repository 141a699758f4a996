"""How alike every layer of a source is to every layer of a target, without heads, by three measures.

CKA and neighbours compare two spaces of any widths. R² is that of a linear map from one to the other, fitted
on some texts and measured on others.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cast.layer_measures import CKA, MEASURES, NEIGHBOURS, R_SQUARED
from cast.measures import aligned_grams, hollow_gram, nearest, r_squared, shared_neighbours, shuffled
from cast.models import LanguageModel
from cast.progress import OnProgress, Progress, ignore
from cast.token_states import TokenStates, Turns, read_states

# R² is measured on the rest.
_FITTED_SHARE = 0.6
_RIDGES = np.logspace(-1, 5, 7)


@dataclass(frozen=True, eq=False)
class Grid:
    """One measure of all pairs of layers."""

    values: np.ndarray
    """[L_s + 1, L_t + 1], source depth by target depth."""
    controls: np.ndarray
    """The same after the target's rows were shuffled."""


@dataclass(frozen=True, eq=False)
class LayerGrids:
    """Every measure of all pairs of layers, by its name in `layer_measures.MEASURES`."""

    grids: Mapping[str, Grid]
    tokens: int
    """Tokens that were read; R² is fitted on a part of them and measured on the rest."""


@torch.no_grad()
def compare_layers(
    source: LanguageModel,
    target: LanguageModel,
    texts: Iterable[str],
    *,
    points: int = 600,
    seed: int = 0,
    turns: Turns = nullcontext,
    on_progress: OnProgress = ignore,
) -> LayerGrids:
    """Compare all layers of two models on the same tokens.

    Args:
        source: the source model.
        target: the target model.
        texts: held-out general text.
        points: tokens to compare on.
        seed: of their choice, and of the shuffling.
        turns: makes a context that is held during each pass of a model.
        on_progress: gets the stages `activations` and `layers`.

    Raises:
        CorpusError: the texts hold too few aligned tokens.
    """
    states = read_states(
        source, target, texts, points=points, source_depths=range(source.depth + 1),
        target_depths=range(target.depth + 1), seed=seed, turns=turns, on_progress=on_progress,
    )  # fmt: skip
    order = shuffled(torch.arange(len(states.places)), seed=seed)
    views: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], float]]] = {
        CKA: (hollow_gram, aligned_grams),
        NEIGHBOURS: (nearest, shared_neighbours),
    }
    shape = (source.depth + 1, target.depth + 1)
    grids = {name: Grid(np.zeros(shape), np.zeros(shape)) for name in MEASURES}
    # Each view of the target's layers is made once, and one of the source's at a time: N² each.
    at_target = {
        name: [make(states.target[depth]) for depth in range(shape[1])] for name, (make, _) in views.items()
    }
    for i in range(shape[0]):
        on_progress(Progress("layers", i, shape[0]))
        for name, (make, compare) in views.items():
            own = make(states.source[i])
            for j, other in enumerate(at_target[name]):
                grids[name].values[i, j] = compare(own, other)
                grids[name].controls[i, j] = compare(own, other[order][:, order])
        grids[R_SQUARED].values[i], grids[R_SQUARED].controls[i] = _explained(states, i, seed)
    on_progress(Progress("layers", *shape[:1] * 2))
    return LayerGrids(grids, len(states.places))


def _explained(states: TokenStates, source_depth: int, seed: int) -> tuple[list[float], list[float]]:
    """Held-out R² of every target layer by one source layer, and the same with the truth's rows shuffled."""
    # Places stand in the order of their texts: what is measured on is of other texts.
    cut = round(len(states.places) * _FITTED_SHARE)
    x, truths = states.source[source_depth], [states.target[depth] for depth in sorted(states.target)]
    # One decomposition serves the outputs of all layers, each with a ridge of its own.
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=_RIDGES, alpha_per_target=True))
    ridge.fit(x[:cut].double().numpy(), torch.cat([truth[:cut] for truth in truths], dim=1).double().numpy())
    predicted = torch.from_numpy(ridge.predict(x[cut:].double().numpy()))
    pairs = list(zip(predicted.split([truth.shape[1] for truth in truths], dim=1), truths, strict=True))
    return (
        [r_squared(found, truth[cut:]) for found, truth in pairs],
        [r_squared(found, shuffled(truth[cut:], seed=seed)) for found, truth in pairs],
    )
