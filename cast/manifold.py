"""A picture of two models' activations in one space, and the measures that must stand beside it.

A map by UMAP shows neighbourhoods, not distances, and can draw any two clouds apart or together. So all
clouds are fitted jointly, the map's own faithfulness (trustworthiness) is measured, and the claim that they
belong together rests on the held-out measures with their shuffled control, not on the picture.

`read_pairs` runs the models, `drawn` and `drawn_along` lay out what was read; `manifold` is both for one
pair of depths.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cast.activations import Moments
from cast.adapters import Lora
from cast.errors import RequestError
from cast.fitters import ridge_head
from cast.heads import HeadSet
from cast.layer_measures import CKA, NEIGHBOURS, R_SQUARED
from cast.measures import Measured, Measurement, cosine, debiased_cka, knn_overlap, measured, r_squared
from cast.models import LanguageModel
from cast.progress import OnProgress, Progress, ignore
from cast.projection import Method, Projection, aligned_to, project
from cast.runners import Runner
from cast.token_states import TokenPlace, TokenStates, Turns, read_states

Spaces = Literal["joint", "own"]
Decode = Callable[[Tensor], Tensor]

# Tokens of other text that a linear map is fitted on where no head belongs to a pair of depths; a share of
# them chooses its ridge.
_FITTED_ON = 1500
_VALIDATION = 0.2


@dataclass(frozen=True, eq=False)
class PairStates:
    """The states of both models at one pair of depths, at N places."""

    source_depth: int
    depth: int
    """Target depth l."""
    places: tuple[TokenPlace, ...]
    source: Tensor
    """[N, d_s]."""
    target: Tensor
    """[N, d_t]."""
    adapted: Tensor | None
    """[N, d_s], the source with its adapter."""
    translated: Tensor | None
    """[N, d_t], the target with the translation."""
    decode: Decode
    """From the source's space to the target's."""
    by_heads: bool
    """Whether `decode` is the pair's head; else a linear map that was fitted for this picture."""


@dataclass(frozen=True, eq=False)
class Manifold:
    """Source and target activations at one pair of depths, token by token.

    Row i of every array belongs to place i. In spaces `joint` all lie on one map of the target's space, the
    source's states carried over; in spaces `own` the source's lie on a map of the source's own space, and
    the target's on another of the target's.
    """

    source_depth: int
    depth: int
    """Target depth l."""
    method: Method
    spaces: Spaces
    source: np.ndarray
    """[N, k]."""
    target: np.ndarray
    """[N, k]."""
    adapted: np.ndarray | None
    """[N, k]: where the source lies with its adapter; None without one."""
    translated: np.ndarray | None
    """[N, k]: where the target lies with the translation; None without one."""
    source_shift: np.ndarray | None
    """[N]: how far the adapter moves the source, in deviations of a dimension (root mean square)."""
    target_shift: np.ndarray | None
    """[N]: how far the translation moves the target."""
    places: tuple[TokenPlace, ...]
    measures: dict[str, Measured]
    """Taken in full width, each with its shuffled control: R², cosine, k-NN overlap and debiased CKA of the
    carried source and the target, and the cosine of the two shifts where both are known."""
    trustworthiness: float
    """Of the map; of the worse one of two."""
    kept_variance: float
    by_heads: bool


