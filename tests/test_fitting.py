"""Fitted heads against oracles; a killed fit goes on as if nothing had happened; short text is refused."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from sklearn.linear_model import Ridge

from cast.activations import Moments, PairedBatch
from cast.alignment import AlignedPairs
from cast.corpus import general_text
from cast.errors import Cancelled, CorpusError, HeadsError, RequestError
from cast.fitters import GradientSchedule, MLPFitter, RidgeFitter, next_token_kl, ridge_head, widened
from cast.fitting import FitConfig, fit_heads
from cast.heads import HeadSet, MLPHead
from cast.measures import r_squared
from cast.unfinished import CHECKPOINT

SMALL = FitConfig(
    tokens=900, held_out_tokens=200, mlp_width=8, deepest_width=12, batch_size=6, step_rows=128,
    chunk_rows=300, save_seconds=0.0,
)  # fmt: skip


def paired(source: torch.Tensor, target: torch.Tensor, depth: int = 0) -> PairedBatch:
    places = torch.arange(len(source))
    return PairedBatch({depth: source}, {depth: target}, AlignedPairs(places, places, places))


def nonlinear(n: int, seed: int = 0) -> PairedBatch:
    """Targets that an affine map of the source predicts only in part."""
    draw = torch.Generator().manual_seed(1)
    mix, inner, outer = (torch.randn(6, 6, generator=draw) for _ in range(3))
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return paired(x, x @ mix * 0.3 + torch.tanh(2 * x @ inner) @ outer)


@pytest.fixture(scope="module")
def pair(tiny_model):
    return tiny_model("llama", "byte_bpe", depth=2), tiny_model("mistral", "unigram", width=24, depth=3)


@pytest.fixture(scope="module")
def texts():
    return list(islice(general_text(), 60))


@pytest.fixture(scope="module")
def whole(pair, texts):
    return fit_heads(*pair, texts, SMALL)


def same_weights(one, other) -> bool:
    return all(
        torch.equal(mine, yours)
        for depth in one.depths
        for head, twin in zip(one.at(depth), other.at(depth), strict=True)
        for mine, yours in zip(head.state_dict().values(), twin.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_the_solve_is_ridge_regression_on_standardised_columns(ridge):
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(200, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 5000, 0.01, 1, 2])
        + 3
    )
    y = x[:, :3] @ torch.randn(3, 4, generator=generator, dtype=torch.float64) + 1
    y += torch.randn(200, 4, generator=generator, dtype=torch.float64)
    moments = Moments(5, 4)
    for part in torch.arange(200).split(33):
        moments.update(x[part], y[part])
    head = ridge_head(moments, x, y, ridges=[ridge])
    scale, spread = x.std(0, unbiased=False), y.std(0, unbiased=False)
    oracle = Ridge(alpha=ridge * 200).fit(
        ((x - x.mean(0)) / scale).numpy(), ((y - y.mean(0)) / spread).numpy()
    )
    torch.testing.assert_close(head.weight.double(), torch.from_numpy(oracle.coef_), rtol=1e-4, atol=1e-5)
    raw = Ridge(alpha=1e-9).fit(x.numpy(), y.numpy())
    exact = ridge_head(moments, x, y, ridges=[1e-12])
    torch.testing.assert_close(
        exact(x).double(), torch.from_numpy(raw.predict(x.numpy())), rtol=1e-3, atol=1e-3
    )


def test_the_ridge_is_chosen_by_pairs_that_were_not_fitted_on():
    noise = torch.Generator().manual_seed(0)
    x, y, held_x, held_y = (torch.randn(40, 30, generator=noise) for _ in range(4))
    moments = Moments(30, 30)
    moments.update(x, y)
    weak = ridge_head(moments, held_x, held_y, ridges=[1e-6])
    chosen = ridge_head(moments, held_x, held_y)
    assert r_squared(chosen(held_x), held_y) > r_squared(weak(held_x), held_y) + 0.5


def test_a_singular_problem_is_solved_all_the_same():
    x = torch.randn(50, 3)[:, [0, 1, 1, 2, 2]]
    moments = Moments(5, 5)
    moments.update(x, x)
    assert r_squared(ridge_head(moments, x, x)(x), x) > 0.999


def test_heads_both_ways_from_the_same_moments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    batch = paired(x, x @ turn + 2)
    ridge = RidgeFitter([0], 6, 6)
    for rows in torch.arange(300).split(70):
        ridge.update(batch.take(rows))
    pair = ridge.result(batch)[0]
    torch.testing.assert_close(pair.decode(batch.source[0]), batch.target[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(pair.encode(batch.target[0]), batch.source[0], rtol=1e-2, atol=1e-2)


def test_one_pair_determines_nothing():
    batch = paired(torch.randn(1, 4), torch.randn(1, 4))
    ridge = RidgeFitter([0], 4, 4)
    ridge.update(batch)
    with pytest.raises(CorpusError, match="1 aligned tokens"):
        ridge.result(batch)


def test_gradient_steps_fit_what_an_affine_head_cannot():
    held, ridge = nonlinear(300, seed=1), RidgeFitter([0], 6, 6)
    ridge.update(nonlinear(2000))
    affine = ridge.result(held)[0].decode
    before = r_squared(affine(held.source[0]), held.target[0])
    heads = {(0, "decode"): widened(affine, 48, torch.Generator().manual_seed(0))}
    fitter = MLPFitter(
        heads, GradientSchedule(rows=300 * 256, learning_rate=1e-2), deepest=(9, "decode"), logits=lambda h: h
    )
    for step in range(300):
        fitter.update(nonlinear(256, seed=step + 2))
    fitter.validate(held)
    head = fitter.result()[0, "decode"]
    assert isinstance(head, MLPHead)
    assert r_squared(head(held.source[0]), held.target[0]) > before + 0.4 * (1 - before)
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_the_best_head_on_held_out_pairs_is_kept():
    held, ridge = nonlinear(300, seed=1), RidgeFitter([0], 6, 6)
    ridge.update(nonlinear(2000))
    affine = ridge.result(held)[0].decode
    good = affine.weight.clone()
    fitter = MLPFitter(
        {(0, "decode"): affine}, GradientSchedule(rows=10_000, learning_rate=10.0), deepest=(9, "decode"),
        logits=lambda h: h,
    )  # fmt: skip
    first = fitter.validate(held)
    for _ in range(5):
        fitter.update(nonlinear(256))
    assert fitter.validate(held)["r_squared"] < first["r_squared"]
    assert torch.equal(fitter.result()[0, "decode"].weight, good)


def test_the_deepest_decode_head_learns_the_targets_own_metric():
    draw = torch.Generator().manual_seed(0)
    unembed = torch.randn(6, 12, generator=draw) * torch.tensor([3.0, 3, 0.1, 0.1, 0.1, 0.1])[:, None]
    held, ridge = nonlinear(300, seed=1), RidgeFitter([0], 6, 6)
    ridge.update(nonlinear(2000))
    kl = {}
    for weight in (0.0, 10.0):
        affine = ridge.result(held)[0].decode
        fitter = MLPFitter(
            {(0, "decode"): affine}, GradientSchedule(rows=100 * 256, learning_rate=5e-3, kl_weight=weight),
            deepest=(0, "decode"), logits=lambda h: h @ unembed,
        )  # fmt: skip
        for step in range(100):
            fitter.update(nonlinear(256, seed=step + 2))
        metrics = fitter.validate(held)
        head = fitter.result()[0, "decode"]
        kl[weight] = float(next_token_kl(lambda h: h @ unembed, held.target[0], head(held.source[0])))
        assert ("kl" in metrics) == (weight > 0) or metrics["kl"] == 0
    assert kl[10.0] < 0.9 * kl[0.0]


def test_the_kl_is_that_of_the_distributions():
    logits = torch.randn(7, 5)
    other = torch.randn(7, 5)
    wanted, got = (torch.distributions.Categorical(logits=values) for values in (logits, other))
    expected = torch.distributions.kl_divergence(wanted, got).mean()
    torch.testing.assert_close(next_token_kl(lambda h: h, logits, other), expected)


def test_a_whole_fit_and_its_record(pair):
    stages = []
    heads = fit_heads(
        *pair, general_text(), replace(SMALL, corpus="stories"), on_progress=lambda p: stages.append(p.stage)
    )
    assert list(dict.fromkeys(stages)) == ["text", "activations", "heads", "quality"]
    assert heads.depths == (0, 1, 2, 3)
    heads.check(*pair)
    assert heads.recipe.tokens >= 800
    assert (heads.recipe.corpus, heads.recipe.kind, heads.recipe.dtype) == ("stories", "mlp", "float32")
    assert heads.at(3).decode.width == 12
    assert heads.at(3).encode.width == heads.at(0).decode.width == 8
    assert [entry.source_depth for entry in heads.quality] == list(heads.layer_map.table)
    for entry in heads.quality:
        for quality in (entry.encode, entry.decode):
            for measure in (quality.r_squared, quality.cosine, quality.knn_overlap, quality.cka):
                assert measure.value > measure.control
    assert [entry.decode.kl is None for entry in heads.quality] == [True, True, True, False]


@pytest.mark.parametrize("layers", ["r2", "cka", "knn"])
def test_layers_are_mapped_to_those_that_are_most_alike(tiny_model, layers):
    """The target is the source behind a block that does nothing; relative depth would map it otherwise."""
    source = tiny_model("llama", depth=2)
    target = tiny_model("llama", depth=3, seed=77)  # Of this test alone, which writes into it.
    blocks = target.architecture.blocks
    target.model.load_state_dict(source.model.state_dict(), strict=False)
    for block, like in zip(blocks[1:], source.architecture.blocks, strict=True):
        block.load_state_dict(like.state_dict())
    with torch.no_grad():
        for writes in (blocks[0].self_attn.o_proj, blocks[0].mlp.down_proj):
            writes.weight.zero_()
    stages = []
    config = replace(SMALL, kind="affine", kl_weight=0.0, layers=layers)
    heads = fit_heads(source, target, general_text(), config, on_progress=lambda p: stages.append(p.stage))
    assert heads.layer_map.table == (0, 0, 1, 2)
    assert heads.recipe.layers == layers
    assert "layers" in stages
    # The heads are those of the map: with it every state is found again exactly.
    assert min(entry.decode.r_squared.value for entry in heads.quality) > 0.999


@pytest.mark.parametrize("reads", [1, 2])
def test_an_encode_head_finds_what_only_an_earlier_depth_holds(reads):
    draw = torch.Generator().manual_seed(2)
    earlier, own, held_earlier, held_own = (torch.randn(400, 6, generator=draw) for _ in range(4))
    ways = torch.randn(2, 6, 6, generator=draw)

    def batch(before, at):
        source, places = before @ ways[0] + at @ ways[1], torch.arange(len(at))
        pairs = AlignedPairs(places, places, places)
        return PairedBatch({0: before, 1: source}, {0: before, 1: at}, pairs)

    fitter, held = RidgeFitter((0, 1), 6, 6, reads), batch(held_earlier, held_own)
    fitter.update(batch(earlier, own))
    resumed = RidgeFitter((0, 1), 6, 6, reads)
    resumed.load_state(fitter.state())
    encode = resumed.result(held)[1].encode
    found = r_squared(encode(held.below(1, reads)), held.source[1])
    assert found > 0.999 if reads == 2 else found < 0.7


@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_encode_heads_that_read_several_depths_are_kept_and_gone_on_with(pair, texts, kind, tmp_path):
    config = replace(SMALL, kind=kind, encode_reads=3)
    heads = fit_heads(*pair, texts, config)
    heads.save(tmp_path / "heads")
    read = [HeadSet.load(tmp_path / "heads").read_by_encode(depth) for depth in range(4)]
    assert read == [range(1), range(2), range(3), range(1, 4)]
    alone = fit_heads(*pair, texts, replace(config, kind="affine", depths=(2,)))
    assert alone.depths == (2,)
    assert alone.read_by_encode(2) == range(3)

    def kill(progress):
        if progress.stage == "activations" and progress.done >= progress.total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_heads(*pair, texts, config, checkpoint=tmp_path, on_progress=kill)
    assert same_weights(fit_heads(*pair, texts, config, checkpoint=tmp_path), heads)


def test_the_same_model_is_carried_by_the_identity(tiny_model):
    lm = tiny_model("llama", depth=2)
    heads = fit_heads(lm, lm, general_text(), replace(SMALL, kind="affine", kl_weight=0.0))
    for entry in heads.quality:
        assert entry.decode.r_squared.value > 0.999
        assert entry.decode.knn_overlap.value > 0.9
    assert heads.quality[-1].decode.kl < 1e-3
    change = torch.randn(4, lm.width)
    torch.testing.assert_close(change @ heads.at(1).decode.linear_map().T, change, rtol=0.05, atol=0.05)


def test_the_same_seed_gives_the_same_heads(pair, texts, whole):
    assert same_weights(fit_heads(*pair, iter(texts), SMALL), whole)


def test_affine_heads_at_chosen_depths_only(pair):
    config = replace(SMALL, kind="affine", depths=(3, 0))
    heads = fit_heads(*pair, general_text(), config)
    plain = fit_heads(*pair, general_text(), replace(config, kl_weight=0.0))
    assert heads.depths == (0, 3)
    assert not isinstance(heads.at(3).decode, MLPHead)
    assert heads.quality[-1].decode.kl <= plain.quality[-1].decode.kl
    torch.testing.assert_close(heads.at(3).encode.weight, plain.at(3).encode.weight)


@pytest.mark.parametrize("stage", ["activations", "heads"])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(pair, texts, whole, tmp_path, stage):
    seen = []

    def kill(progress):
        seen.append(progress.stage)
        if stage in seen:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        fit_heads(*pair, texts, SMALL, checkpoint=tmp_path, on_progress=kill)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    after = []
    resumed = fit_heads(*pair, texts, SMALL, checkpoint=tmp_path, on_progress=lambda p: after.append(p.stage))
    assert ("activations" in after) == (stage == "activations")
    assert same_weights(resumed, whole)
    assert resumed.quality == whole.quality
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_another_fit_or_damaged_are_refused(pair, texts, tmp_path):

    def kill(progress):
        if progress.stage == "activations":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        fit_heads(*pair, texts, SMALL, checkpoint=tmp_path, on_progress=kill)
    with pytest.raises(HeadsError, match="belongs to another fit"):
        fit_heads(*pair, texts, replace(SMALL, seed=1), checkpoint=tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"no")
    with pytest.raises(HeadsError, match="is damaged"):
        fit_heads(*pair, texts, SMALL, checkpoint=tmp_path)


@pytest.mark.parametrize("few", [[], ["One fox."]])
def test_text_too_short_to_determine_heads_is_refused(pair, few):
    with pytest.raises(CorpusError, match=r"aligned tokens .* but 264 are needed"):
        fit_heads(*pair, few, SMALL)


def test_only_as_much_text_is_read_as_is_needed(pair):
    read = []

    def endless():
        for text in general_text():
            read.append(text)
            yield text

    fit_heads(*pair, endless(), replace(SMALL, kind="affine", depths=(0,)))
    assert len(read) < 80


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "conv"},
        {"layers": "width"},
        {"tokens": 0},
        {"mlp_width": -1},
        {"step_rows": 0},
        {"learning_rate": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(RequestError):
        FitConfig(**change)


@pytest.mark.parametrize("depths", [(4,), (-1,), ()])
def test_depths_outside_the_target_are_refused(pair, depths):
    with pytest.raises(RequestError, match="depths 0 to 3"):
        fit_heads(*pair, general_text(), replace(SMALL, depths=depths))
