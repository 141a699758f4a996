"""The moved mass of one vocabulary in the tokens of another."""

import pytest
import torch
from conftest import TOKENIZERS
from hypothesis import given, settings
from hypothesis import strategies as st

from cast.models import LanguageModel
from cast.vocabulary import _PATIENCE, VocabularyMap, _pool


@pytest.fixture(scope="module")
def same(tiny_model) -> LanguageModel:
    return tiny_model("llama", "byte_bpe")


def logits(lm: LanguageModel, seed: int, rows: int = 3, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, lm.vocabulary, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), pooling=st.floats(0, 1), scale=st.floats(0.1, 6), alone=st.booleans())
def test_where_the_target_is_the_source_its_adapted_distribution_comes_out(
    same: LanguageModel, seed: int, pooling: float, scale: float, alone: bool
) -> None:
    before, after = logits(same, seed, scale=scale), logits(same, seed + 1, scale=scale)
    taken = VocabularyMap(same, same).take_over(
        before, before, after, [""] * 3, torch.full((3,), pooling), alone=alone
    )
    torch.testing.assert_close(taken.exp(), after.softmax(-1), atol=2e-3 * pooling + 1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 2))
def test_moved_mass_is_taken_as_far_as_the_source_is_sure_and_odds_for_the_rest(
    same: LanguageModel, seed: int, scale: float
) -> None:
    own, before, after = (logits(same, seed + part, scale=scale) for part in range(3))
    t, p, q = (given.double().softmax(-1) for given in (own, before, after))
    moved, kept = (q - p).clamp_min(0), t * (q / p).clamp(max=1)
    much = moved.sum(-1, keepdim=True)
    m = (1 - much) ** 2 * kept / kept.sum(-1, keepdim=True) + much * torch.minimum(p, q) + moved
    w = t * (q / p) ** torch.minimum(t, p).sum(-1, keepdim=True)
    sure = q.amax(-1, keepdim=True)
    expected = sure * m + (1 - sure) * w / w.sum(-1, keepdim=True)
    taken = VocabularyMap(same, same).take_over(own, before, after, [""] * 3, torch.zeros(3))
    torch.testing.assert_close(taken.double().exp(), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("alone", [False, True])
def test_a_word_that_is_all_but_forbidden_is_as_likely_as_to_the_source(
    same: LanguageModel, alone: bool
) -> None:
    # Both are sure of a word; the target thinks ten thousand times more of others; the LoRA says another.
    own, before, after = (torch.zeros(1, same.vocabulary) for _ in range(3))
    own[0, 10], before[0, 10], after[0, 11], after[0, 10] = 8.0, 17.0, 17.0, 3.0
    taken = VocabularyMap(same, same).take_over(own, before, after, [""], torch.zeros(1), alone=alone)
    assert abs(float((taken - after.log_softmax(-1))[0, 10])) < 0.2
    assert float(taken[0, 11].exp()) > 0.99


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pending=st.sampled_from(["", " ", " v", " vill", "w", "zzz"]),
    alone=st.booleans(),
)
def test_what_comes_out_is_a_distribution_and_no_change_changes_nothing(
    tiny_model, seed: int, pending: str, alone: bool
) -> None:
    source, target = tiny_model("llama", "unigram"), tiny_model("mistral", "byte_bpe")
    vocabulary = VocabularyMap(source, target)
    own, before, after = logits(target, seed), logits(source, seed + 1), logits(source, seed + 2)
    taken = vocabulary.take_over(
        own, before, after, [pending] * 3, torch.tensor([0.0, 0.5, 1.0]), alone=alone
    )
    torch.testing.assert_close(taken.exp().sum(-1), torch.ones(3))
    same = vocabulary.take_over(own, before, before, [pending] * 3, torch.zeros(3), alone=alone)
    torch.testing.assert_close(same.exp(), own.softmax(-1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kinds", [(a, b) for a in TOKENIZERS for b in TOKENIZERS])
def test_every_source_token_is_said_from_its_beginning(tiny_model, kinds: tuple[str, str]) -> None:
    source, target = tiny_model("llama", kinds[0]), tiny_model("mistral", kinds[1])
    bridge = VocabularyMap(source, target).bridge()
    said = 0
    spoken = [*bridge.spoken.tolist(), target.vocabulary]
    for token, entry in zip(bridge.ids.tolist(), bridge.first.tolist(), strict=True):
        first = spoken[entry]
        text = source.token_texts[token] if token < len(source.token_texts) else ""
        if text and first < target.vocabulary:
            assert text.startswith(target.token_texts[first])
            said += 1
        elif text:
            assert text[0] not in target.token_texts
    assert said > 0.5 * sum(map(bool, source.token_texts))
    assert bridge.judges is not None
    by_spoken = bridge.judges < len(bridge.spoken)
    assert by_spoken.nonzero()[:, 0].equal(bridge.spoken)
    assert bridge.judges[by_spoken].equal(torch.arange(len(bridge.spoken)))


def test_a_certain_word_is_said_however_little_the_target_thinks_of_it(tiny_model) -> None:
    source, target = tiny_model("llama", "unigram"), tiny_model("mistral", "byte_bpe")
    village = source.token_texts.index(" village")
    vocabulary = VocabularyMap(source, target)
    before = logits(source, 1, rows=1)
    before[0, village] = -30.0
    after = before.clone()
    after[0, village] = 60.0
    own, written = logits(target, 2, rows=1), ""
    own[0, [i for i, text in enumerate(target.token_texts) if text and " village".startswith(text)]] = -30.0
    while written != " village":
        taken = vocabulary.take_over(own, before, after, [written], torch.zeros(1))
        token = int(taken.argmax())
        assert taken[0, token] > -0.01
        written += target.token_texts[token]
        assert " village".startswith(written)


def test_a_target_that_goes_on_alone_says_of_a_word_as_much_as_it_would(tiny_model) -> None:
    source, target = tiny_model("llama", "char_bpe"), tiny_model("mistral", "byte_bpe")
    texts = {text: token for token, text in enumerate(source.token_texts) if text}

    def longest(text: str) -> str:
        return max((own for own in texts if text.startswith(own)), key=len, default="")

    going_on: dict[str, list[int]] = {}
    for token, text in enumerate(target.token_texts):
        if text:
            going_on.setdefault(longest(text), []).append(token)
    # The source has but a beginning of what the target can say at once.
    word = max((text for text in going_on if text), key=lambda text: len(going_on[text]))
    assert len(going_on[word]) > 1
    before = logits(source, 1, rows=1)
    before[0, texts[word]] = -30.0
    after = before.clone()
    after[0, texts[word]] = 60.0
    own, vocabulary = logits(target, 2, rows=1), VocabularyMap(source, target)
    own[0, going_on[word]] = torch.linspace(-1, 1, len(going_on[word]))
    beside, alone = (
        vocabulary.take_over(own, before, after, [""], torch.zeros(1), alone=alone)[0].exp()
        for alone in (False, True)
    )
    assert beside.max() > 0.99
    expected = own[0, going_on[word]].softmax(-1)
    torch.testing.assert_close(alone[going_on[word]], expected, atol=0.01, rtol=0)


def test_where_the_source_is_not_sure_the_target_s_own_choice_is_weighed(tiny_model) -> None:
    source, target = tiny_model("llama", "unigram"), tiny_model("mistral", "byte_bpe")
    bridge = VocabularyMap(source, target).bridge()
    own_words = [i for i in bridge.ids.tolist() if bridge.first[i] < len(bridge.spoken)]
    one, other = (
        own_words[40],
        next(i for i in own_words[41:] if bridge.first[i] != bridge.first[own_words[40]]),
    )
    liked = bridge.spoken[bridge.first[one]], bridge.spoken[bridge.first[other]]
    before = torch.zeros(1, source.vocabulary)
    after = before.clone()
    after[0, one] = 3.0
    own = logits(target, 2, rows=1)
    own[0, list(liked)] = torch.tensor([2.0, 12.0])
    taken = VocabularyMap(source, target).take_over(own, before, after, [""], torch.ones(1))[0]
    # It goes on saying what it likes; the word that the LoRA makes likelier is so, but not as much.
    assert int(taken.argmax()) == liked[1]
    assert own.log_softmax(-1)[0, liked[0]] < taken[liked[0]] < after.log_softmax(-1)[0, one] - 0.5


def test_inside_a_word_that_the_lora_leaves_alone_the_target_goes_on_by_itself(tiny_model) -> None:
    source, target = tiny_model("llama", "unigram"), tiny_model("mistral", "byte_bpe")
    before = logits(source, 1, rows=1)
    after = before.clone()
    after[0, source.token_texts.index(" village")] += 5.0
    own = logits(target, 3, rows=1)
    taken = VocabularyMap(source, target).take_over(own, before, after, [" t"], torch.zeros(1))
    torch.testing.assert_close(taken.exp(), own.softmax(-1), atol=1e-5, rtol=1e-3)


def test_a_word_that_the_lora_has_begun_is_gone_on_with_though_there_are_several(tiny_model) -> None:
    source, target = tiny_model("llama", "unigram"), tiny_model("mistral", "byte_bpe")
    vocabulary = VocabularyMap(source, target)
    begun = max((" t", " w", " s", " h", " a"), key=lambda text: len(vocabulary.bridge(text).spoken))
    bridge = vocabulary.bridge(begun)
    assert len(bridge.spoken) > 1
    before = logits(source, 1, rows=1)
    before[0, bridge.ids] = -20.0
    after = before.clone()
    after[0, bridge.ids[bridge.first < len(bridge.spoken)]] = 9.0
    own = logits(target, 2, rows=1)
    own[0, bridge.spoken] = -9.0
    taken = vocabulary.take_over(own, before, after, [begun], torch.zeros(1))
    assert taken[0, bridge.spoken].exp().sum() > 0.99


def test_an_end_is_an_end_in_both(tiny_model) -> None:
    source, target = tiny_model("llama", "unigram"), tiny_model("mistral", "byte_bpe")
    before, after = logits(source, 1, rows=1), logits(source, 1, rows=1)
    after[0, source.tokenizer.eos_token_id] = 60.0
    taken = VocabularyMap(source, target).take_over(
        logits(target, 2, rows=1), before, after, [""], torch.zeros(1)
    )
    assert int(taken.argmax()) == target.tokenizer.eos_token_id


def test_pooling_is_of_each_row_by_its_own_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(7, 12, generator=random).log_softmax(-1)
    heard = torch.rand(7, 5, generator=random).softmax(-1)
    weights = torch.tensor([0.0, 0.3, 1.0, 0.0, 0.7, 0.5, 0.01], dtype=torch.float64)
    at = torch.tensor([11, 2, 3, 7, 0])
    monkeypatch.setattr("cast.language_model._IN_CACHE", 24)
    pooled = mixed.clone()
    _pool(pooled, heard, weights, at)
    for row, weight in enumerate(weights.tolist()):
        spoken = torch.full([12], _PATIENCE)
        spoken[at] += heard[row]
        expected = ((1 - weight) * mixed[row] + weight * spoken.log()).log_softmax(-1)
        torch.testing.assert_close(pooled[row], expected)
    assert torch.equal(pooled[weights == 0], mixed[weights == 0])
