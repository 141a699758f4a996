"""Sites find their counterparts whatever the families, and `instant` is exactly what the run-time hooks
do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import FAMILIES, build_lora, build_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from translation_fixtures import corpus, heads_for

from cast.adapters import Lora
from cast.alignment import AlignedPairs, LayerMap
from cast.architecture import Site
from cast.errors import AdapterError, CorpusError, HeadsError, RequestError
from cast.headmaps import AffineHead, MLPHead
from cast.kernel_mode import KernelRunner
from cast.models import LanguageModel
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner
from cast.site_fitting import SiteMapFitter, fit_site_maps
from cast.site_values import PairedSites, SiteReader
from cast.sites import SiteMap, SiteMaps, SitePair, pair_sites

SOURCES = ("llama", "gpt2", "phi3", "falcon")
TEXTS = ["Once upon a time there was a little fox.", "“quotes” — and a 🦊!"]


def paired(
    source: LanguageModel, target: LanguageModel, roles: set[str] | None = None
) -> tuple[SitePair, ...]:
    layer_map = LayerMap.by_relative_depth(source.depth, target.depth)
    adapted = [site for site in source.architecture.sites if roles is None or site.role in roles]
    return pair_sites(adapted, source.architecture, target.architecture, layer_map)


def found(source_family: str, target_family: str, role: str) -> dict[str, float]:
    """Target roles and weights of one source role in block 1."""
    pairs = paired(build_model(source_family), build_model(target_family), {role})
    return {pair.target.role: pair.weight for pair in pairs if pair.source.layer == 1}


# --- pairing


@pytest.mark.parametrize(
    ("source", "target", "role", "expected"),
    [
        ("llama", "mistral", "q", {"q": 1.0}),
        ("llama", "gpt_neox", "k", {"qkv": 1.0}),
        ("llama", "phi3", "up", {"gate_up": 1.0}),
        ("llama", "gpt2", "gate", {"up": 1.0}),
        ("gpt2", "llama", "up", {"gate": 0.5, "up": 0.5}),
        ("gpt2", "phi3", "up", {"gate_up": 1.0}),
        ("phi3", "llama", "qkv", {"q": 1.0, "k": 1.0, "v": 1.0}),
        ("phi3", "llama", "gate_up", {"gate": 1.0, "up": 1.0}),
        ("falcon", "opt", "down", {"down": 1.0}),
        ("opt", "falcon", "o", {"o": 1.0}),
    ],
)
def test_roles_meet(source: str, target: str, role: str, expected: dict[str, float]) -> None:
    assert found(source, target, role) == expected


@pytest.mark.parametrize(("source", "target"), product(SOURCES, FAMILIES))
def test_every_source_site_acts_in_the_block_that_hosts_it(source: str, target: str) -> None:
    models = build_model(source, depth=2), build_model(target, depth=3)
    layer_map = LayerMap.by_relative_depth(2, 3)
    pairs = paired(*models)
    assert {pair.source for pair in pairs} == set(models[0].architecture.sites)
    assert all(pair.target.layer == layer_map.host_of(pair.source.layer) for pair in pairs)
    # Shares of one work sum to 1; parts of a fused output count 1 each.
    totals = Counter[Site]()
    for pair in pairs:
        totals[pair.source] += pair.weight
    assert all(total == 1 or site.role in {"qkv", "gate_up"} for site, total in totals.items())


def test_several_source_blocks_meet_in_one_target_block() -> None:
    pairs = paired(build_model("llama", depth=4), build_model("mistral", depth=2), {"q"})
    assert Counter(pair.target.layer for pair in pairs) == {1: 2, 2: 2}


@pytest.mark.parametrize(
    ("role", "left", "expected"),
    [("q", {"o", "down"}, "o"), ("gate", {"o", "down"}, "down"), ("o", {"up"}, "up")],
)
def test_a_site_without_counterpart_goes_to_the_output_projection(
    role: str, left: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = build_model("llama"), build_model("mistral")
    kept = tuple(site for site in target.architecture.sites if site.role in left)
    reduced = replace(target.architecture, sites=kept)
    adapted = [site for site in source.architecture.sites if site.role == role]
    pairs = pair_sites(adapted, source.architecture, reduced, LayerMap.by_relative_depth(3, 3))
    assert {pair.target.role for pair in pairs} == {expected}


def test_a_block_without_linear_layers_is_refused() -> None:
    source, target = build_model("llama"), build_model("mistral")
    bare = replace(target.architecture, sites=())
    with pytest.raises(AdapterError, match="no linear layer"):
        pair_sites(source.architecture.sites, source.architecture, bare, LayerMap.by_relative_depth(3, 3))


# --- instant is exact


def random_maps(pairs: tuple[SitePair, ...], seed: int) -> SiteMaps:
    """Maps without intercept, with scales that are not 1."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for pair in pairs:
        head = AffineHead(pair.target.in_features, pair.source.in_features).requires_grad_(False)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / head.in_features**0.5)
        head.scale_in.copy_(torch.rand(head.in_features, generator=generator) + 0.5)
        head.scale_out.copy_(torch.rand(head.out_features, generator=generator) + 0.5)
        shape = pair.target.out_features, pair.source.out_features
        maps.append(SiteMap(pair, head, torch.randn(shape, generator=generator) / shape[1] ** 0.5))
    return SiteMaps(tuple(maps))


