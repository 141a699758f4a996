"""Positions pair exactly where both tokenizers have read the same text; the layer map is monotone."""

from itertools import combinations_with_replacement, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cast.alignment import LayerMap, align, positions_by_end
from cast.errors import RequestError
from cast.models import TokenBatch

TEXTS = (
    "Once upon a time there was a little fox.",
    "  two leading spaces, and two  inside",
    "naïve café, “quotes” — 🦊🦊 and 👩‍👩‍👧 end",
    "日本語のテキスト。",
    "\n\n\tlines\n",
    "🦊",
    "",
)
KINDS = ("byte_bpe", "unigram", "char_bpe")


def batch_of(ends: list[list[int]], texts: tuple[str, ...] | None = None) -> TokenBatch:
    tensor = torch.tensor(ends, dtype=torch.int64).reshape(len(ends), -1)
    return TokenBatch(texts or tuple("x" for _ in ends), tensor, torch.ones_like(tensor), tensor)


def pairs_by_loop(source: TokenBatch, target: TokenBatch) -> list[tuple[int, int, int]]:
    """The definition, word for word."""
    found = []
    for row, (mine, yours) in enumerate(zip(source.ends.tolist(), target.ends.tolist(), strict=True)):
        for end in sorted({*mine} & {*yours}):
            if end >= 1:
                last = (max(i for i, value in enumerate(side) if value == end) for side in (mine, yours))
                found.append((row, *last))
    return found


@pytest.mark.parametrize("source_kind", KINDS)
@pytest.mark.parametrize("target_kind", KINDS)
def test_real_tokenizers_pair_where_they_have_read_the_same_characters(tiny_model, source_kind, target_kind):
    source, target = tiny_model("llama", source_kind), tiny_model("mistral", target_kind)
    source_tokens, target_tokens = source.encode(TEXTS), target.encode(TEXTS)
    pairs = align(source_tokens, target_tokens)
    assert list(zip(*(column.tolist() for column in pairs.columns()), strict=True)) == pairs_by_loop(
        source_tokens, target_tokens
    )
    for row, i, j in zip(*pairs.columns(), strict=True):
        assert source_tokens.ends[row, i] == target_tokens.ends[row, j] > 0
        assert i > 0
        assert j > 0
    # Every text but the empty one ends where both have read all of it.
    assert set(pairs.row.tolist()) == set(range(len(TEXTS) - 1))
    for row in range(len(TEXTS) - 1):
        last = pairs.source_position[pairs.row == row][-1]
        assert source_tokens.ends[row, last] == source_tokens.ends[row].max()


def test_a_character_of_several_tokens_pairs_at_its_last_token(tiny_model):
    lm = tiny_model("llama", "byte_bpe")
    tokens = lm.encode(("a🦊b",))
    split = (tokens.ends[0] == 2).nonzero().flatten()
    assert len(split) > 1, "the fox is one token here, so this test tests nothing"
    pairs = align(tokens, tokens)
    assert split[-1] in pairs.source_position
    assert not set(split[:-1].tolist()) & set(pairs.source_position.tolist())


def test_the_same_tokens_pair_with_themselves_but_for_the_bos(tiny_model):
    tokens = tiny_model("llama", "char_bpe").encode(("Once upon a time",))
    pairs = align(tokens, tokens)
    assert torch.equal(pairs.source_position, pairs.target_position)
    assert pairs.source_position.tolist() == list(range(1, int(tokens.attention_mask.sum())))


def test_texts_without_tokens_have_no_pairs():
    for ends in ([[-1]], [[-1, -1]], [[]]):
        assert len(align(batch_of(ends), batch_of(ends))) == 0
    none = TokenBatch((), *(torch.zeros(0, 0, dtype=torch.int64) for _ in range(3)))
    assert len(align(none, none)) == 0


def test_different_texts_are_refused():
    with pytest.raises(RequestError, match="different texts"):
        align(batch_of([[-1, 1]], ("a",)), batch_of([[-1, 1]], ("b",)))


rows = st.lists(st.integers(-1, 12), min_size=5, max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=4))
def test_alignment_is_its_definition_and_symmetric(drawn):
    source, target = (batch_of([pair[side] for pair in drawn]) for side in (0, 1))
    pairs, mirrored = align(source, target), align(target, source)
    listed = list(zip(*(column.tolist() for column in pairs.columns()), strict=True))
    assert listed == pairs_by_loop(source, target)
    assert torch.equal(pairs.source_position, mirrored.target_position)
    assert torch.equal(pairs.target_position, mirrored.source_position)


def test_the_last_position_of_an_end_wins_and_padding_is_passed_over():
    table = positions_by_end(torch.tensor([[-1, 2, 2, 5, 0, -1]]), 6)
    assert table.tolist() == [[-1, -1, 2, -1, -1, 3]]


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_map_by_relative_depth_hosts_each_source_block_once(source_depth, target_depth):
    layer_map = LayerMap.by_relative_depth(source_depth, target_depth)
    assert (layer_map[0], layer_map[target_depth]) == (0, source_depth)
    assert (layer_map.source_depth, layer_map.target_depth) == (source_depth, target_depth)
    hosted = [block for target in range(1, target_depth + 1) for block in layer_map.hosted_by(target)]
    assert hosted == list(range(1, source_depth + 1))
    for block in hosted:
        assert block in layer_map.hosted_by(layer_map.host_of(block))
    steps = {after - before for before, after in pairwise(layer_map.table)}
    assert max(steps) - min(steps) <= 1


@st.composite
def likenesses(draw):
    """Of up to 5 source depths to up to 6 target depths, in whole numbers, so that sums can be equal."""
    target_depth = draw(st.integers(1, 5))
    row = st.lists(st.integers(-9, 9), min_size=target_depth + 1, max_size=target_depth + 1)
    return draw(st.lists(row, min_size=2, max_size=5))


@given(likenesses())
def test_the_map_by_likeness_is_the_best_of_all_monotone_maps(alike):
    source_depth, target_depth = len(alike) - 1, len(alike[0]) - 1

    def total(table):
        return sum(alike[at][depth] for depth, at in enumerate(table))

    chosen = LayerMap.by_likeness(alike).table
    every = [
        (0, *middle, source_depth)
        for middle in combinations_with_replacement(range(source_depth + 1), target_depth - 1)
    ]
    assert chosen in every  # Monotone, from end to end.
    assert total(chosen) == max(map(total, every))
    # Where several are best, the choice does not hang on the order of the search: it is the lowest.
    assert chosen == min(table for table in every if total(table) == total(chosen))


def test_a_map_by_likeness_needs_two_stacks():
    for alike in ([[1.0, 1.0]], [[1.0], [1.0]]):
        with pytest.raises(RequestError, match="need"):
            LayerMap.by_likeness(alike)


def test_equal_depths_map_one_to_one():
    assert LayerMap.by_relative_depth(4, 4).table == (0, 1, 2, 3, 4)
    assert LayerMap.by_relative_depth(30, 18)[9] == 15


@pytest.mark.parametrize("table", [(), (0,), (1, 2), (0, 2, 1), (0, 0)])
def test_maps_that_are_none_are_refused(table):
    with pytest.raises(RequestError, match="layer map"):
        LayerMap(table)


def test_depths_and_blocks_outside_the_map_are_refused():
    layer_map = LayerMap((0, 1, 2))
    for call in (
        lambda: layer_map[3],
        lambda: layer_map[-1],
        lambda: layer_map.host_of(0),
        lambda: layer_map.host_of(3),
    ):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(RequestError, match="need"):
        LayerMap.by_relative_depth(0, 3)
