"""Baselines against the formulas that they are named for, on models whose widths and tokens differ."""

from dataclasses import replace

import pytest
import torch
from conftest import build_lora, build_model
from translation_fixtures import corpus, heads_for

from cast.activations import residuals
from cast.adapters import Kernel
from cast.alignment import LayerMap, align
from cast.baselines import BASELINES, Given
from cast.baselines.controls import random_heads, random_maps, shuffled_layers
from cast.baselines.copying import naive_copy, truncate_and_pad
from cast.baselines.distillation import self_distillation
from cast.baselines.regression import reduced_rank, reduced_rank_regression
from cast.baselines.rotations import bico, theseus
from cast.baselines.subspaces import cross_lora, lora_x, weight_of
from cast.baselines.words import proxy_tuning
from cast.corpus import Passage
from cast.errors import AdapterError, CastError
from cast.fitters import procrustes
from cast.hosting import HostedRunner
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner, Runner
from cast.scoring import completion_log_probs
from cast.site_values import watched

NAMES = ("Ana", "Bo", "Cleo", "Dan")
TEXTS = ["Once upon a time there was a little fox.", "The owl smiled"]


def kernels_of(runner: Runner) -> dict[tuple[int, str], torch.Tensor]:
    assert isinstance(runner, PlainRunner)
    assert runner.lora
    return {(kernel.site.layer, kernel.site.role): kernel.delta for kernel in runner.lora.kernels}


def place(given: Given, kernel: Kernel) -> tuple[int, str]:
    layer_map = LayerMap.by_relative_depth(given.source.depth, given.target.depth)
    return layer_map.host_of(kernel.site.layer), kernel.site.role


@pytest.fixture(scope="module")
def same_width() -> Given:
    source, target = build_model("llama", depth=2), build_model("llama", "unigram", depth=4)
    return Given(source, target, build_lora(source))


@pytest.fixture(scope="module")
def given() -> Given:
    """Widths, depths and tokenizers differ, roles do not; few texts in small batches."""
    source, target = build_model("llama", depth=2), build_model("qwen2", "unigram", width=40, depth=3)
    config = TranslationConfig(mode="instant", batch_size=4, site_tokens=400, steps=40)
    answers = [Passage(f"The fox met {name}: it smiled", len(f"The fox met {name}:")) for name in NAMES]
    return Given(
        source, target, build_lora(source), corpus(30), heads_for(source, target), config, answers=answers
    )


def test_a_copy_has_the_kernels_themselves_at_the_same_relative_depth(same_width: Given) -> None:
    copied = kernels_of(naive_copy(same_width))
    assert len(copied) == len(same_width.lora.kernels)
    for kernel in same_width.lora.kernels:
        torch.testing.assert_close(copied[place(same_width, kernel)], kernel.delta)


def test_a_copy_that_fits_nowhere_is_refused() -> None:
    source, target = build_model("llama", width=24), build_model("mistral", width=40)
    with pytest.raises(AdapterError, match="has the shape"):
        naive_copy(Given(source, target, build_lora(source)))


@pytest.mark.parametrize("width", [24, 48])
def test_truncate_and_pad_keeps_the_common_corner_and_nothing_else(width: int) -> None:
    source, target = build_model("llama", width=32), build_model("llama", width=width)
    lora = build_lora(source)
    made = kernels_of(truncate_and_pad(Given(source, target, lora)))
    assert len(made) == len(lora.kernels)
    for kernel in lora.kernels:
        delta = made[kernel.site.layer, kernel.site.role]
        rows, columns = (min(pair) for pair in zip(delta.shape, kernel.delta.shape, strict=True))
        torch.testing.assert_close(delta[:rows, :columns], kernel.delta[:rows, :columns])
        assert not delta[rows:].any()
        assert not delta[:, columns:].any()


def test_proxy_tuning_adds_the_change_of_the_logits_where_the_vocabulary_is_one() -> None:
    """s_T + s_S+ - s_S, eq. 1 of arXiv 2401.08565, here with S and T of one tokenizer."""
    source, target = build_model("llama", "byte_bpe"), build_model("mistral", "byte_bpe")
    lora, batch = build_lora(source), target.encode(TEXTS)
    real = batch.attention_mask.bool()
    got = proxy_tuning(Given(source, target, lora)).logits(batch)[real].softmax(-1)
    logits = [
        runner.logits(batch)[real]
        for runner in (PlainRunner(target), PlainRunner(source, lora), PlainRunner(source))
    ]
    wanted = (logits[0] + logits[1] - logits[2]).softmax(-1)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-2)