@settings(max_examples=40, deadline=None)
@example(
    source_family="cohere", target_family="llama", widths=(24, 32), depths=(1, 1), rank=1, alpha=14.0,
    rslora=False, strength=2.0, seed=0,
)  # fmt: skip
@given(
    source_family=st.sampled_from(sorted(FAMILIES)),
    target_family=st.sampled_from(sorted(FAMILIES)),
    widths=st.tuples(st.sampled_from([24, 32]), st.sampled_from([24, 32])),
    depths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rank=st.integers(1, 5),
    alpha=st.floats(0.5, 16),
    rslora=st.booleans(),
    strength=st.sampled_from([-0.5, 0.0, 1.0, 2.0]),
    seed=st.integers(0, 3),
)
def test_instant_equals_the_runtime_hooks(
    source_family: str,
    target_family: str,
    widths: tuple[int, int],
    depths: tuple[int, int],
    rank: int,
    alpha: float,
    rslora: bool,
    strength: float,
    seed: int,
) -> None:
    source = build_model(source_family, width=widths[0], depth=depths[0])
    target = build_model(target_family, width=widths[1], depth=depths[1])
    scaling = alpha / (rank**0.5 if rslora else rank)
    lora = build_lora(source, rank=rank, scaling=scaling, seed=seed)
    maps = random_maps(paired(source, target), seed)
    plain = Lora("instant", target.name, maps.instant(lora, strength))
    batch = target.encode(TEXTS)
    expected = KernelRunner(target, lora, maps, strength).logits(batch)
    # Rounding grows with what the adapter does, which may be much.
    effect = float((expected - PlainRunner(target).logits(batch)).abs().max())
    within = 2e-4 + 5e-4 * effect
    torch.testing.assert_close(PlainRunner(target, plain).logits(batch), expected, rtol=1e-3, atol=within)


def test_several_kernels_on_one_site_add_their_ranks() -> None:
    source, target = build_model("llama"), build_model("phi3")
    kernels = random_maps(paired(source, target), 0).instant(build_lora(source, rank=2))
    ranks = {kernel.site.role: kernel.rank for kernel in kernels}
    assert ranks == {"qkv": 6, "gate_up": 4, "o": 2, "down": 2}
    assert all(kernel.scaling == 1 for kernel in kernels)


