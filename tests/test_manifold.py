"""The map of two models' activations: one joint fit, labelled places, measures with their control."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.manifold import trustworthiness

from cast.adapters import Lora
from cast.errors import Cancelled, CorpusError, RequestError
from cast.fitting import FitConfig, fit_heads
from cast.heads import HeadSet
from cast.hosting import HostedRunner
from cast.layerwise import MEASURES, compare_layers
from cast.manifold import drawn, drawn_along, manifold, read_pairs
from cast.models import LanguageModel
from cast.progress import Progress, ignore
from cast.projection import aligned_to, project
from cast.runners import PlainRunner
from cast.token_states import kind_of
from cast.umap_layout import laid_out
from cast.wording import WordedRunner

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
    first, second = project([source, target], "pca", dimensions=dimensions).clouds
    assert first.shape == second.shape == (60, dimensions)
    between = np.linalg.norm(first - second, axis=1).mean()
    assert between < 0.1 * np.linalg.norm(second - second.mean(0), axis=1).mean()


def test_a_massive_dimension_does_not_rule_the_map() -> None:
    source, target = clouds()
    scale = np.ones(12)
    scale[3] = 1e4
    plain, scaled = (project([source * by, target * by], "pca").clouds[1] for by in (1, scale))
    np.testing.assert_allclose(np.abs(plain), np.abs(scaled), atol=1e-6)


def test_trustworthiness_tells_a_faithful_map_from_a_crushed_one() -> None:
    """Twelve independent dimensions do not fit into two; two do."""
    source, target = clouds()
    flat = project([source[:, :2], target[:, :2]], "pca")
    assert flat.trustworthiness > 0.99
    assert flat.kept_variance == pytest.approx(1.0)
    assert project([source, target], "pca").trustworthiness < 0.95


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_is_a_joint_fit_that_its_seed_decides() -> None:
    pair = clouds(rows=30)
    first, again = (project(pair, "umap", seed=3).clouds for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    spread = np.linalg.norm(first[1] - first[1].mean(0), axis=1).mean()
    assert np.linalg.norm(first[0] - first[1], axis=1).mean() < spread / 2


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
@pytest.mark.parametrize("dimensions", [2, 3])
def test_umap_in_steps_is_as_faithful_as_umap_in_one_call(dimensions: int) -> None:
    from umap import UMAP

    rng = np.random.default_rng(0)
    points = rng.normal(size=(150, 10)) + 4 * rng.normal(size=(5, 10))[np.arange(150) % 5]
    points[100:] = points[:50]  # tokens whose states are the same
    theirs = UMAP(n_components=dimensions, random_state=0, n_jobs=1).fit_transform(points)
    ours = laid_out(points, dimensions, 0, None, ignore)
    assert ours.shape == theirs.shape
    first, second = (trustworthiness(points, each, n_neighbors=15) for each in (ours, theirs))
    assert first > second - 0.01


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_tells_its_first_seconds_and_takes_them_once() -> None:
    script = (
        "from cast.umap_layout import prepare\n"
        "for _ in range(2):\n"
        "    told = []; prepare(told.append); print([(one.stage, one.done, one.total) for one in told])"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    first, again = ran.stdout.splitlines()
    assert first == "[('umap', 0, 10), ('umap', 2, 10), ('umap', 8, 10), ('umap', 10, 10)]"
    assert again == "[]"


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
@pytest.mark.parametrize("spaces", ["own", "along"])
def test_several_maps_are_counted_as_one_piece_of_work(pair, heads: HeadSet, spaces: str) -> None:
    told: list[Progress] = []
    stack = read_pairs(*pair, heads, TEXTS, [(1, 1), (2, 2)], points=30)
    if spaces == "own":
        drawn(stack[0], "umap", spaces="own", on_progress=told.append)
    else:
        drawn_along(stack, "umap", on_progress=told.append)
    counts = [(one.done, one.total) for one in told if one.stage == "map"]
    assert counts == sorted(counts)
    assert counts[-1] == (1000, 1000)


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_is_cancelled_between_two_epochs() -> None:
    seen = []

    def cancel(progress: Progress) -> None:
        seen.append(progress)
        if progress.total > 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        project(clouds(rows=30), "umap", on_progress=cancel)
    assert seen[-1].stage == "map"
    assert seen[-1].done < seen[-1].total


def test_a_map_is_turned_to_lie_on_the_one_before_it() -> None:
    before = project(clouds(), "pca")
    turned = np.array([[0.0, 1.0], [-1.0, 0.0]])
    found = replace(before, clouds=tuple(cloud @ turned + 3 for cloud in before.clouds))
    for cloud, expected in zip(aligned_to(found, before).clouds, before.clouds, strict=True):
        np.testing.assert_allclose(cloud, expected, atol=1e-9)


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
        project([source, target], "pca", dimensions=dimensions)


def test_every_point_is_a_labelled_place_of_the_text(pair, heads: HeadSet) -> None:
    result = manifold(*pair, heads, TEXTS, 1, points=150, method="pca", seed=1)
    assert result.source.shape == result.target.shape == (150, 2)
    assert (result.depth, result.source_depth, result.by_heads) == (1, heads.layer_map[1], True)
    assert len(result.places) == 150
    for place in result.places:
        assert place.token
        assert place.context.endswith(place.token)
        text = TEXTS[place.text]
        assert place.context.removeprefix("…") + place.after.removesuffix("…") in text
    assert result.adapted is result.translated is None
    # Two sentences to a text.
    assert {place.sentence // 2 for place in result.places} == {place.text for place in result.places}


@pytest.mark.parametrize(
    ("text", "start", "end", "kind"),
    [
        ("a fox", 1, 5, "word"), ("a Fox", 1, 5, "capitalised word"), ("a fox", 3, 5, "rest of a word"),
        ("it said 12.", 7, 10, "number"), ("it.", 2, 3, "punctuation"), ("a  b", 1, 2, "space"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(text: str, start: int, end: int, kind: str) -> None:
    assert kind_of(text, start, end) == kind


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
    np.testing.assert_array_equal(at_input.source_shift, 0)
    assert (deep.source_shift > 0).all()
    assert np.abs(deep.adapted - deep.source).max() > 0.01


def test_a_translation_moves_the_target_where_it_moves_states(
    pair, heads: HeadSet, tiny_lora: Callable[..., Lora]
) -> None:
    lora, own = tiny_lora(pair[0]), tiny_lora(pair[1], seed=1)
    runners = {
        "lora": PlainRunner(pair[1], own),
        "hosted": HostedRunner(pair[0], lora, pair[1], heads, 1),
        "stack": HostedRunner(pair[0], lora, pair[1], heads, None),
        "words": WordedRunner(pair[0], lora, pair[1]),
    }
    moved = {}
    for name, runner in runners.items():
        result = manifold(
            *pair, heads, TEXTS, 2, lora=lora, translated=runner, points=40, method="pca", spaces="own"
        )
        moved[name] = result.target_shift.max()
        assert result.translated.shape == result.adapted.shape == (40, 2)
    assert min(moved["lora"], moved["hosted"], moved["stack"]) > 0.01
    assert moved["words"] == 0
    # The whole stack carries the source's shift itself.
    told = manifold(
        *pair, heads, TEXTS, 2, lora=lora, translated=runners["stack"], points=40, method="pca"
    ).measures["adapter's shift, cosine"]
    assert told.value > 0.99 > told.control + 0.5


def test_a_pair_of_depths_without_a_head_is_carried_by_a_linear_map(pair, heads: HeadSet) -> None:
    for known in (heads, None):
        result = manifold(*pair, known, TEXTS, 1, source_depth=3, points=60, method="pca")
        assert not result.by_heads
        assert result.measures["R²"].value > result.measures["R²"].control + 0.3
    with pytest.raises(RequestError, match="needs a source depth"):
        manifold(*pair, None, TEXTS, 1, method="pca")


def test_along_the_layers_the_same_tokens_move_a_little_at_a_time(pair, heads: HeadSet) -> None:
    pairs = [(heads.layer_map[depth], depth) for depth in range(3)]
    stack = read_pairs(*pair, heads, TEXTS, pairs, points=80)
    along = drawn_along(stack, "pca")
    assert [one.depth for one in along] == [0, 1, 2]
    assert along[0].places == along[2].places
    alone = drawn(stack[1], "pca")

    def step(before: np.ndarray, after: np.ndarray) -> float:
        return float(np.linalg.norm(before - before.mean(0) - (after - after.mean(0)), axis=1).mean())

    assert step(along[0].target, along[1].target) <= step(along[0].target, alone.target) + 1e-9
    assert along[1].measures == alone.measures


def test_all_layers_are_compared_with_all_layers(pair) -> None:
    same = compare_layers(pair[0], pair[0], TEXTS, points=200)
    assert set(same.grids) == set(MEASURES)
    for name in MEASURES:
        values, controls = same.grids[name].values, same.grids[name].controls
        assert values.shape == controls.shape == (4, 4)
        assert values.diagonal() == pytest.approx(1.0, abs=0.02)
        assert controls.max() < 0.3
    other = compare_layers(*pair, TEXTS, points=200)
    assert other.grids["CKA"].values.shape == (4, 3)
    assert other.tokens == 200


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
