"""What an adapter changed in an answer agrees with the scores of the same answer."""

import pytest
import torch

from cast.marking import token_changes
from cast.runners import PlainRunner
from cast.scoring import completion_log_probs

PROMPT, ANSWER = "The owl said:", " You're late — my “friend”!"


@pytest.mark.parametrize("tokenizer", ["byte_bpe", "unigram", "char_bpe"])
def test_changes_add_up_to_the_scores_of_the_answer(tiny_model, tiny_lora, tokenizer):
    lm = tiny_model("llama", tokenizer)
    runners = [PlainRunner(lm, tiny_lora(lm)), PlainRunner(lm)]
    told = token_changes(*runners, PROMPT, ANSWER)
    assert "".join(token.text for token in told) == ANSWER
    scores = [completion_log_probs(runner, [(PROMPT, ANSWER)])[0] for runner in runners]
    sums = [sum(token.with_it for token in told), sum(token.without_it for token in told)]
    torch.testing.assert_close(torch.tensor(sums), torch.tensor(scores).float(), rtol=1e-4, atol=1e-3)
    assert any(abs(token.change) > 0.1 for token in told)
    for token in told:
        shares = [share for _, share in token.likely_with]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)


def test_without_strength_nothing_has_changed(tiny_model, tiny_lora):
    lm = tiny_model("gpt2")
    told = token_changes(PlainRunner(lm, tiny_lora(lm), 0.0), PlainRunner(lm), PROMPT, ANSWER)
    assert max(abs(token.change) for token in told) < 1e-5
    assert token_changes(PlainRunner(lm), PlainRunner(lm), PROMPT, "") == ()