def singular(given: Given, kernel: Kernel) -> tuple[torch.Tensor, ...]:
    """U_s, V_s, U_t, V_t of a kernel's layer and the one it goes to, r columns each."""
    sites = {(site.layer, site.role): site for site in given.target.architecture.sites}
    weights = (
        weight_of(given.source, kernel.site),
        weight_of(given.target, sites[place(given, kernel)]),
    )
    rank = min(size for weight in weights for size in weight.shape)
    found = [torch.linalg.svd(weight, full_matrices=False) for weight in weights]
    return tuple(side for u, _, v in found for side in (u[:, :rank], v[:rank].T))


def test_cross_lora_is_the_papers_projection_where_its_equation_is_defined() -> None:
    """Eq. 3-7 of arXiv 2508.05232 by least squares, for one width; q_proj is square, so k and down tell."""
    source, target = build_model("llama", depth=2), build_model("llama", depth=2, seed=1)
    given = Given(source, target, build_lora(source))
    made = kernels_of(cross_lora(given))
    for kernel in given.lora.kernels:
        u_s, v_s, u_t, v_t = singular(given, kernel)
        u, v = (
            torch.linalg.lstsq(s.T, t.T, driver="gelsd").solution.T @ s for s, t in ((u_s, u_t), (v_s, v_t))
        )
        wanted = u @ (u.T @ kernel.delta.double() @ v) @ v.T
        torch.testing.assert_close(made[place(given, kernel)], wanted.float(), atol=1e-5, rtol=1e-4)


def test_cross_lora_carries_other_widths_by_the_papers_own_alignment(given: Given) -> None:
    made = kernels_of(cross_lora(given))
    for kernel in given.lora.kernels:
        u_s, v_s, u_t, v_t = singular(given, kernel)
        p_u, p_v = (
            torch.linalg.lstsq(s.T, t.T, driver="gelsd").solution.T for s, t in ((u_s, u_t), (v_s, v_t))
        )
        left = kernel.delta.double() if len(u_s) == len(u_t) else p_u @ kernel.delta.double()
        both = left if len(v_s) == len(v_t) else left @ p_v.T
        wanted = u_t @ u_t.T @ both @ v_t @ v_t.T
        torch.testing.assert_close(made[place(given, kernel)], wanted.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [32, 40])
def test_lora_x_is_the_change_of_singular_values_in_the_targets_subspace(width: int) -> None:
    source, target = build_model("llama", depth=2), build_model("llama", width=width, depth=2, seed=1)
    lora = build_lora(source, rank=24)  # so high that cutting to the rank takes nothing of k and v away
    given = Given(source, target, lora)
    made = kernels_of(lora_x(given))
    for kernel in lora.kernels:
        u_s, v_s, u_t, v_t = singular(given, kernel)
        if u_s.shape[1] > 24:
            continue
        shift = torch.diag(torch.diag(u_s.T @ kernel.delta.double() @ v_s))
        left = u_t @ u_t.T @ u_s if len(u_s) == len(u_t) else u_t
        right = v_t @ v_t.T @ v_s if len(v_s) == len(v_t) else v_t
        wanted = (left @ shift @ right.T).float()
        torch.testing.assert_close(made[place(given, kernel)], wanted, atol=1e-5, rtol=1e-4)


def paired_rows(given: Given, kernel: Kernel, by_gradient: bool) -> list[torch.Tensor]:
    """Inputs, and outputs or the loss's gradient there, of source and target, computed the long way."""
    sites = {(site.layer, site.role): site for site in given.target.architecture.sites}
    places = (given.source, kernel.site), (given.target, sites[place(given, kernel)])
    rows: list[list[torch.Tensor]] = [[], [], [], []]
    for text in given.texts:
        tokens = [lm.encode([text]) for lm, _ in places]
        aligned = align(*tokens)
        for turn, ((lm, site), batch) in enumerate(zip(places, tokens, strict=True)):
            at = aligned.source_position if turn == 0 else aligned.target_position
            with watched(lm, {site}, batch, True) as values:
                hidden = residuals(lm, batch, [lm.depth])[lm.depth]
            out = values.outputs[site.name]
            if by_gradient:
                said = lm.architecture.logits(hidden)[0, :-1].log_softmax(-1)
                loss = -said.gather(1, batch.input_ids[0, 1:, None]).sum()
                out = torch.autograd.grad(loss, values.probes[site.name])[0]
            rows[turn].append(values.inputs[site.name][0, at])
            rows[2 + turn].append(out[0, at])
    return [torch.cat(found).double() for found in rows]


