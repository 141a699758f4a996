"""Where in a text an adapter changed what a model expects: token by token, by teacher forcing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cast.language_model import LanguageModel
from cast.runners import Runner

Alternatives = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TokenChange:
    """One token of an answer, with and without what acts on the model.

    Attributes:
        text: the characters that the token added.
        with_it: log-probability (nats) with the adapter.
        without_it: log-probability without.
        likely_with: the likeliest tokens in its place and their probabilities, with the adapter.
        likely_without: the same without.
    """

    text: str
    with_it: float
    without_it: float
    likely_with: Alternatives
    likely_without: Alternatives

    @property
    def change(self) -> float:
        """By how much the adapter raised the token's log-probability."""
        return self.with_it - self.without_it


@torch.no_grad()
def token_changes(
    adapted: Runner, base: Runner, prompt: str, answer: str, *, alternatives: int = 3
) -> tuple[TokenChange, ...]:
    """Compare two runners of one model on an answer to a prompt.

    Args:
        adapted: the model with what acts on it.
        base: the same model without.
        prompt: the text before the answer.
        answer: what is compared. A text that the model's context cuts short is compared as far as it goes.
        alternatives: likeliest tokens to name at each place.

    Returns:
        One entry for each token that ends inside the answer, in order.
    """
    lm = base.lm
    batch = lm.encode([prompt + answer])
    ends = batch.ends[0].tolist()
    places = [place for place, end in enumerate(ends) if end > len(prompt)]
    if not places:
        return ()
    rows = torch.zeros(len(places), dtype=torch.long)
    before = torch.tensor([place - 1 for place in places])
    told = [runner.logits(batch, rows, before).log_softmax(-1).cpu() for runner in (adapted, base)]
    ids = batch.input_ids[0, places].cpu()
    text = prompt + answer
    changes = []
    for index, place in enumerate(places):
        start = max(len(prompt), ends[place - 1])
        with_it, without_it = (log_probs[index] for log_probs in told)
        changes.append(
            TokenChange(
                text[start : ends[place]],
                float(with_it[ids[index]]),
                float(without_it[ids[index]]),
                _likeliest(lm, with_it, alternatives),
                _likeliest(lm, without_it, alternatives),
            )
        )
    return tuple(changes)


def _likeliest(lm: LanguageModel, log_probs: Tensor, count: int) -> Alternatives:
    best = log_probs.topk(min(count, len(log_probs)))
    return tuple(
        (lm.decode([token]), float(value.exp()))
        for token, value in zip(best.indices.tolist(), best.values, strict=True)
    )
