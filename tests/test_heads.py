"""Heads compute what they say; a folder of them is refused with words unless whole and for this pair."""

import json
import re
from itertools import islice, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cast.activations import paired_batches
from cast.alignment import LayerMap
from cast.corpus import general_text
from cast.errors import HeadsError, OutputError, RequestError
from cast.heads import (
    AffineHead,
    DepthQuality,
    HeadPair,
    HeadQuality,
    HeadRecipe,
    HeadSet,
    MLPHead,
    ModelTag,
)
from cast.measures import Measured, r_squared
from cast.models import load
from cast.pocket.registry import MODEL_NAMES, heads_folder


def random_head(dim_in: int, dim_out: int, width: int = 0, seed: int = 0) -> AffineHead:
    head = MLPHead(dim_in, dim_out, width) if width else AffineHead(dim_in, dim_out)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in head.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if name.startswith("scale"):
            tensor.abs_().add_(0.1)
    return head.requires_grad_(False)


def heads_of(source, target, *, width: int = 0, depths=None) -> HeadSet:
    layer_map = LayerMap.by_relative_depth(source.depth, target.depth)
    every = range(target.depth + 1)
    pairs = tuple(
        HeadPair(
            random_head(target.width, source.width, width, seed=2 * depth),
            random_head(source.width, target.width, width and width + depth, seed=2 * depth + 1),
        )
        if depths is None or depth in depths
        else None
        for depth in every
    )
    one = HeadQuality(*(Measured(0.9, 0.01) for _ in range(4)))
    last = HeadQuality(*(Measured(0.9, 0.01) for _ in range(4)), kl=0.004)
    quality = tuple(DepthQuality(depth, layer_map[depth], one, last) for depth in every)
    recipe = HeadRecipe("mlp" if width else "affine", "a text", 40_000, 2_000, 0, "float32")
    return HeadSet(ModelTag.of(source), ModelTag.of(target), layer_map, pairs, quality, recipe)


@pytest.fixture(scope="module")
def pair(tiny_model):
    return tiny_model("llama", "byte_bpe"), tiny_model("mistral", "unigram", width=24, depth=4)


def edit(folder, change) -> None:
    path = folder / "heads.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 50))
def test_the_linear_map_carries_changes(dim_in, dim_out, seed):
    head = random_head(dim_in, dim_out, seed=seed)
    x, change = torch.randn(2, 3, dim_in)
    torch.testing.assert_close(head(x + change) - head(x), change @ head.linear_map().T, rtol=1e-4, atol=1e-4)


def test_an_unfitted_mlp_head_is_its_affine_part():
    affine, head = random_head(5, 4), MLPHead(5, 4, 8)
    head.load_state_dict(affine.state_dict(), strict=False)
    x = torch.randn(7, 2, 5)
    assert torch.equal(head(x), affine(x))
    head.outer_weight.data.normal_()
    assert not torch.allclose(head(x), affine(x))
    with pytest.raises(RequestError, match="affine heads"):
        head.linear_map()


def test_heads_take_bfloat16_and_compute_in_float32():
    x = torch.tensor([[55_000.0, 1.0]], dtype=torch.bfloat16)
    head = random_head(2, 3)
    assert head(x).dtype == torch.float32
    torch.testing.assert_close(head(x), head(x.float()))


@pytest.mark.parametrize("width", [0, 6])
def test_a_saved_set_comes_back(pair, tmp_path, width):
    heads = heads_of(*pair, width=width)
    heads.save(tmp_path / "heads")
    back = HeadSet.load(tmp_path / "heads")
    back.check(*pair)
    assert (back.source, back.target, back.layer_map) == (heads.source, heads.target, heads.layer_map)
    assert (back.quality, back.recipe) == (heads.quality, heads.recipe)
    for depth in heads.depths:
        for mine, yours in zip(heads.at(depth), back.at(depth), strict=True):
            assert type(mine) is type(yours)
            assert not any(parameter.requires_grad for parameter in yours.parameters())
            x = torch.randn(9, mine.in_features, generator=torch.Generator().manual_seed(depth))
            torch.testing.assert_close(yours(x), mine(x), rtol=1e-2, atol=5e-2)
    stored = load_file(tmp_path / "heads" / "heads.safetensors")
    assert stored["0.encode.weight"].dtype == torch.float16
    assert stored["0.encode.mean_in"].dtype == torch.float32