def read_pairs(
    source_lm: LanguageModel,
    target_lm: LanguageModel,
    heads: HeadSet | None,
    texts: Iterable[str],
    pairs: Sequence[tuple[int, int]],
    *,
    lora: Lora | None = None,
    translated: Runner | None = None,
    points: int = 2000,
    seed: int = 0,
    batch_size: int = 16,
    turns: Turns = nullcontext,
    on_progress: OnProgress = ignore,
) -> tuple[PairStates, ...]:
    """Read both models at the same places, at each of some pairs of depths.

    Args:
        source_lm: the source model.
        target_lm: the target model.
        heads: of this ordered pair of models; where there are none, or none for a pair of depths, a linear
            map is fitted on further text.
        texts: held-out general text, none of it fitted on; only as much is read as is needed.
        pairs: (source depth, target depth).
        lora: adapter of the source, to show where it moves the tokens.
        translated: the target with the translated adapter.
        points: N.
        seed: of the choice of tokens.
        batch_size: texts at once.
        turns: makes a context that is held during each pass of a model.
        on_progress: gets the stage `activations`.

    Raises:
        RequestError: a model has no such depth.
        CorpusError: the texts hold too few aligned tokens.
    """
    for lm, depths in zip((source_lm, target_lm), zip(*pairs, strict=True), strict=True):
        for depth in depths:
            if not 0 <= depth <= lm.depth:
                raise RequestError(f"{lm.name} has depths 0 to {lm.depth}; there is no depth {depth}.")
    iterator = iter(texts)

    def read(
        pairs: Sequence[tuple[int, int]], points: int, lora: Lora | None = None, runner: Runner | None = None
    ) -> TokenStates:
        return read_states(
            source_lm, target_lm, iterator, points=points, source_depths=[i for i, _ in pairs],
            target_depths=[j for _, j in pairs], lora=lora, translated=runner, seed=seed,
            batch_size=batch_size, turns=turns, on_progress=on_progress,
        )  # fmt: skip

    states = read(pairs, points, lora, translated)
    headless = [pair for pair in pairs if not _has_head(heads, *pair)]
    # The iterator goes on: what the map is fitted on is none of what is shown.
    others = read(headless, _FITTED_ON) if headless else None
    return tuple(
        PairStates(
            source_depth=i,
            depth=j,
            places=states.places,
            source=states.source[i],
            target=states.target[j],
            adapted=None if states.adapted is None else states.adapted[i],
            translated=None if states.translated is None else states.translated[j],
            decode=_fitted(others, i, j) if others and (i, j) in headless else _head(heads, j),
            by_heads=(i, j) not in headless,
        )
        for i, j in pairs
    )


def _has_head(heads: HeadSet | None, source_depth: int, depth: int) -> bool:
    return heads is not None and depth in heads.depths and heads.layer_map[depth] == source_depth


def _head(heads: HeadSet | None, depth: int) -> Decode:
    if heads is None:
        raise RequestError(f"No head belongs to depth {depth}.")
    decode = heads.at(depth).decode

    def decoded(states: Tensor) -> Tensor:
        # The heads stay where they are: other users share them.
        return decode(states.to(next(decode.parameters()).device)).detach().cpu()

    return decoded


def _fitted(states: TokenStates, source_depth: int, depth: int) -> Decode:
    x, y = states.source[source_depth], states.target[depth]
    # The places stand in the order of their texts, so the last ones are of texts that nothing is fitted on.
    cut = max(2, round(len(x) * (1 - _VALIDATION)))
    moments = Moments(x.shape[1], y.shape[1])
    moments.update(x[:cut], y[:cut])
    return ridge_head(moments, x[cut:], y[cut:])


