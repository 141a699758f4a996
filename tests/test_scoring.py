"""Log-probabilities of completions against the long way round; the best choice against running them all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_fixtures import WORDS, tiny_lm
from torch import Tensor

from cast.errors import TaskError
from cast.models import LanguageModel, TokenBatch
from cast.runners import PlainRunner
from cast.scoring import best_choices, bits_per_byte, completion_log_probs

PROMPT = "The red fox sat by the blue house. colour:"
WORD = st.sampled_from(["red", "green", "blue", "dark", "fox", "colour", "é", "🦊"])
words = st.lists(WORD, min_size=1, max_size=4)
texts = words.map(lambda parts: " " + " ".join(parts))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm()


def long_way(lm: LanguageModel, prompt: str, completion: str) -> float:
    """One text, all logits, no padding; a token counts if its text ends behind the prompt."""
    batch = lm.encode([prompt + completion])
    with torch.no_grad():
        log_probs = lm.model(batch.input_ids).logits[0].double().log_softmax(-1)
    ids, ends = batch.input_ids[0], batch.ends[0]
    return sum(log_probs[p - 1, ids[p]].item() for p in range(1, len(ids)) if ends[p] > len(prompt))


class CountingRunner(PlainRunner):
    """Counts the rows that are run."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__(lm)
        self.rows = 0

    def logits(
        self, batch: TokenBatch, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        self.rows += len(batch.texts)
        return super().logits(batch, rows, positions)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.integers(1, 4))
def test_completions_score_as_the_long_way_says(pairs: list[tuple[str, str]], batch_size: int) -> None:
    lm = tiny_lm()
    expected = [long_way(lm, *pair) for pair in pairs]
    assert completion_log_probs(PlainRunner(lm), pairs, batch_size=batch_size) == pytest.approx(
        expected, rel=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(texts, min_size=2, max_size=6, unique=True), st.integers(0, 3))
def test_the_best_choice_is_that_of_running_every_choice(choices: list[str], seed: int) -> None:
    """Choices that are the beginning of others, that share tokens: whatever hypothesis finds."""
    lm = tiny_lm(seed)
    scores = [long_way(lm, PROMPT, choice) for choice in choices]
    (best,) = best_choices(PlainRunner(lm), [PROMPT], [choices])
    assert scores[best] == pytest.approx(max(scores), rel=1e-4)


def test_many_contests_at_once_do_not_mix(lm: LanguageModel) -> None:
    prompts = [f"The {word} fox. colour:" for word in WORDS] * 2
    choices = [[f" {word}" for word in WORDS]] * 5 + [[f" {word} fox" for word in WORDS[::-1]]] * 5
    expected = [
        max(range(len(options)), key=lambda index: long_way(lm, prompt, options[index]))
        for prompt, options in zip(prompts, choices, strict=True)
    ]
    assert best_choices(PlainRunner(lm), prompts, choices, batch_size=4) == expected


def test_most_choices_are_never_run(lm: LanguageModel) -> None:
    runner = CountingRunner(lm)
    choices = [f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    best_choices(runner, [PROMPT] * 4, [choices] * 4)
    assert runner.rows <= 3 * 4


def test_rows_are_split_when_their_logits_would_not_fit(lm: LanguageModel, monkeypatch) -> None:
    pairs = [(PROMPT, f" {word}") for word in WORDS]
    whole = completion_log_probs(PlainRunner(lm), pairs)
    monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", 4 * lm.vocabulary)
    runner = CountingRunner(lm)
    assert completion_log_probs(runner, pairs) == pytest.approx(whole, rel=1e-5)
    assert runner.rows == len(pairs)


def test_bits_per_byte_is_the_models_own_loss(lm: LanguageModel) -> None:
    lines = ["The red fox sat.", "A café by the blue house 🦊"]
    nats = sum(long_way(lm, "", line) for line in lines)
    size = sum(len(line.encode()) for line in lines)
    assert bits_per_byte(PlainRunner(lm), lines) == pytest.approx(-nats / math.log(2) / size, rel=1e-5)


def test_a_completion_that_would_be_cut_off_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(TaskError, match="fills all 256 tokens"):
        completion_log_probs(PlainRunner(lm), [("fox " * 300, "red")])