@pytest.mark.parametrize(("make", "by_gradient"), [(theseus, False), (bico, True)])
def test_rotations_transport_the_kernel_by_procrustes_maps(make, by_gradient: bool, given: Given) -> None:
    """ΔW_t = T_outᵀ ΔW_s T_in; T = L·Rᵀ of the SVD of XᵀY."""
    made = kernels_of(make(given))
    for kernel in (given.lora.kernels[1], given.lora.kernels[-1]):
        x_s, x_t, y_s, y_t = paired_rows(given, kernel, by_gradient)
        t_in, t_out = (
            left @ right
            for left, _, right in (
                torch.linalg.svd(x.T @ y, full_matrices=False) for x, y in ((x_s, x_t), (y_s, y_t))
            )
        )
        wanted = t_out.T @ kernel.delta.double() @ t_in
        torch.testing.assert_close(made[place(given, kernel)], wanted.float(), atol=1e-4, rtol=1e-3)


def test_adapters_of_a_model_share_what_the_text_says(given: Given, tmp_path) -> None:
    first = replace(given, cache=tmp_path)
    fresh = kernels_of(bico(first))
    assert len(list(tmp_path.iterdir())) == 1
    other = replace(first, lora=build_lora(given.source, seed=5))
    made, kept = kernels_of(bico(replace(other, cache=None))), kernels_of(bico(other))
    for at, delta in made.items():
        torch.testing.assert_close(kept[at], delta)
        assert not torch.allclose(fresh[at], delta)
    (next(tmp_path.iterdir())).write_bytes(b"damaged")
    torch.testing.assert_close(kernels_of(bico(other))[at], delta)


def test_a_procrustes_map_finds_the_rotation_that_was_there() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(procrustes(x.T @ (x @ rotation)), rotation)


def test_from_a_model_to_itself_a_rotation_is_the_identity() -> None:
    lm = build_model("llama")
    lora = build_lora(lm, roles={"q", "o"})
    made = kernels_of(theseus(Given(lm, lm, lora, corpus(60))))
    for kernel in lora.kernels:
        torch.testing.assert_close(
            made[kernel.site.layer, kernel.site.role], kernel.delta, atol=1e-4, rtol=1e-3
        )


