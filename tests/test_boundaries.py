"""Which ends of an unfinished text are settled: tokens known by their characters, and the odds weighed."""

import math
from collections.abc import Callable

import pytest
import torch
from conftest import TOKENIZERS

from cast.boundaries import TokenGauge, Tokens, settled, tokens_of
from cast.models import LanguageModel


@pytest.fixture(scope="module", params=TOKENIZERS)
def lm(request: pytest.FixtureRequest, tiny_model: Callable) -> LanguageModel:
    return tiny_model("llama", request.param)


def token(lm: LanguageModel, text: str) -> int:
    """The one token that ` text` is inside a sentence."""
    before, both = (tokens_of(lm, [f"A{ending}"])[0] for ending in ("", f" {text}"))
    assert len(both) == len(before) + 1, f"{text} is no token of its own here"
    return both.ids[-1]


def test_tokens_of_keeps_ids_and_ends_and_drops_padding(lm: LanguageModel) -> None:
    texts = ["The owl smiled", "", "a"]
    batch = lm.encode(texts)
    for row, tokens in enumerate(tokens_of(lm, texts)):
        length = int(batch.attention_mask[row].sum())
        assert list(tokens.ids) == batch.input_ids[row, :length].tolist()
        assert list(tokens.ends) == batch.ends[row, :length].tolist()
        assert len(tokens.first(1)) == 1


def test_a_word_that_may_go_on_is_crossed_by_its_longer_tokens(lm: LanguageModel) -> None:
    gauge = TokenGauge(lm)
    village = token(lm, "village")
    for cut in ("the vill", "the v", "the villag"):
        crossings = gauge.crossings(cut, tokens_of(lm, [cut])[0])
        before = len(tokens_of(lm, ["the"])[0]) - 1
        assert village in dict(crossings)[before].tolist()
    whole = gauge.crossings("the village", tokens_of(lm, ["the village"])[0])
    assert village not in [entry for _, ids in whole for entry in ids.tolist()]


def test_every_crossing_token_writes_the_rest_and_more(lm: LanguageModel) -> None:
    gauge = TokenGauge(lm)
    for text in ["the vill", "Once up", "a ", "a", "On", "café in a sm", "The owl said: “", "12 miles\n"]:
        tokens = tokens_of(lm, [text])[0]
        for index, ids in gauge.crossings(text, tokens):
            start = max(tokens.ends[index], 0)
            for crossing in ids.tolist():
                # Behind the text's own first tokens, a crossing token goes on past the text's end.
                written = lm.decode([*tokens.ids[: index + 1], crossing])
                assert len(written) > len(text)
                assert written[start : len(text)].startswith(text[start:])


def test_an_empty_text_and_a_lone_bos_have_no_crossings(lm: LanguageModel) -> None:
    gauge = TokenGauge(lm)
    assert gauge.crossings("", tokens_of(lm, [""])[0]) == []


def test_the_first_word_is_crossed_even_where_the_tokenizer_puts_a_space_before_it(lm: LanguageModel) -> None:
    first = tokens_of(lm, ["Once upon"])[0]
    cut = "Onc"
    crossings = dict(TokenGauge(lm).crossings(cut, tokens_of(lm, [cut])[0]))
    if first.ends[1] == len("Once"):  # Where `Once` is one token at the front of a text.
        assert first.ids[1] in crossings[0].tolist()
    else:
        assert first.ends[1] < len("Once")


def test_half_a_character_is_no_place_to_cross_from(tiny_model: Callable) -> None:
    lm = tiny_model("llama", "byte_bpe")
    text = "a 🦊"
    tokens = tokens_of(lm, [text])[0]
    assert len(set(tokens.ends)) < len(tokens)  # Several tokens share the fox.
    indices = [index for index, _ in TokenGauge(lm).crossings(text, tokens)]
    assert all(tokens.ends[index] != tokens.ends[index + 1] for index in indices)


# --- the odds, of ` ha` after ` am`: tokens are 0 BOS, 1 ` am`, 2 ` ha`, 3 ` happy`, 4 ` h`, 5 `a`, 6 `appy`

AM, HA, HAPPY, H, A, APPY = range(1, 7)


def beliefs(**of: dict[int, float]) -> Callable[[int], torch.Tensor]:
    """Log-probabilities at each position, `at1={token: probability}`; the rest is spread thinly."""

    def log_probs(index: int) -> torch.Tensor:
        mass = torch.full((7,), 1e-6)
        for entry, share in of[f"at{index}"].items():
            mass[entry] = share
        return (mass / mass.sum()).log()

    return log_probs


def test_a_likelier_longer_token_unsettles_the_end() -> None:
    tokens = Tokens((0, AM, HA), (-1, 3, 6))
    crossings = [(1, torch.tensor([HAPPY]))]
    assert settled(tokens, crossings, beliefs(at1={HA: 0.1, HAPPY: 0.8})) == tokens.first(2)
    assert settled(tokens, crossings, beliefs(at1={HA: 0.5, HAPPY: 0.3})) == tokens
    assert settled(tokens, [], beliefs()) == tokens


def test_the_whole_path_of_an_end_is_weighed() -> None:
    """` ha` read as ` h`, `a`: it may end there, become ` happy`, or ` h` with `appy`."""
    tokens = Tokens((0, AM, H, A), (-1, 3, 5, 6))
    crossings = [(2, torch.tensor([APPY])), (1, torch.tensor([HAPPY]))]
    # P(ends here) = 0.5 · 0.6 = 0.3 against 0.1 + 0.5 · 0.3 = 0.25.
    rest = {H: 0.5, AM: 0.4}
    assert settled(tokens, crossings, beliefs(at1=rest | {HAPPY: 0.1}, at2={A: 0.6, APPY: 0.3})) == tokens
    # … against 0.12 + 0.5 · 0.39 = 0.315 it is not settled: cut before the likelier one.
    close = beliefs(at1={H: 0.5, HAPPY: 0.12, AM: 0.38}, at2={A: 0.6, APPY: 0.39})
    assert settled(tokens, crossings, close) == tokens.first(3)
    other = beliefs(at1={H: 0.3, HAPPY: 0.6, AM: 0.1}, at2={A: 0.6, APPY: 0.3})
    assert settled(tokens, crossings, other) == tokens.first(2)


def test_an_impossible_path_does_not_overflow() -> None:
    tokens = Tokens((0, AM, HA), (-1, 3, 6))

    def log_probs(index: int) -> torch.Tensor:
        return torch.tensor([-math.inf] * 3 + [0.0] + [-math.inf] * 3)

    assert settled(tokens, [(1, torch.tensor([HAPPY]))], log_probs) == tokens.first(2)
