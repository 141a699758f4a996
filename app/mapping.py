"""What `cast manifold` and `cast layers` draw, as facts of the page. Imports torch: is imported late."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np

from app.backend import Turns
from app.facts import Drawn, GridFacts, JointMap, LayerFacts, MapPoint, MapRequest, Measure
from cast.adapters import Lora
from cast.alignment import LayerMap
from cast.corpus import general_text
from cast.heads import HeadSet
from cast.layerwise import LayerGrids, compare_layers
from cast.manifold import Manifold, PairStates, drawn, drawn_along, read_pairs
from cast.models import LanguageModel
from cast.pipeline import default_corpus
from cast.progress import OnProgress, ignore
from cast.projection import Method
from cast.runners import Runner

_SEED = 0
# A browser draws no finer.
_DIGITS = 4


def drawn_maps(
    source: LanguageModel,
    target: LanguageModel,
    heads: HeadSet | None,
    lora: Lora | None,
    translated: Runner | None,
    request: MapRequest,
    turns: Turns = nullcontext,
    on_progress: OnProgress = ignore,
    *,
    text: str | None = None,
    seed: int = _SEED,
    batch_size: int = 16,
) -> Iterator[Drawn]:
    """Read both models once, then lay out what was read: by PCA at once, and then by UMAP where asked.

    Args:
        source: the source model.
        target: the target model.
        heads: of this pair, where there are some.
        lora: adapter of the source to show.
        translated: the target with its translation.
        request: what to draw; its selection is not looked at.
        turns: makes a context that is held while a model runs.
        on_progress: gets the stages of `read_pairs` and `drawn`.
        text: its held-out part is read; by default the text of the heads, else the pair's own.
        seed: of tokens and map.
        batch_size: texts at once.

    Raises:
        CastError: as `read_pairs` and `drawn`.
    """
    table = heads.layer_map if heads else LayerMap.by_relative_depth(source.depth, target.depth)
    if request.view == "along":
        pairs = [(table[depth], depth) for depth in range(target.depth + 1)]
    else:
        known = 0 <= request.depth <= target.depth
        # A depth that is not there is refused where the states are read.
        mapped = table[request.depth] if known else 0
        pairs = [(mapped if request.source_depth is None else request.source_depth, request.depth)]
    states = read_pairs(
        source, target, heads, _held_out(source, target, heads, text, seed),
        pairs, lora=lora, translated=translated, points=request.points, seed=seed, batch_size=batch_size,
        turns=turns, on_progress=on_progress,
    )  # fmt: skip
    methods: tuple[Method, ...] = ("pca",) if request.method == "pca" else ("pca", "umap")
    for method in methods:
        yield tuple(map(facts_of, _laid_out(states, method, request, seed, on_progress)))


def _laid_out(
    states: Sequence[PairStates], method: Method, request: MapRequest, seed: int, on_progress: OnProgress
) -> Sequence[Manifold]:
    if request.view == "along":
        return drawn_along(states, method, dimensions=request.dimensions, seed=seed, on_progress=on_progress)
    return [
        drawn(
            states[0], method, dimensions=request.dimensions, seed=seed, on_progress=on_progress,
            spaces="own" if request.view == "own" else "joint",
        )
    ]  # fmt: skip


def facts_of(found: Manifold) -> JointMap:
    """A map as plain values."""
    points = tuple(
        MapPoint(
            _rounded(found.source, at) or (),
            _rounded(found.target, at) or (),
            place.token,
            place.context,
            place.after,
            _rounded(found.adapted, at),
            _rounded(found.translated, at),
            None if found.source_shift is None else round(float(found.source_shift[at]), _DIGITS),
            None if found.target_shift is None else round(float(found.target_shift[at]), _DIGITS),
            place.kind,
            place.text,
            place.sentence,
            place.position,
        )
        for at, place in enumerate(found.places)
    )
    measures = tuple(Measure(name, m.value, m.control) for name, m in found.measures.items())
    return JointMap(
        found.method, found.depth, found.source_depth, points, measures, found.trustworthiness, found.spaces,
        found.by_heads,
    )  # fmt: skip


def _rounded(rows: np.ndarray | None, at: int) -> tuple[float, ...] | None:
    return None if rows is None else tuple(round(float(value), _DIGITS) for value in rows[at])


def measured_layers(
    source: LanguageModel,
    target: LanguageModel,
    heads: HeadSet | None = None,
    turns: Turns = nullcontext,
    on_progress: OnProgress = ignore,
    *,
    text: str | None = None,
    points: int = 600,
    seed: int = _SEED,
) -> LayerFacts:
    """All layers of two models against each other on held-out text; the heads only say which text."""
    texts = _held_out(source, target, heads, text, seed)
    return layer_facts(
        compare_layers(source, target, texts, points=points, seed=seed, turns=turns, on_progress=on_progress)
    )


def _held_out(
    source: LanguageModel, target: LanguageModel, heads: HeadSet | None, text: str | None, seed: int
) -> Iterator[str]:
    own = heads.recipe.corpus if heads else default_corpus(source, target)
    return general_text(text or own, seed=seed, held_out=True)


def layer_facts(found: LayerGrids) -> LayerFacts:
    """The grids as plain values."""
    return LayerFacts(
        tuple(
            GridFacts(name, _table(grid.values), _table(grid.controls)) for name, grid in found.grids.items()
        ),
        found.tokens,
    )


def _table(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.round(_DIGITS).tolist())
