"""Hosting: source blocks reproduce the source, and a LoRA hosted by its own model is the adapted model."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, fresh_logits

from cast.activations import captured, residuals
from cast.adapters import Lora
from cast.alignment import LayerMap, align
from cast.boundaries import TokenGauge, Tokens, tokens_of
from cast.errors import HeadsError, RequestError
from cast.generation import Sampling, generate, generate_many
from cast.heads import AffineHead, HeadPair, HeadRecipe, HeadSet, ModelTag
from cast.hosted_session import HostedBatch
from cast.hosting import HostedRunner, segments
from cast.models import LanguageModel
from cast.runners import PlainRunner
from cast.source_reader import SourceReader
from cast.stepping import LOG_PROBS_KEPT, BlockRunner, RaggedCache, TokenStream, ragged

TEXTS = ["Once upon a time there was a little fox.", "The owl smiled", "a", "village; “quotes” — and a 🦊!"]
PLAIN_TEXTS = TEXTS[:3]
SEGMENTS = [None, 1, 2, 3]


def heads_between(source: LanguageModel, target: LanguageModel, seed: int | None = None) -> HeadSet:
    """Heads at every depth: the identity where `seed` is None (equal widths), else random affine maps."""
    generator = torch.Generator().manual_seed(seed or 0)

    def head(inputs: int, outputs: int) -> AffineHead:
        made = AffineHead(inputs, outputs).requires_grad_(False)
        random = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        made.weight.copy_(torch.eye(outputs) if seed is None else random)
        return made

    return HeadSet(
        ModelTag.of(source),
        ModelTag.of(target),
        LayerMap.by_relative_depth(source.depth, target.depth),
        tuple(
            HeadPair(head(target.width, source.width), head(source.width, target.width))
            for _ in range(target.depth + 1)
        ),
        (),
        HeadRecipe("affine", "none", 0, 0, 0, "float32"),
    )


@pytest.fixture(scope="module")
def pair(tiny_model, tiny_lora) -> tuple[LanguageModel, Lora, LanguageModel, HeadSet]:
    source = tiny_model("llama", "unigram", width=24, depth=2)
    target = tiny_model("mistral", "byte_bpe", width=32, depth=3)
    return source, tiny_lora(source), target, heads_between(source, target, seed=1)


# --- the source's own blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_on_their_own_true_states_give_the_true_states(tiny_model: Callable, family: str) -> None:
    lm = tiny_model(family)
    batch = lm.encode(TEXTS)
    true = residuals(lm, batch, range(lm.depth + 1))
    valid = batch.attention_mask.bool()
    positions = torch.arange(valid.shape[1]).expand(valid.shape)
    runner = BlockRunner(lm)
    calls = runner.arguments(positions, valid)
    for first, last in [(0, lm.depth), (1, lm.depth), (1, 2)]:
        got = runner.run(true[first], calls, range(first + 1, last + 1))
        torch.testing.assert_close(got[valid], true[last][valid], atol=2e-5, rtol=1e-4)
    assert all("forward" not in vars(block) for block in lm.architecture.blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_go_on_from_a_cache_that_only_they_filled(tiny_model: Callable, family: str) -> None:
    lm = tiny_model(family)
    batch = lm.encode(TEXTS[:2])
    valid = batch.attention_mask.bool()
    true = residuals(lm, batch, range(lm.depth + 1))
    runner, cache = BlockRunner(lm), RaggedCache(2)
    for start, stop in [(0, 5), (5, 6), (6, valid.shape[1])]:
        part = valid[:, start:stop]
        positions = torch.arange(start, stop).expand(part.shape)
        cache.pack()
        calls = runner.arguments(positions, part, cache)
        got = runner.run(
            true[1][:, start:stop], calls, range(2, lm.depth + 1)
        )  # the first block is never run
        cache.grow(part)
        torch.testing.assert_close(got[part], true[lm.depth][:, start:stop][part], atol=2e-5, rtol=1e-4)


# --- rows of tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_of_ragged_rows_that_are_cut_and_go_on_equals_whole_passes(
    tiny_model: Callable, family: str
) -> None:
    lm = tiny_model(family)
    ids = [[lm.bos_id, *range(20, 33)], [lm.bos_id, 40, 41], [lm.bos_id, *range(50, 59)]]
    stream = TokenStream(lm, 3)
    changed = [ids[0][:6], [lm.bos_id, 40, 42, 43, 44, 45, 46, 47], [*ids[2][:-1], 99]]
    for rows in (ids, changed, ids, changed):
        stream.advance(rows)
        for row, wanted in enumerate(rows):
            assert len(stream.states[row]) == len(wanted)
            with captured(lm, [lm.depth]) as states:
                lm.architecture.decoder(input_ids=torch.tensor([wanted]), use_cache=False)
            torch.testing.assert_close(
                torch.stack(stream.states[row]), states[lm.depth][0], atol=2e-5, rtol=1e-4
            )
    stream.select([2, 0])
    stream.advance([ids[2], ids[0]])
    alone = TokenStream(lm, 1)
    alone.advance([ids[0]])
    torch.testing.assert_close(stream.states[1][-1], alone.states[0][-1], atol=2e-5, rtol=1e-4)


def test_a_stream_runs_each_token_once(tiny_model: Callable) -> None:
    lm = tiny_model("llama")
    stream = TokenStream(lm, 2)
    stream.advance([[0, 5, 6], [0, 7]])
    assert stream.passed == 5
    stream.advance([[0, 5, 6], None])
    assert stream.passed == 5
    stream.advance([[0, 5, 9, 9], [0, 7]])
    assert stream.passed == 7


def test_a_stream_works_out_a_distribution_once_and_forgets_it_with_its_token(
    tiny_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_model("llama")
    stream, heads = TokenStream(lm, 2), []
    logits = lm.architecture.logits
    monkeypatch.setattr(
        type(lm.architecture), "logits", lambda self, states: heads.append(len(states)) or logits(states)
    )

    def behind(*places: tuple[int, int]) -> torch.Tensor:
        found = torch.stack(stream.log_probs(places))
        states = torch.stack([stream.states[row][index] for row, index in places])
        torch.testing.assert_close(found, logits(states).float().log_softmax(-1), atol=1e-5, rtol=1e-4)
        return found

    stream.advance([[0, *range(20, 29)], [0, 7]])
    before = behind((0, 3), (1, 1), (0, 3))
    assert heads == [2]
    behind((0, 4), (0, 3), (1, 1))
    assert heads == [2, 1]
    stream.advance([[0, 20, 21, 99, *range(40, 46)], [0, 7]])
    assert (behind((0, 3), (1, 1)) - before[:2]).abs().amax(1).gt(1e-3).tolist() == [True, False]
    assert heads == [2, 1, 1]
    behind(*((0, index) for index in range(LOG_PROBS_KEPT + 2)))  # The first few are forgotten by then.
    behind((0, 0), (0, LOG_PROBS_KEPT + 1))
    assert heads[3:] == [LOG_PROBS_KEPT + 1, 1]
    stream.select([1])
    behind((0, 1))
    assert len(heads) == 5


def test_ragged_columns() -> None:
    assert ragged([2, 0, 1]).tolist() == [[True, True], [False, False], [True, False]]
    assert ragged([]).shape == (0, 0)


# --- segments


def test_segments_cover_every_adapted_block_once() -> None:
    layer_map = LayerMap.by_relative_depth(4, 6)
    for size in (1, 2, 3, 4, 6, 9):
        hosted = [block for segment in segments(layer_map, size, (1, 2, 3, 4)) for block in segment.blocks]
        assert hosted == [1, 2, 3, 4]
    only = segments(layer_map, 2, (4,))
    assert [(segment.start, segment.stop) for segment in only] == [(4, 6)]
    assert all(segment.source_start == layer_map[segment.start] for segment in only)
    with pytest.raises(RequestError, match="at least 1"):
        segments(layer_map, 0, (1,))


# --- teacher-forced


@pytest.mark.parametrize("segment", [None, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_hosted_by_its_own_model_is_the_adapted_model(
    tiny_model: Callable, tiny_lora: Callable, family: str, segment: int | None
) -> None:
    lm = tiny_model(family, "byte_bpe", 32, 3, 3)
    lora = tiny_lora(lm)
    runner = HostedRunner(lm, lora, lm, heads_between(lm, lm), segment)
    batch = lm.encode(PLAIN_TEXTS)
    inside = batch.attention_mask.bool()
    inside[:, 0] = False  # The BOS is no shared end: the target keeps its own there.
    adapted, base = PlainRunner(lm, lora).logits(batch), PlainRunner(lm).logits(batch)
    torch.testing.assert_close(runner.logits(batch)[inside], adapted[inside], atol=5e-4, rtol=1e-3)
    assert (adapted - base)[inside].abs().max() > 0.05


def reading_before(heads: HeadSet, weights: tuple[float, float]) -> HeadSet:
    """Encode heads that read the depth before their own as well, each with a weight."""

    def wide(head: AffineHead) -> AffineHead:
        made = AffineHead(2 * head.in_features, head.out_features).requires_grad_(False)
        made.weight.copy_(torch.cat([weight * head.weight for weight in weights], dim=1))
        return made

    pairs = [
        HeadPair(wide(pair.encode), pair.decode) if depth else pair for depth, pair in enumerate(heads.pairs)
    ]
    return replace(heads, pairs=tuple(pairs))


def test_hosted_blocks_read_the_depths_that_their_encode_head_was_made_for(tiny_model, tiny_lora) -> None:
    lm = tiny_model("llama", "byte_bpe", 32, 3, 3)
    plain = heads_between(lm, lm)
    batch = lm.encode(PLAIN_TEXTS)

    def logits(heads: HeadSet) -> torch.Tensor:
        return HostedRunner(lm, tiny_lora(lm), lm, heads, 1).logits(batch)

    # The states come one behind the other, the own depth last.
    torch.testing.assert_close(logits(reading_before(plain, (0.0, 1.0))), logits(plain))
    assert (logits(reading_before(plain, (1.0, 0.0))) - logits(plain)).abs().max() > 1e-3


def test_a_session_of_heads_that_read_several_depths_equals_a_fresh_one(pair) -> None:
    source, lora, target, heads = pair
    runner = HostedRunner(source, lora, target, reading_before(heads, (0.3, 0.7)), 1)
    ids = target.encode([TEXTS[0]]).input_ids[0].tolist()
    for stop, logits in enumerate(grown(runner, ids, 1)[0], start=1):
        torch.testing.assert_close(logits, fresh_logits(runner, ids[:stop]), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("segment", SEGMENTS)
def test_strength_zero_is_exactly_the_target(pair, segment: int | None) -> None:
    source, lora, target, heads = pair
    runner = HostedRunner(source, lora, target, heads, segment, strength=0.0)
    batch = target.encode(TEXTS)
    base = PlainRunner(target).logits(batch)
    assert torch.equal(runner.logits(batch), base)
    assert not torch.equal(HostedRunner(source, lora, target, heads, segment).logits(batch), base)
    ids = target.encode(TEXTS[:1]).input_ids[0].tolist()
    torch.testing.assert_close(runner.session().next_logits(ids), base[0, len(ids) - 1], atol=1e-5, rtol=1e-4)


def test_the_whole_stack_changes_nothing_but_shared_ends(pair) -> None:
    source, lora, target, heads = pair
    batch = target.encode(TEXTS)
    changed = (
        HostedRunner(source, lora, target, heads, None).logits(batch) - PlainRunner(target).logits(batch)
    ).abs().amax(-1) > 1e-6
    own = source.encode(TEXTS)
    for row, ends in enumerate(batch.ends.tolist()):
        shared = set(own.ends[row].tolist()) - {-1}
        last = {end: position for position, end in enumerate(ends)}
        expected = [end in shared and last[end] == position for position, end in enumerate(ends)]
        assert changed[row].tolist() == expected


@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_row_does_not_depend_on_the_rows_beside_it(pair, segment: int | None) -> None:
    source, lora, target, heads = pair
    runner = HostedRunner(source, lora, target, heads, segment)
    batch = target.encode(TEXTS)
    together = runner.logits(batch)
    for row, text in enumerate(TEXTS):
        alone = runner.logits(target.encode([text]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=2e-5, rtol=1e-4)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])
    torch.testing.assert_close(runner.logits(batch, rows, positions), together[rows, positions])


def test_the_change_scales_with_strength(pair) -> None:
    source, lora, target, heads = pair
    batch = target.encode(TEXTS)
    depth = target.depth

    def last(strength: float) -> torch.Tensor:
        with captured(target, [depth]) as states:
            HostedRunner(source, lora, target, heads, None, strength).logits(batch)
        return states[depth]

    torch.testing.assert_close(last(2.0) - last(0.0), 2 * (last(1.0) - last(0.0)), atol=1e-5, rtol=1e-4)


def test_heads_of_another_pair_are_refused(pair) -> None:
    source, lora, target, heads = pair
    with pytest.raises(HeadsError):
        HostedRunner(target, lora, source, heads, None)


def test_hooks_are_gone_afterwards(pair) -> None:
    source, lora, target, heads = pair
    HostedRunner(source, lora, target, heads, 1).logits(target.encode(TEXTS))
    for lm in (source, target):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


# --- texts that grow


def grown(runner: HostedRunner, ids: list[int], prompt: int) -> tuple[list[torch.Tensor], HostedBatch]:
    """Logits after each of ids[prompt-1:], read one by one."""
    batch = runner.batch_session(1)
    return [batch.next_logits([ids[:stop]])[0] for stop in range(prompt, len(ids) + 1)], batch


@pytest.mark.parametrize("segment", [None, 2])
@pytest.mark.parametrize(
    "kinds", [("unigram", "byte_bpe"), ("byte_bpe", "unigram"), ("char_bpe", "byte_bpe")]
)
def test_a_session_equals_a_fresh_one_at_every_step(
    tiny_model: Callable, tiny_lora: Callable, kinds: tuple[str, str], segment: int | None
) -> None:
    source, target = tiny_model("gemma2", kinds[0], 24, 2), tiny_model("mistral", kinds[1], 32, 3)
    runner = HostedRunner(source, tiny_lora(source), target, heads_between(source, target, 1), segment)
    ids = target.encode(["The little fox was late, naïve 🦊 or two."]).input_ids[0].tolist()
    steps, batch = grown(runner, ids, 1)
    for stop, logits in enumerate(steps, start=1):
        torch.testing.assert_close(logits, fresh_logits(runner, ids[:stop]), atol=5e-5, rtol=1e-4)
    back = batch.next_logits([[*ids[:7], 77]])[0]
    torch.testing.assert_close(back, fresh_logits(runner, [*ids[:7], 77]), atol=5e-5, rtol=1e-4)


def oracle(monkeypatch: pytest.MonkeyPatch, full: Tokens) -> None:
    """Let the judge of ends know the finished text."""

    def known(tokens: Tokens, *_: object) -> Tokens:
        return full.first(sum(end <= tokens.ends[-1] for end in full.ends))

    monkeypatch.setattr("cast.source_reader.settled", known)
    monkeypatch.setattr(SourceReader, "_likeliest", lambda self, whole, standing, transcripts: standing)
    monkeypatch.setattr(TokenGauge, "crossings", lambda *_: [(0, torch.tensor([0]))])  # Ask at every step.


LONG = "In the morning they walked 12 miles to the village, bought 3 apples — “quotes” and a café."


@pytest.mark.parametrize("segment", [None, 2])
@pytest.mark.parametrize("kinds", [("unigram", "byte_bpe"), ("byte_bpe", "unigram"), ("char_bpe", "unigram")])
def test_where_ends_are_judged_right_a_session_equals_teacher_forcing(
    tiny_model: Callable,
    tiny_lora: Callable,
    monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[str, str],
    segment: int | None,
) -> None:
    source, target = tiny_model("qwen2", kinds[0], 24, 2), tiny_model("llama", kinds[1], 32, 3)
    runner = HostedRunner(source, tiny_lora(source), target, heads_between(source, target, 1), segment)
    batch, full = target.encode([LONG]), tokens_of(source, [LONG])[0]
    oracle(monkeypatch, full)
    blocks = count_block_columns(monkeypatch)
    ids = batch.input_ids[0].tolist()
    steps, grown_batch = grown(runner, ids, 2)
    columns = list(blocks)
    expected = runner.logits(batch)[0]
    torch.testing.assert_close(torch.stack(steps), expected[1:], atol=1e-4, rtol=1e-3)
    # Each token passed once through the target; through the source once each way, and with each token of the
    # target at most two more, whose end was in doubt.
    assert grown_batch.target.passed == len(ids)
    pairs = len(align(source.encode([LONG]), batch))
    if segment is None:
        assert grown_batch.reader.passed <= 2 * (len(full) + 2 * len(ids))
        assert not columns
    else:
        # It only tells which ends are settled.
        assert not grown_batch.reader.plain
        assert grown_batch.reader.passed <= len(full) + 2 * len(ids)
        # Once for both ways together.
        assert sum(columns) == len(runner.segments) * (1 + pairs)


def count_block_columns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    run = BlockRunner.run

    def counted(self: BlockRunner, states: torch.Tensor, calls: list, blocks: range) -> torch.Tensor:
        counts.append(states.shape[1])
        return run(self, states, calls, blocks)

    monkeypatch.setattr(BlockRunner, "run", counted)
    return counts


@pytest.mark.parametrize("segment", SEGMENTS)
def test_inside_a_source_token_nothing_is_changed(
    pair, monkeypatch: pytest.MonkeyPatch, segment: int | None
) -> None:
    source, lora, target, heads = pair
    runner = HostedRunner(source, lora, target, heads, segment)
    base = PlainRunner(target).session()
    text, cut = "the village", "the vill"
    oracle(monkeypatch, tokens_of(source, [text])[0])
    inside = target.encode([cut]).input_ids[0].tolist()
    assert "village" in source.tokenizer.convert_ids_to_tokens(tokens_of(source, [text])[0].ids)[-1]
    logits = fresh_logits(runner, inside)
    if segment is None:
        torch.testing.assert_close(logits, base.next_logits(inside), atol=1e-5, rtol=1e-4)
    else:
        # Hosted blocks acted at `the`, and nowhere behind it.
        batch = runner.batch_session(1)
        batch.next_logits([inside[:1]])
        batch.next_logits([inside])
        assert [position >= 0 for position in batch._shared[0]] == [
            end <= 0 or end == len("the") for end in target.encode([cut]).ends[0].tolist()
        ]


@pytest.mark.parametrize("segment", [None, 2])
def test_a_batch_writes_what_single_texts_write(pair, segment: int | None) -> None:
    source, lora, target, heads = pair
    runner = HostedRunner(source, lora, target, heads, segment)
    prompts = ["Once upon a", "", "naïve 🦊", "In the morning"]
    alone = ["".join(generate(runner, prompt, Sampling(max_new_tokens=6, stop="e"))) for prompt in prompts]
    assert generate_many(runner, prompts, max_new_tokens=6, stop="e", batch_size=3) == alone
    assert len(set(alone)) > 1


def test_a_prompt_costs_its_tokens_and_a_new_token_one(pair) -> None:
    source, lora, target, heads = pair
    batch = HostedRunner(source, lora, target, heads, None).batch_session(1)
    prompt = target.encode(["The owl said: “You're late,"]).input_ids[0].tolist()
    batch.next_logits([prompt])
    before = (batch.target.passed, batch.reader.passed)
    assert before[0] == len(prompt)
    batch.next_logits([prompt])
    assert (batch.target.passed, batch.reader.passed) == before
    batch.next_logits([[*prompt, target.encode([" the"]).input_ids[0, -1].item()]])
    assert batch.target.passed == before[0] + 1
    assert batch.reader.passed - before[1] <= 8


@pytest.mark.parametrize("segment", [None, 1])
def test_a_session_goes_on_after_a_pass_that_was_cut_short(
    pair, monkeypatch: pytest.MonkeyPatch, segment: int | None
) -> None:
    source, lora, target, heads = pair
    runner = HostedRunner(source, lora, target, heads, segment)
    ids = target.encode(["The owl smiled at the village"]).input_ids[0].tolist()
    session = runner.session()
    session.next_logits(ids[:4])
    for lm, stop in ((target, 6), (source, len(ids))):
        block = lm.architecture.blocks[1]
        with monkeypatch.context() as patch:
            patch.setattr(block, "forward", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                session.next_logits(ids[:stop])
    torch.testing.assert_close(
        session.next_logits(ids), runner.session().next_logits(ids), atol=2e-5, rtol=1e-4
    )
    with pytest.raises(RequestError, match="shorten"):
        session.next_logits([target.bos_id] * 300)
    with pytest.raises(RequestError, match="BOS"):
        session.next_logits([])
