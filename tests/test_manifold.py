"""The map of two models' activations: one joint fit, labelled places, measures with their control."""

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cast.adapters import Lora
from cast.errors import CorpusError, RequestError
from cast.fitting import FitConfig, fit_heads
from cast.heads import HeadSet
from cast.manifold import manifold, project
from cast.models import LanguageModel

ANIMALS = ("fox", "owl", "hen", "cat", "dog", "🦊")
TEXTS = [
    f"The {ANIMALS[n % 6]} met the {ANIMALS[n % 5]} near the river; “{ANIMALS[n % 4]}”, it said. Number {n}."
    for n in range(200)
]


@pytest.fixture(scope="module")
def pair(tiny_model: Callable[..., LanguageModel]) -> tuple[LanguageModel, LanguageModel]:
    return tiny_model("llama"), tiny_model("mistral", "char_bpe", 24, 2)


@pytest.fixture(scope="module")
def heads(pair) -> HeadSet:
    config = FitConfig(kind="affine", tokens=1200, held_out_tokens=200, kl_weight=0)
    return fit_heads(*pair, TEXTS, config)


def clouds(seed: int = 0, rows: int = 60, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(rows, width))
    return target + 0.01 * rng.normal(size=target.shape), target


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from([2, 3]))
def test_a_pair_lies_together_on_a_joint_map(seed: int, dimensions: int) -> None:
    source, target = clouds(seed)
    result = project(source, target, "pca", dimensions=dimensions)
    assert result.source.shape == result.target.shape == (60, dimensions)
    between = np.linalg.norm(result.source - result.target, axis=1).mean()
    assert between < 0.1 * np.linalg.norm(result.target - result.target.mean(0), axis=1).mean()


def test_a_massive_dimension_does_not_rule_the_map() -> None:
    source, target = clouds()
    scale = np.ones(12)
    scale[3] = 1e4
    plain, scaled = project(source, target, "pca"), project(source * scale, target * scale, "pca")
    np.testing.assert_allclose(np.abs(plain.target), np.abs(scaled.target), atol=1e-6)


def test_trustworthiness_tells_a_faithful_map_from_a_crushed_one() -> None:
    """Twelve independent dimensions do not fit into two; two do."""
    source, target = clouds()
    flat = project(source[:, :2], target[:, :2], "pca")
    assert flat.trustworthiness > 0.99
    assert flat.kept_variance == pytest.approx(1.0)
    assert project(source, target, "pca").trustworthiness < 0.95


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_is_a_joint_fit_that_its_seed_decides() -> None:
    source, target = clouds(rows=30)
    first, again = (project(source, target, "umap", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.source, again.source)
    np.testing.assert_array_equal(first.target, again.target)
    spread = np.linalg.norm(first.target - first.target.mean(0), axis=1).mean()
    assert np.linalg.norm(first.source - first.target, axis=1).mean() < spread / 2


@pytest.mark.parametrize(
    ("source", "target", "dimensions", "message"),
    [
        (np.ones((4, 3)), np.ones((4, 3)), 2, "8 points make no map"),
        (np.full((30, 3), np.nan), np.ones((30, 3)), 2, "not finite"),
        (np.ones((30, 3)), np.ones((30, 3)), 2, "do not vary"),
        (*clouds(), 4, "2 or 3 dimensions"),
    ],
)
def test_what_makes_no_map_is_refused(source, target, dimensions: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        project(source, target, "pca", dimensions=dimensions)


def test_every_point_is_a_labelled_place_of_the_text(pair, heads: HeadSet) -> None:
    result = manifold(*pair, heads, TEXTS, 1, points=150, method="pca", seed=1)
    assert result.source.shape == result.target.shape == (150, 2)
    assert (result.depth, result.source_depth) == (1, heads.layer_map[1])
    assert len(result.tokens) == len(result.contexts) == 150
    assert all(token for token in result.tokens)
    for token, context in zip(result.tokens, result.contexts, strict=True):
        assert context.endswith(token)
        assert any(context.removeprefix("…") in text for text in TEXTS)
    assert result.adapted is None


def test_the_measures_stand_beside_their_control(pair, heads: HeadSet) -> None:
    result = manifold(*pair, heads, TEXTS, 2, points=200, method="pca")
    assert set(result.measures) == {"R²", "cosine", "k-NN overlap", "CKA"}
    assert all(measure.value > measure.control + 0.1 for measure in result.measures.values())


def test_an_adapter_moves_the_source_and_nothing_else(
    pair, heads: HeadSet, tiny_lora: Callable[..., Lora]
) -> None:
    lora = tiny_lora(pair[0])
    at_input, deep = (
        manifold(*pair, heads, TEXTS, depth, lora=lora, points=60, method="pca") for depth in (0, 2)
    )
    assert at_input.adapted is not None
    assert deep.adapted is not None
    np.testing.assert_allclose(at_input.adapted, at_input.source)
    assert np.abs(deep.adapted - deep.source).max() > 0.01


def test_an_endless_stream_is_read_no_further_than_needed(pair, heads: HeadSet) -> None:
    read = count()
    stream = (TEXTS[next(read) % len(TEXTS)] for _ in count())
    manifold(*pair, heads, stream, 1, points=100, method="pca", batch_size=4)
    assert next(read) < 60


def test_wrong_requests_are_refused(pair, heads: HeadSet) -> None:
    with pytest.raises(RequestError, match="depths 0 to 2; there is no depth 3"):
        manifold(*pair, heads, TEXTS, 3, method="pca")
    with pytest.raises(CorpusError, match="hold 0 aligned tokens"):
        manifold(*pair, heads, [], 1, method="pca")