def test_a_reduced_rank_regression_is_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    x, r = (torch.randn(50, size, generator=generator, dtype=torch.float64) for size in (6, 5))

    def objective(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (r - x @ (b @ a).T).square().sum() + 3.0 * (b @ a).square().sum()

    sides = [side.requires_grad_() for side in reduced_rank(x.T @ x, x.T @ r, 3.0, 2)]
    assert torch.linalg.matrix_rank(sides[1] @ sides[0]) == 2
    best = objective(*sides)
    for gradient in torch.autograd.grad(best, sides):
        assert gradient.abs().max() < 1e-9
    for _ in range(20):
        start = [torch.randn(side.shape, generator=generator, dtype=torch.float64) for side in sides]
        start[0] = torch.linalg.lstsq(x @ start[0].T, r).solution.T @ start[0]
        assert objective(start[0].new_tensor(sides[0].detach().tolist()), start[1]) > best


def test_the_regression_writes_part_of_the_carried_change_into_the_stream() -> None:
    """From a model to itself, where heads are the identity and the change can be had."""
    lm = build_model("llama", depth=2)
    lora, texts = build_lora(lm, roles={"down"}), corpus(60)
    config = TranslationConfig(batch_size=4)
    runner = reduced_rank_regression(Given(lm, lm, lora, texts, heads_for(lm, lm, identity=True), config))
    assert isinstance(runner, PlainRunner)
    assert runner.lora
    assert {kernel.site.role for kernel in runner.lora.kernels} == {"o", "down"}
    assert runner.lora.rank == config.served_rank(lora.rank)
    tokens, states = lm.encode(texts), []
    for acting in (None, lora, runner.lora):
        last = PlainRunner(lm, acting).normed(tokens.input_ids, attention_mask=tokens.attention_mask)
        states.append(last[tokens.ends > 0])
    base, wanted, got = states
    assert (wanted - got).square().sum() < 0.75 * (wanted - base).square().sum()


def test_distillation_learns_what_was_written_and_reads_nothing_else(given: Given) -> None:
    """Hard labels: of the source nothing but the text of its answers counts; empty ones are left out."""
    given = replace(given, config=replace(given.config, steps=100))
    runner = self_distillation(given)
    assert isinstance(runner, PlainRunner)
    assert runner.lora
    assert runner.lora.rank == given.config.served_rank(given.lora.rank)
    said = [(f"The fox met {name}:", " it smiled") for name in NAMES]
    before, after = (sum(completion_log_probs(way, said)) for way in (PlainRunner(given.target), runner))
    assert before < 5 * after < 0
    empty = Passage("The fox met Eve:", len("The fox met Eve:"))
    other = replace(given, lora=build_lora(given.source, seed=5), answers=[*given.answers, empty])
    again = kernels_of(self_distillation(other))
    for at, delta in kernels_of(runner).items():
        torch.testing.assert_close(again[at], delta)


def test_random_heads_keep_the_scales_and_nothing_else(given: Given) -> None:
    runner = random_heads(given)
    assert isinstance(runner, HostedRunner)
    fitted, drawn = (heads.at(given.target.depth).decode for heads in (given.fitted_heads(), runner.heads))
    torch.testing.assert_close(drawn.scale_out, fitted.scale_out)
    mixed = torch.cosine_similarity(drawn.weight.flatten(), fitted.weight.flatten(), dim=0)
    assert mixed.abs() < 0.2


def test_random_maps_are_as_large_as_the_fitted_ones(given: Given) -> None:
    from cast.site_fitting import fit_site_maps

    maps = fit_site_maps(
        given.source, given.target, given.lora, given.fitted_heads(), given.texts, given.config
    )
    fitted, drawn = maps.instant(given.lora), kernels_of(random_maps(given))
    for kernel in fitted:
        other = drawn[kernel.site.layer, kernel.site.role]
        assert 0.05 < other.norm() / kernel.delta.norm() < 20
        assert torch.cosine_similarity(other.flatten(), kernel.delta.flatten(), dim=0).abs() < 0.5


def test_shuffled_layers_move_every_kernel_to_another_block(given: Given) -> None:
    from cast.site_fitting import fit_site_maps

    maps = fit_site_maps(
        given.source, given.target, given.lora, given.fitted_heads(), given.texts, given.config
    )
    own = {(kernel.site.layer, kernel.site.role): kernel.delta for kernel in maps.instant(given.lora)}
    moved = kernels_of(shuffled_layers(given))
    assert own.keys() == moved.keys()
    for at, delta in own.items():
        assert not torch.allclose(moved[at], delta)
        assert any(torch.equal(moved[other], delta) for other in moved if other[1] == at[1])


@pytest.mark.parametrize("name", BASELINES)
def test_each_is_known_by_name_with_its_reference_and_acts_in_bounds(name: str, given: Given) -> None:
    """A runner comes out whose next-token distributions are numbers, and whose rank is the adapter's."""
    entry = BASELINES[name]
    assert entry.name == name
    assert entry.reference
    if name == "naive-copy":
        pytest.skip("no shape of this pair fits; tested above")
    runner = entry.make(given)
    batch = given.target.encode(TEXTS)
    logits = runner.logits(batch)[batch.attention_mask.bool()]
    assert logits.isfinite().all()
    assert not torch.allclose(logits, PlainRunner(given.target).logits(batch)[batch.attention_mask.bool()])


@pytest.mark.parametrize(
    "name", [name for name, entry in BASELINES.items() if entry.needs_text or entry.needs_prompts]
)
def test_what_needs_text_or_heads_says_so(name: str, given: Given) -> None:
    with pytest.raises(CastError, match=r"give some|fit them"):
        BASELINES[name].make(replace(given, texts=(), heads=None, answers=()))
