"""Captured states are the residual stream, paired ones are aligned, batched moments equal the whole."""

from dataclasses import replace
from itertools import combinations, pairwise
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cast.activations import (
    _A_PASS,
    Moments,
    PairedBatch,
    _of_like_length,
    captured,
    paired_batches,
    residuals,
    residuals_by_length,
)
from cast.alignment import LayerMap, align
from cast.errors import RequestError

FAMILIES = ("llama", "gemma2", "phi3", "gpt2", "gpt_neox", "opt", "falcon")
TEXTS = ("Once upon a time there was a fox.", 'The owl said: "You\'re late 🦊!"', "", "river")


def every_depth(lm) -> tuple[int, ...]:
    return tuple(range(lm.depth + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_state_gives_the_models_own_logits(tiny_model, family):
    lm = tiny_model(family)
    batch = lm.encode(TEXTS)
    with torch.no_grad():
        states = residuals(lm, batch, every_depth(lm))
        logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        again = lm.architecture.logits(states[lm.depth])
    assert set(states) == set(every_depth(lm))
    assert all(state.shape == (*batch.input_ids.shape, lm.width) for state in states.values())
    kept = batch.attention_mask.bool()
    torch.testing.assert_close(again[kept], logits[kept])


@pytest.mark.parametrize("family", FAMILIES)
def test_short_rows_are_read_apart_from_long_ones_and_nothing_else_changes(tiny_model, family):
    lm = tiny_model(family)
    long = "Once upon a time there was a fox who slept all day and read at night. "
    batch = lm.encode([long, "An owl.", long[:60], "", "A fox.", long[:40] * 2])
    sizes: list[tuple[int, ...]] = []
    count = lm.architecture.blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append((args or (kwargs["hidden_states"],))[0].shape),
        with_kwargs=True,
    )
    table = lm.architecture.decoder.get_input_embeddings().weight
    gradients = []
    kept = batch.attention_mask.bool()
    try:
        with patch("cast.activations._A_PASS", 2):
            for read in (residuals, residuals_by_length):
                table.requires_grad_(True)
                states = read(lm, batch, every_depth(lm))
                loss = sum(state[kept].sin().sum() for state in states.values())
                gradients.append((states, torch.autograd.grad(loss, table)[0]))
    finally:
        table.requires_grad_(False)
        count.remove()
    (together, its_gradient), (apart, same_gradient) = gradients
    assert len(sizes) > 2
    assert sum(size[0] for size in sizes[1:]) == len(batch.texts)
    assert sum(size[0] * size[1] for size in sizes[1:]) < batch.input_ids.numel()
    for depth, states in together.items():
        torch.testing.assert_close(apart[depth][kept], states[kept], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same_gradient, its_gradient, rtol=1e-3, atol=1e-4)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_rows_are_cut_into_the_passes_that_cost_least(lengths):
    def cost(passes):
        return sum(_A_PASS + len(rows) * max(lengths[row] for row in rows) for rows in passes)

    found = _of_like_length(lengths)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    every_way = (
        [order[start:end] for start, end in pairwise([0, *cuts, len(order)])]
        for count in range(len(order))
        for cuts in combinations(range(1, len(order)), count)
    )
    assert cost(found) == min(map(cost, every_way))


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_states_are_those_that_transformers_reports(tiny_model, family):
    lm = tiny_model(family)
    batch = lm.encode(TEXTS[:1])
    with torch.no_grad(), captured(lm, every_depth(lm)[:-1]) as states:
        reported = lm.model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    for depth, state in states.items():
        torch.testing.assert_close(state, reported[depth])


def test_a_change_by_a_hook_is_seen_whichever_hook_came_first(tiny_model):
    lm = tiny_model("llama")
    batch = lm.encode(TEXTS[:1])
    with torch.no_grad():
        plain = residuals(lm, batch, [1, 2])
        with captured(lm, [1, 2]) as states:
            handle = lm.architecture.blocks[0].register_forward_hook(
                lambda module, args, output: output + 1.0
            )
            lm.model(input_ids=batch.input_ids)
            handle.remove()
    torch.testing.assert_close(states[1], plain[1] + 1.0)
    assert not torch.allclose(states[2], plain[2])


def test_hooks_are_gone_after_the_block_even_after_an_error(tiny_model):
    lm = tiny_model("llama")
    readers = (*lm.architecture.blocks, lm.architecture.final_norm)
    before = [len(reader._forward_pre_hooks) for reader in readers]

    def fail_inside() -> None:
        with captured(lm, every_depth(lm)):
            assert [len(reader._forward_pre_hooks) for reader in readers] == [count + 1 for count in before]
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [len(reader._forward_pre_hooks) for reader in readers] == before


def test_a_model_without_final_norm_is_captured_at_its_last_block(tiny_model, monkeypatch):
    lm = tiny_model("llama", seed=5)
    batch = lm.encode(TEXTS[:1])
    expected = residuals(lm, batch, [lm.depth])[lm.depth]
    bare = replace(lm.architecture, final_norm=None)
    monkeypatch.setitem(vars(lm), "architecture", bare)
    torch.testing.assert_close(residuals(lm, batch, [lm.depth])[lm.depth], expected)


def test_gradients_flow_through_captured_states(tiny_model):
    lm = tiny_model("llama")
    batch = lm.encode(TEXTS[:1])
    scale = torch.ones((), requires_grad=True)
    handle = lm.architecture.blocks[0].register_forward_hook(lambda module, args, output: output * scale)
    with captured(lm, [lm.depth]) as states:
        lm.model(input_ids=batch.input_ids)
    handle.remove()
    states[lm.depth].sum().backward()
    assert scale.grad is not None
    assert scale.grad != 0


@pytest.mark.parametrize("depth", [-1, 4])
def test_depths_outside_the_model_are_refused(tiny_model, depth):
    with pytest.raises(RequestError, match="there is no depth"), captured(tiny_model("llama"), [depth]):
        pass


def test_paired_batches_hold_both_models_states_at_the_aligned_positions(tiny_model):
    source, target = tiny_model("llama", "byte_bpe"), tiny_model("gemma2", "unigram", depth=4)
    layer_map = LayerMap.by_relative_depth(source.depth, target.depth)
    (batch,) = paired_batches(source, target, TEXTS, layer_map, batch_size=8)
    source_tokens, target_tokens = source.encode(TEXTS), target.encode(TEXTS)
    pairs = align(source_tokens, target_tokens)
    assert len(batch) == len(pairs) > 10
    assert set(batch.source) == set(batch.target) == set(every_depth(target))
    with torch.no_grad():
        mine = residuals(source, source_tokens, every_depth(source))
        yours = residuals(target, target_tokens, every_depth(target))
    for depth in every_depth(target):
        torch.testing.assert_close(
            batch.source[depth], mine[layer_map[depth]][pairs.row, pairs.source_position]
        )
        torch.testing.assert_close(batch.target[depth], yours[depth][pairs.row, pairs.target_position])


def test_batches_of_any_size_hold_the_same_pairs(tiny_model):
    source, target = tiny_model("llama", "byte_bpe"), tiny_model("mistral", "char_bpe")
    layer_map = LayerMap.by_relative_depth(source.depth, target.depth)

    def joined(size: int) -> PairedBatch:
        stream = paired_batches(source, target, iter(TEXTS), layer_map, batch_size=size, depths=(0, 3))
        return PairedBatch.joined(list(stream))

    whole, single = joined(len(TEXTS)), joined(1)
    assert set(whole.source) == {0, 3}
    for depth in (0, 3):
        torch.testing.assert_close(whole.source[depth], single.source[depth], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.target[depth], single.target[depth], rtol=1e-4, atol=1e-5)
    # The empty text has no batch of its own, so the texts after it are numbered one lower.
    assert whole.pairs.row.unique().tolist() == [0, 1, 3]
    assert single.pairs.row.unique().tolist() == [0, 1, 2]


def test_taking_rows_keeps_both_sides_together(tiny_model):
    lm = tiny_model("llama")
    (batch,) = paired_batches(lm, lm, TEXTS, LayerMap.by_relative_depth(3, 3), batch_size=8)
    taken = batch.take(torch.tensor([4, 1]))
    assert len(taken) == 2
    torch.testing.assert_close(taken.source[2], batch.source[2][[4, 1]])
    torch.testing.assert_close(taken.target[2], batch.target[2][[4, 1]])
    assert taken.pairs.row.tolist() == batch.pairs.row[[4, 1]].tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.floats(-1e4, 1e4), st.integers(0, 99))