def test_instant_refuses_what_is_not_linear_or_not_covered() -> None:
    source, target = build_model("llama"), build_model("mistral")
    lora = build_lora(source)
    maps = random_maps(paired(source, target), 0)
    with pytest.raises(HeadsError, match="No site map reaches"):
        SiteMaps(maps.maps[1:]).instant(lora)
    first = maps.maps[0]
    curved = MLPHead(first.encode.in_features, first.encode.out_features, 4)
    with pytest.raises(RequestError, match="no single matrix"):
        SiteMaps((SiteMap(first.pair, curved, first.decode), *maps.maps[1:])).instant(lora)


# --- fitting


@pytest.mark.parametrize(
    # Outputs wider than their input vary in a part of their space only: regression on outputs learns no more
    # than that part, while the adjoint's gradients fill the space.
    ("decode", "largest_error"),
    [("adjoint", 1e-5), ("ridge", 0.7), ("rotation", 0.1)],
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_between_one_and_the_same_model_instant_is_near_the_source_adapter(
    family: str, decode: str, largest_error: float
) -> None:
    lm = build_model(family, depth=2)
    lora = build_lora(lm)
    config = TranslationConfig(mode="instant", site_decode=decode, site_encode="affine", site_tokens=1500)
    maps = fit_site_maps(lm, lm, lora, heads_for(lm, lm, identity=True), corpus(64), config)
    batch = lm.encode(corpus(4, start=900))
    carried = Lora("carried", lm.name, maps.instant(lora))
    base, expected, found = (PlainRunner(lm, adapter).logits(batch) for adapter in (None, lora, carried))
    assert (found - expected).square().mean() < largest_error * (base - expected).square().mean()


@pytest.mark.parametrize("widths", [(24, 32), (32, 24)])
def test_rotations_keep_lengths_where_the_widths_allow_it(widths: tuple[int, int]) -> None:
    source, target = build_model("llama", width=widths[0]), build_model("mistral", width=widths[1])
    lora = build_lora(source, roles={"q", "o"})
    config = TranslationConfig(mode="instant", site_tokens=600)
    maps = fit_site_maps(source, target, lora, heads_for(source, target), corpus(48), config)
    for site_map in maps.maps:
        for matrix in (site_map.encode.linear_map(), site_map.decode):
            narrow = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            torch.testing.assert_close(narrow @ narrow.T, torch.eye(len(narrow)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target_family", FAMILIES)
def test_maps_are_fitted_for_every_family(target_family: str) -> None:
    source = build_model("llama", "unigram", width=24, depth=2)
    target = build_model(target_family, depth=3)
    lora = build_lora(source)
    config = TranslationConfig(mode="instant", site_tokens=300)
    maps = fit_site_maps(source, target, lora, heads_for(source, target), corpus(48), config)
    kernels = maps.instant(lora)
    assert {kernel.site.layer for kernel in kernels} == {1, 3}
    assert all(kernel.a.isfinite().all() and kernel.b.isfinite().all() for kernel in kernels)
    assert all(kernel.delta.norm() > 0 for kernel in kernels)


def reader(source: LanguageModel, target: LanguageModel, decode: str = "ridge") -> SiteReader:
    return SiteReader(
        source,
        target,
        paired(source, target),
        heads_for(source, target),
        decode=decode,
        seed=0,
        max_length=128,
    )


def joined(batches: Sequence[PairedSites]) -> PairedSites:
    """The same rows as one batch."""
    encode, decode = (
        tuple(
            tuple(torch.cat(rows) for rows in zip(*side, strict=True))
            for side in zip(*(getattr(batch, name) for batch in batches), strict=True)
        )
        for name in ("encode", "decode")
    )
    columns = zip(*(batch.pairs.columns() for batch in batches), strict=True)
    pairs = AlignedPairs(*(torch.cat(column) for column in columns))
    return PairedSites(encode, decode, batches[0].same_input, pairs)


def test_batched_moments_are_those_of_the_whole() -> None:
    """The rows are read once: two passes of a model differ in their last digits by the batch's size alone,
    and a ridge makes much of it."""
    source, target = build_model("llama", "unigram", width=24, depth=2), build_model("gpt2")
    read, texts = reader(source, target), corpus(24)
    batches = [read.read(texts[start : start + 3]) for start in range(0, 24, 3)]
    held_out = read.read(corpus(4, start=50))
    maps = []
    for parts in (batches, [joined(batches)]):
        fitter = SiteMapFitter(
            paired(source, target),
            TranslationConfig(mode="instant", site_decode="ridge", site_encode="affine"),
        )
        for part in parts:
            fitter.update(part)
        maps.append(fitter.result(held_out))
    for few, whole in zip(maps[0].maps, maps[1].maps, strict=True):
        torch.testing.assert_close(few.decode, whole.decode, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(few.encode.weight, whole.encode.weight, rtol=1e-5, atol=1e-7)


def test_the_adjoint_gradient_is_that_of_the_readout() -> None:
    """For the target's last `down` site the residual gains its output unchanged, so the gradient is u
    itself."""
    source, target = build_model("llama", depth=1), build_model("mistral", depth=1)
    pairs = tuple(pair for pair in paired(source, target, {"down"}))
    heads = heads_for(source, target)
    read = SiteReader(source, target, pairs, heads, decode="adjoint", seed=0, max_length=64)
    of_target, of_source = read.read(TEXTS).decode[0]
    # The source's gradient is D's transpose applied to the same u: Q must come out as D.
    torch.testing.assert_close(of_target @ heads.at(1).decode.linear_map(), of_source, rtol=1e-4, atol=1e-4)


def test_too_little_text_is_refused_with_numbers() -> None:
    source, target = build_model("llama"), build_model("mistral")
    config = TranslationConfig(mode="instant", site_decode="adjoint", site_encode="affine")
    with pytest.raises(CorpusError, match=r"gives \d+ aligned tokens.*need 48"):
        fit_site_maps(source, target, build_lora(source), heads_for(source, target), ["a b"] * 20, config)


def test_fitted_maps_are_kept_and_damaged_ones_fitted_again(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = build_model("llama", "unigram", width=24, depth=2), build_model("phi3")
    lora, heads, texts = build_lora(source), heads_for(source, target), corpus(40)
    config = TranslationConfig(mode="kernel", site_encode="mlp", site_tokens=400)
    first = fit_site_maps(source, target, lora, heads, texts, config, cache=tmp_path)
    assert all(isinstance(site_map.encode, MLPHead) for site_map in first.maps)
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(SiteReader, "read", lambda *_: pytest.fail("the cache was passed by"))
        second = fit_site_maps(source, target, lora, heads, texts, config, cache=tmp_path)
    x = torch.randn(5, first.maps[0].encode.in_features)
    torch.testing.assert_close(second.maps[0].encode(x), first.maps[0].encode(x))
    torch.testing.assert_close(second.maps[-1].decode, first.maps[-1].decode)
    kept.write_bytes(b"not a safetensors file")
    again = fit_site_maps(source, target, lora, heads, texts, config, cache=tmp_path)
    torch.testing.assert_close(again.maps[0].decode, first.maps[0].decode)


def test_an_mlp_encode_follows_a_curve_better(tmp_path) -> None:
    source, target = build_model("llama", "unigram", width=24, depth=2), build_model("mistral")
    lora, heads, texts = build_lora(source, roles={"down"}), heads_for(source, target), corpus(64)
    held_out = SiteReader(
        source, target, paired(source, target, {"down"}), heads, decode="ridge", seed=0, max_length=128
    ).read(corpus(16, start=500))
    errors = {}
    for form in ("affine", "mlp"):
        config = TranslationConfig(mode="kernel", site_encode=form, site_tokens=3000)
        maps = fit_site_maps(source, target, lora, heads, texts, config)
        x, y = held_out.encode[0]
        errors[form] = float((maps.maps[0].encode(x) - y).square().mean())
    assert errors["mlp"] < errors["affine"] * 1.02
