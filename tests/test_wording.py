"""The source beside the target, read as words: exact where both are one, the same in whatever order."""

from collections.abc import Callable

import pytest
import torch
from conftest import fresh_logits

from cast.activations import residuals
from cast.adapters import Lora
from cast.boundaries import TokenGauge, Tokens, tokens_of
from cast.generation import Sampling, generate, generate_many
from cast.models import LanguageModel, TokenBatch
from cast.runners import PlainRunner
from cast.source_reader import SourceReader
from cast.wording import Places, WordedRunner, lasting

LONG = "In the morning they walked 12 miles to the village, bought 3 apples — “quotes” and a café."
TEXTS = ["Once upon a time there was a little fox.", "The owl smiled", "a", "village; “quotes” — and a 🦊!"]


@pytest.fixture(scope="module")
def pair(tiny_model, tiny_lora) -> tuple[LanguageModel, Lora, LanguageModel]:
    source, target = tiny_model("llama", "unigram", width=24, depth=2), tiny_model("mistral", "byte_bpe")
    return source, tiny_lora(source), target


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram"])
def test_beside_itself_a_model_is_the_adapted_model(tiny_model, tiny_lora, kind: str) -> None:
    lm = tiny_model("qwen3", kind)
    lora = tiny_lora(lm)
    batch = lm.encode(TEXTS[:3])
    real = batch.attention_mask.bool()
    real[:, 1] &= kind != "unigram"  # There a space that is no part of the text is a token of its own.
    got = WordedRunner(lm, lora, lm).logits(batch)[real].softmax(-1)
    wanted = PlainRunner(lm, lora).logits(batch)[real].softmax(-1)
    base = PlainRunner(lm).logits(batch)[real].softmax(-1)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-2)
    assert (base - wanted).abs().max() > 1e-3


def test_strength_zero_is_exactly_the_target(pair) -> None:
    source, lora, target = pair
    runner, batch = WordedRunner(source, lora, target, strength=0.0), target.encode(TEXTS)
    assert torch.equal(runner.logits(batch)[batch.attention_mask.bool()],
                       PlainRunner(target).logits(batch)[batch.attention_mask.bool()])  # fmt: skip
    ids = batch.input_ids[1][: int(batch.attention_mask[1].sum())].tolist()
    torch.testing.assert_close(
        runner.session().next_logits(ids), PlainRunner(target).session().next_logits(ids)
    )


def test_texts_that_are_read_in_several_passes_say_what_each_says_alone(
    pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, lora, target = pair
    runner, texts = WordedRunner(source, lora, target), [LONG, *TEXTS]
    alone = [runner.logits(target.encode([text]))[0] for text in texts]
    read: list[int] = []
    monkeypatch.setattr("cast.activations._A_PASS", 1)
    count = source.architecture.blocks[0].register_forward_hook(lambda module, args, output: read.append(1))
    together = runner.logits(target.encode(texts))
    count.remove()
    assert len(read) > 2
    for row, logits in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: len(logits)], logits, atol=2e-4, rtol=1e-3)
    bare, batch = WordedRunner(source, lora, target, strength=0.0), target.encode(texts)
    real = batch.attention_mask.bool()
    assert torch.equal(bare.logits(batch)[real], PlainRunner(target).logits(batch)[real])


def test_chosen_positions_are_those_of_the_whole(pair) -> None:
    source, lora, target = pair
    runner, batch = WordedRunner(source, lora, target), target.encode(TEXTS)
    rows, positions = torch.tensor([0, 3, 1]), torch.tensor([4, 6, 0])
    torch.testing.assert_close(runner.logits(batch, rows, positions), runner.logits(batch)[rows, positions])


def test_the_sources_logits_are_held_at_a_few_places_at_a_time(pair, monkeypatch) -> None:
    source, lora, target = pair
    runner, batch = WordedRunner(source, lora, target), target.encode(TEXTS)
    wanted = runner.logits(batch)
    monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", 5 * source.vocabulary)
    held, take_over = [], runner.vocabulary.take_over

    def noted(own, before, *rest, **options):
        held.append(len(before))
        return take_over(own, before, *rest, **options)

    monkeypatch.setattr(runner.vocabulary, "take_over", noted)
    torch.testing.assert_close(runner.logits(batch), wanted)
    assert len(held) > 1
    assert max(held) == 5