def test_weights_beyond_float16_are_kept_in_float32(pair, tmp_path):
    heads = heads_of(*pair)
    heads.at(1).decode.weight.data[0, 0] = 1e6
    heads.save(tmp_path / "heads")
    assert HeadSet.load(tmp_path / "heads").at(1).decode.weight[0, 0] == 1e6


def test_some_depths_only(pair, tmp_path):
    heads = heads_of(*pair, depths=(0, 4))
    heads.save(tmp_path / "heads")
    back = HeadSet.load(tmp_path / "heads")
    assert back.depths == (0, 4)
    with pytest.raises(HeadsError, match="depths 0, 4 only"):
        back.at(2)


def test_the_card_says_what_it_is_and_how_good(pair, tmp_path):
    heads_of(*pair).save(tmp_path / "heads")
    card = (tmp_path / "heads" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: cast\n")
    for word in ("tiny-llama → tiny-mistral", "40,000 aligned tokens", "0.900 (0.010)", "0.0040 nats"):
        assert word in card


def test_a_full_folder_is_not_overwritten_unless_asked(pair, tmp_path):
    heads = heads_of(*pair)
    heads.save(tmp_path / "heads")
    with pytest.raises(OutputError, match="not empty"):
        heads.save(tmp_path / "heads")
    heads.save(tmp_path / "heads", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads"]


def test_heads_of_other_models_are_refused(pair, tiny_model):
    source, target = pair
    heads = heads_of(source, target)
    heads.check(source, target)
    with pytest.raises(HeadsError, match="the other way"):
        heads.check(target, source)
    with pytest.raises(HeadsError, match="not for tiny-gpt2 → tiny-mistral"):
        heads.check(tiny_model("gpt2"), target)
    with pytest.raises(HeadsError, match="other weights of tiny-llama"):
        heads.check(tiny_model("llama", "byte_bpe", seed=1), target)


DAMAGE = {
    "not JSON": (lambda folder: (folder / "heads.json").write_text("{"), "not JSON"),
    "no JSON": (lambda folder: (folder / "heads.json").unlink(), "no heads in"),
    "a list": (lambda folder: (folder / "heads.json").write_text("[]"), "does not describe heads"),
    "huge JSON": (lambda folder: (folder / "heads.json").write_text(" " * 5_000_000), "too large"),
    "other format": (lambda folder: edit(folder, lambda d: d.update(format="x")), "does not describe heads"),
    "newer version": (lambda folder: edit(folder, lambda d: d.update(version=2)), "format version 2"),
    "no source": (lambda folder: edit(folder, lambda d: d.pop("source")), "is damaged"),
    "unknown entry": (lambda folder: edit(folder, lambda d: d["target"].update(x=1)), "is damaged"),
    "falling map": (lambda folder: edit(folder, lambda d: d.update(layer_map=[0, 2, 1, 3, 3])), "is damaged"),
    "short map": (lambda folder: edit(folder, lambda d: d.update(layer_map=[0, 3])), "is damaged"),
    "reads before the stack": (
        lambda folder: edit(
            folder, lambda d: d["heads"]["0.encode"].update({"in": 2 * d["target"]["width"]})
        ),
        "is damaged",
    ),
    "negative size": (
        lambda folder: edit(folder, lambda d: d["heads"]["0.encode"].update({"in": -1})),
        "is damaged",
    ),
    "giant size": (
        lambda folder: edit(folder, lambda d: d["heads"]["0.encode"].update(width=10**9)),
        "is damaged",
    ),
    "other width": (
        lambda folder: edit(folder, lambda d: d["heads"]["0.encode"].update({"in": 8})),
        "is damaged",
    ),
    "half a pair": (lambda folder: edit(folder, lambda d: d["heads"].pop("0.encode")), "is damaged"),
    "no heads": (lambda folder: edit(folder, lambda d: d.update(heads={})), "is damaged"),
    "depth outside": (
        lambda folder: edit(folder, lambda d: d["heads"].update({"9.encode": d["heads"].pop("1.encode")})),
        "is damaged",
    ),
    "no weights": (lambda folder: (folder / "heads.safetensors").unlink(), "damaged"),
    "cut off": (
        lambda folder: (folder / "heads.safetensors").write_bytes(
            (folder / "heads.safetensors").read_bytes()[:-10]
        ),
        "damaged",
    ),
    "not tensors": (lambda folder: (folder / "heads.safetensors").write_bytes(b"\x80\x04K\x01."), "damaged"),
    "less tensors": (lambda folder: reshape(folder, lambda t: t.pop("0.encode.bias")), "does not hold"),
    "more tensors": (
        lambda folder: reshape(folder, lambda t: t.update(x=torch.zeros(1))),
        "does not hold",
    ),
    "other shape": (
        lambda folder: reshape(folder, lambda t: t.update({"0.encode.bias": torch.zeros(3)})),
        "another shape",
    ),
    "other type": (
        lambda folder: reshape(
            folder, lambda t: t.update({"0.encode.bias": t["0.encode.bias"].to(torch.int32)})
        ),
        "another shape or type",
    ),
    "not numbers": (
        lambda folder: reshape(folder, lambda t: t["0.encode.bias"].fill_(torch.nan)),
        "not numbers",
    ),
}


def reshape(folder, change) -> None:
    tensors = load_file(folder / "heads.safetensors")
    change(tensors)
    save_file(tensors, folder / "heads.safetensors")


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_with_a_sentence(pair, tmp_path, what):
    damage, words = DAMAGE[what]
    heads_of(*pair, width=4).save(tmp_path / "heads")
    damage(tmp_path / "heads")
    with pytest.raises(HeadsError) as caught:
        HeadSet.load(tmp_path / "heads")
    message = str(caught.value)
    assert words in message
    assert re.match(r"[^\n]{20,}\.$", message)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(HeadsError, match="There are no heads"):
        HeadSet.load(tmp_path / "nowhere")


def test_the_shipped_heads_fit_the_shipped_models_and_beat_their_controls():
    lms = {name: load(f"pocket:{name}") for name in MODEL_NAMES}
    total = 0
    for source, target in permutations(MODEL_NAMES, 2):
        folder = heads_folder(source, target)
        heads = HeadSet.load(folder)
        heads.check(lms[source], lms[target])
        assert heads.depths == tuple(range(lms[target].depth + 1))
        for entry in heads.quality:
            for quality in (entry.encode, entry.decode):
                assert quality.r_squared.value > 0.5
                assert quality.r_squared.control < 0
        assert heads.quality[-1].decode.kl < 0.1
        total += sum(file.stat().st_size for file in folder.iterdir())
    assert total < 20e6


def test_the_recorded_quality_of_shipped_heads_is_what_they_have():
    source, target = load("pocket:llama"), load("pocket:mistral")
    heads = HeadSet.load(heads_folder("llama", "mistral"))
    texts = list(islice(general_text("pocket", held_out=True), 32))
    (batch,) = paired_batches(source, target, texts, heads.layer_map, batch_size=32)
    for entry in heads.quality:
        decoded = heads.at(entry.depth).decode(batch.source[entry.depth])
        measured = r_squared(decoded, batch.target[entry.depth])
        assert measured == pytest.approx(entry.decode.r_squared.value, abs=0.05)