def test_moments_by_batches_equal_the_whole(sizes, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64) + offset
    y = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 100 + x[:, :3]
    moments = Moments(4, 3)
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        moments.update(part_x, part_y)
    assert moments.count == n
    if not n:
        return
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    tolerance = {"rtol": 1e-7, "atol": 1e-6}
    torch.testing.assert_close(moments.mean_x, x.mean(0), **tolerance)
    torch.testing.assert_close(moments.mean_y, y.mean(0), **tolerance)
    torch.testing.assert_close(moments.xx, centred_x.T @ centred_x, **tolerance)
    torch.testing.assert_close(moments.xy, centred_x.T @ centred_y, **tolerance)
    torch.testing.assert_close(moments.yy, centred_y.T @ centred_y, **tolerance)


def test_moments_go_on_from_a_kept_state_and_swap():
    x, y = torch.randn(20, 4), torch.randn(20, 3)
    whole, first, second = Moments(4, 3), Moments(4, 3), Moments(4, 3)
    whole.update(x, y)
    first.update(x[:7], y[:7])
    second.load_state({name: value.clone() for name, value in first.state().items()})
    second.update(x[7:], y[7:])
    torch.testing.assert_close(second.xy, whole.xy)
    swapped = Moments(3, 4)
    swapped.update(y, x)
    torch.testing.assert_close(whole.swapped().xy, swapped.xy)
    torch.testing.assert_close(whole.swapped().mean_x, swapped.mean_x)