@torch.no_grad()
def drawn(
    states: PairStates,
    method: Method = "umap",
    *,
    dimensions: int = 2,
    spaces: Spaces = "joint",
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> Manifold:
    """Lay out what was read at one pair of depths.

    Args:
        states: what was read.
        method: `pca` (linear, instant) or `umap` (its first use compiles for some seconds).
        dimensions: k, 2 or 3.
        spaces: see `Manifold`.
        seed: of UMAP.
        on_progress: gets the stages of `project`, counted over all maps; may cancel between two epochs.

    Raises:
        RequestError: another k, or states that make no map.
    """
    if spaces == "joint":
        maps = [
            project(_joint_clouds(states), method, dimensions=dimensions, seed=seed, on_progress=on_progress)
        ]
    else:
        own = ([states.source, states.adapted], [states.target, states.translated])
        maps = [
            project(
                _known(side), method, dimensions=dimensions, seed=seed,
                on_progress=_part(on_progress, place, len(own)),
            )
            for place, side in enumerate(own)
        ]  # fmt: skip
    return _manifold(states, method, spaces, maps)


@torch.no_grad()
def drawn_along(
    stack: Sequence[PairStates],
    method: Method = "umap",
    *,
    dimensions: int = 2,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> tuple[Manifold, ...]:
    """Lay out the same places at several pairs of depths, one joint map each, for a picture that moves.

    A map is turned, never bent, to lie on the one before it as well as it can; UMAP also starts from there.

    Args:
        stack: what was read, from the first depth to the last.
        method: see `drawn`.
        dimensions: 2 or 3.
        seed: of UMAP.
        on_progress: gets the stages of `drawn`, counted over all depths.
    """
    maps: list[Projection] = []
    for step, states in enumerate(stack):
        before = maps[-1] if maps else None
        found = project(
            _joint_clouds(states), method, dimensions=dimensions, seed=seed, start=before,
            on_progress=_part(on_progress, step, len(stack)),
        )  # fmt: skip
        maps.append(aligned_to(found, before) if before else found)
    return tuple(
        _manifold(states, method, "joint", [found]) for states, found in zip(stack, maps, strict=True)
    )


def manifold(
    source_lm: LanguageModel,
    target_lm: LanguageModel,
    heads: HeadSet | None,
    texts: Iterable[str],
    depth: int,
    *,
    source_depth: int | None = None,
    lora: Lora | None = None,
    translated: Runner | None = None,
    points: int = 2000,
    method: Method = "umap",
    dimensions: int = 2,
    spaces: Spaces = "joint",
    seed: int = 0,
    batch_size: int = 16,
    on_progress: OnProgress = ignore,
) -> Manifold:
    """Map both models' activations at one pair of depths; see `read_pairs` and `drawn`.

    Args:
        source_lm: the source model.
        target_lm: the target model.
        heads: of this ordered pair, or None.
        texts: held-out general text.
        depth: target depth l, 0 … L_t.
        source_depth: the one that the heads pair with it, by default.
        lora: adapter of the source.
        translated: the target with the translated adapter.
        points: tokens on the map.
        method: `umap` or `pca`.
        dimensions: 2 or 3.
        spaces: one joint map, or one of each model's own.
        seed: of the choice of tokens, and of UMAP.
        batch_size: texts at once.
        on_progress: gets stages `activations` and `map`.

    Raises:
        RequestError: a model has no such depth, or there are neither heads nor a source depth.
        CorpusError: the texts hold too few aligned tokens.
    """
    if source_depth is None:
        if heads is None:
            raise RequestError("Without heads a map needs a source depth as well; name one.")
        if not 0 <= depth <= target_lm.depth:
            raise RequestError(
                f"{target_lm.name} has depths 0 to {target_lm.depth}; there is no depth {depth}."
            )
        source_depth = heads.layer_map[depth]
    (states,) = read_pairs(
        source_lm, target_lm, heads, texts, [(source_depth, depth)], lora=lora, translated=translated,
        points=points, seed=seed, batch_size=batch_size, on_progress=on_progress,
    )  # fmt: skip
    return drawn(states, method, dimensions=dimensions, spaces=spaces, seed=seed, on_progress=on_progress)


def _part(on_progress: OnProgress, place: int, parts: int) -> OnProgress:
    """One map's reports as its part of all of them."""

    def report(progress: Progress) -> None:
        if progress.stage != "map":
            on_progress(progress)
            return
        total = progress.total
        on_progress(Progress("map", place * total + progress.done, parts * total))

    return report


def _known(clouds: Iterable[Tensor | None]) -> list[np.ndarray]:
    return [cloud.numpy() for cloud in clouds if cloud is not None]


def _joint_clouds(states: PairStates) -> list[np.ndarray]:
    carried = [None if rows is None else states.decode(rows) for rows in (states.source, states.adapted)]
    return _known([*carried, states.target, states.translated])


def _manifold(states: PairStates, method: Method, spaces: Spaces, maps: Sequence[Projection]) -> Manifold:
    rows: Iterator[np.ndarray] = (cloud for found in maps for cloud in found.clouds)
    # The order of `_joint_clouds`, and of the two maps of one's own.
    source = next(rows)
    adapted = None if states.adapted is None else next(rows)
    target = next(rows)
    translated = None if states.translated is None else next(rows)
    return Manifold(
        source_depth=states.source_depth,
        depth=states.depth,
        method=method,
        spaces=spaces,
        source=source,
        target=target,
        adapted=adapted,
        translated=translated,
        source_shift=_shift(states.source, states.adapted),
        target_shift=_shift(states.target, states.translated),
        places=states.places,
        measures=_measures(states),
        trustworthiness=min(found.trustworthiness for found in maps),
        kept_variance=min(found.kept_variance for found in maps),
        by_heads=states.by_heads,
    )


def _shift(states: Tensor, moved: Tensor | None) -> np.ndarray | None:
    """[N]: the root mean square, over dimensions that vary, of a shift in deviations of its dimension."""
    if moved is None:
        return None
    deviation = states.double().std(0)
    varies = deviation > 1e-12
    shift = (moved.double() - states.double())[:, varies] / deviation[varies]
    return np.asarray(shift.square().mean(1).sqrt().numpy())


def _measures(states: PairStates) -> dict[str, Measured]:
    named: dict[str, Measurement] = {
        R_SQUARED: r_squared,
        "cosine": cosine,
        NEIGHBOURS: knn_overlap,
        CKA: debiased_cka,
    }
    carried = states.decode(states.source)
    found = {name: measured(measure, carried, states.target) for name, measure in named.items()}
    if states.adapted is not None and states.translated is not None:
        shift = states.decode(states.adapted) - carried
        found["adapter's shift, cosine"] = measured(cosine, shift, states.translated - states.target)
    return found