def test_a_row_does_not_depend_on_the_rows_beside_it(pair) -> None:
    source, lora, target = pair
    runner, batch = WordedRunner(source, lora, target), target.encode(TEXTS)
    together = runner.logits(batch)
    for row, text in enumerate(TEXTS):
        alone = runner.logits(target.encode([text]))[0]
        torch.testing.assert_close(alone, together[row, : len(alone)], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("strength", [1.0, 1.5])
@pytest.mark.parametrize("kinds", [("unigram", "byte_bpe"), ("byte_bpe", "unigram"), ("char_bpe", "unigram")])
def test_a_session_equals_a_fresh_one_at_every_step(
    tiny_model, tiny_lora, kinds: tuple[str, str], strength: float
) -> None:
    source, target = tiny_model("gemma2", kinds[0], 24, 2), tiny_model("mistral", kinds[1], 32, 3)
    runner = WordedRunner(source, tiny_lora(source), target, strength)
    ids = target.encode(["The little fox was late, naïve 🦊 or two."]).input_ids[0].tolist()
    batch = runner.batch_session(1)
    for stop in range(1, len(ids) + 1):
        torch.testing.assert_close(
            batch.next_logits([ids[:stop]])[0], fresh_logits(runner, ids[:stop]), atol=1e-4, rtol=1e-3
        )
    changed = [*ids[:7], 77]
    torch.testing.assert_close(
        batch.next_logits([changed])[0], fresh_logits(runner, changed), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("kinds", [("unigram", "byte_bpe"), ("byte_bpe", "unigram"), ("char_bpe", "unigram")])
def test_where_ends_are_judged_right_a_session_equals_teacher_forcing(
    tiny_model: Callable, tiny_lora: Callable, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str]
) -> None:
    source, target = tiny_model("qwen2", kinds[0], 24, 2), tiny_model("llama", kinds[1], 32, 3)
    full = tokens_of(source, [LONG])[0]

    def known(tokens: Tokens, *_: object) -> Tokens:
        return full.first(sum(end <= tokens.ends[-1] for end in full.ends))

    monkeypatch.setattr("cast.source_reader.settled", known)
    monkeypatch.setattr(SourceReader, "_likeliest", lambda self, whole, standing, transcripts: standing)
    monkeypatch.setattr(TokenGauge, "crossings", lambda *_: [(0, torch.tensor([0]))])
    runner, batch = WordedRunner(source, tiny_lora(source), target), target.encode([LONG])
    ids, session = batch.input_ids[0].tolist(), runner.batch_session(1)
    steps = [session.next_logits([ids[:stop]])[0] for stop in range(1, len(ids) + 1)]
    expected, places = runner.logits(batch)[0], places_in(source, batch)
    # Teacher forcing knows the token that follows where a session cannot.
    ahead = set(places.entry[ahead_of_the_source(runner, places)].tolist())
    settled = [place for place in range(len(ids)) if place not in ahead]
    torch.testing.assert_close(torch.stack(steps)[settled], expected[settled], atol=2e-4, rtol=1e-3)
    # Each token passed once through the target; through the source once each way, and with each token of the
    # target at most two more, whose end was in doubt: never the text from its beginning.
    assert session.target.passed == len(ids)
    assert 2 * len(full) <= session.reader.passed <= 2 * (len(full) + 2 * len(ids))


def places_in(source: LanguageModel, batch: TokenBatch) -> Places:
    """Every position of one text."""
    positions = torch.arange(batch.input_ids.shape[1])
    return Places.of(batch, source.encode(batch.texts), torch.zeros_like(positions), positions)


def ahead_of_the_source(runner: WordedRunner, places: Places) -> list[int]:
    """The places at which the target's next token does not begin what the source's own next one says."""
    return [
        place
        for place in places.looking_ahead()
        if runner.vocabulary.first(LONG[places.end[place] : places.next_source_end(place)])
        != int(places.next_token[place])
    ]


@pytest.mark.parametrize("spans", [True, False])
def test_the_target_writes_what_a_sure_source_says_in_its_own_pieces(
    pair, tiny_lora: Callable, monkeypatch: pytest.MonkeyPatch, spans: bool
) -> None:
    """Where its token spans several of the source's; and where it could begin with more, but writes less."""
    source, lora, target = pair
    if not spans:
        source, lora, target = target, tiny_lora(target), source
    runner, batch = WordedRunner(source, lora, target), target.encode([LONG])
    places = places_in(source, batch)
    ahead = [
        place
        for place in ahead_of_the_source(runner, places)[1:]
        if spans == (int(places.next_end[place]) > places.next_source_end(place))
    ]
    assert ahead
    sure = sure_of_what_follows(source, LONG)
    monkeypatch.setattr(WordedRunner, "distributions", sure)
    monkeypatch.setattr(
        WordedRunner, "_behind", lambda self, *states: [(torch.arange(len(states[0])), *sure(self, *states))]
    )
    probabilities = runner.logits(batch)[0].softmax(-1)
    for place in ahead:
        assert probabilities[places.entry[place], places.next_token[place]] > 0.9


def sure_of_what_follows(source: LanguageModel, text: str) -> Callable:
    """Distributions of a source whose LoRA has made it certain of the next token of a text."""
    ids = source.encode([text]).input_ids[0].tolist()

    def distributions(self: WordedRunner, plain: torch.Tensor, adapted: torch.Tensor) -> tuple:
        states = residuals(source, source.encode([text]), [source.depth])[source.depth][0]
        before = torch.zeros(len(plain), source.vocabulary).log_softmax(-1)
        after = before.clone()
        for row, state in enumerate(plain):
            at = int((states - state).square().sum(-1).argmin())
            after[row, ids[min(at + 1, len(ids) - 1)]] = 30.0
        return before, after.log_softmax(-1)

    return distributions


def test_a_batch_writes_what_single_texts_write(pair) -> None:
    source, lora, target = pair
    runner = WordedRunner(source, lora, target)
    prompts = ["Once upon a", "", "naïve 🦊", "In the morning"]
    alone = ["".join(generate(runner, prompt, Sampling(max_new_tokens=6, stop="e"))) for prompt in prompts]
    assert generate_many(runner, prompts, max_new_tokens=6, stop="e", batch_size=3) == alone


def test_a_text_that_the_source_would_cut_otherwise_is_read_as_the_adapted_source_would_write_it(
    pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target writes ` vi`, `ll`; the source that is sure of ` village` stands before it, not inside."""
    source, lora, target = pair
    runner = WordedRunner(source, lora, target)
    village = source.token_texts.index(" village")

    def sure(self: SourceReader, row: int, index: int) -> torch.Tensor:
        logits = torch.zeros(source.vocabulary)
        logits[village] = 30.0
        return logits.log_softmax(-1)

    monkeypatch.setattr(SourceReader, "_log_probs", sure)
    ids = target.encode(["the vill"]).input_ids[0].tolist()
    session = runner.batch_session(1)
    session.next_logits([ids[:2]])
    session.next_logits([ids])
    assert session._read[0] == tokens_of(source, ["the"])[0].ids
    # Of a prompt nothing is taken back, however sure the adapted source is of something longer.
    asked = runner.batch_session(1)
    asked.next_logits([ids])
    assert asked._read[0] == tokens_of(source, ["the vill"])[0].ids


def test_trust_lasts_and_fades() -> None:
    trust = list(lasting([0.0, 1.0, 0.0, 0.0, 0.2]))
    assert trust[0] == 0.0
    assert trust[1] > trust[2] > trust[3] > trust[4] > 0.5
    assert next(lasting([0.0], 0.5)) < 0.5
