"""What a runner thinks of given text: log-probabilities of completions, the best choice, bits per byte.

Everything here goes through the `Runner` protocol and asks for logits only at the positions that count: a
head of 262,144 rows costs more than the rest of a small model. Prompt and completion are tokenised as one
string.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cast.errors import TaskError
from cast.language_model import by_length
from cast.models import TokenBatch
from cast.progress import OnProgress, Progress, ignore
from cast.runners import Runner
from cast.training import completion_mask


@dataclass(frozen=True)
class _ScoredRow:
    """One text in tokens, with the log-probabilities (nats, float32) at the positions of its completion."""

    ids: list[int]
    first: int  # position of the first completion token
    log_probs: Tensor  # [K, V], rows belong to positions first … first + K - 1

    @property
    def total(self) -> float:
        """Summed log-probability of the completion's own tokens."""
        own = torch.tensor(self.ids[self.first :], device=self.log_probs.device)
        return self.log_probs.gather(1, own[:, None]).cpu().double().sum().item()


def completion_log_probs(
    runner: Runner,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    on_progress: OnProgress = ignore,
) -> list[float]:
    """Summed log-probability, in nats, that the runner gives each completion after its prompt.

    Args:
        runner: the model with whatever acts on it.
        pairs: prompts and completions; an empty prompt scores the whole text.
        batch_size: texts at once.
        on_progress: gets stage `score`.
    """
    totals = [0.0] * len(pairs)
    for done, chosen in by_length([prompt + completion for prompt, completion in pairs], batch_size):
        for index, row in zip(chosen, _scored_rows(runner, [pairs[index] for index in chosen]), strict=True):
            totals[index] = row.total
        on_progress(Progress("score", done + len(chosen), len(pairs)))
    return totals


@torch.no_grad()
def next_log_probs(runner: Runner, texts: Sequence[str]) -> Tensor:
    """Log-probabilities [B, V] of the token behind each of B whole texts, float32 on the CPU."""
    batch = runner.lm.encode(texts)
    ends = batch.attention_mask.sum(1).cpu() - 1
    return runner.logits(batch, torch.arange(len(texts)), ends).log_softmax(-1).cpu()


def bits_per_byte(
    runner: Runner, texts: Sequence[str], *, batch_size: int = 8, on_progress: OnProgress = ignore
) -> float:
    """Bits the runner needs for a byte of UTF-8 of `texts`, comparable between tokenizers.

    The first token is predicted from the BOS alone; the end of the text is not scored. `on_progress` gets
    stage `score`.
    """
    pairs = [("", text) for text in texts]
    nats = sum(completion_log_probs(runner, pairs, batch_size=batch_size, on_progress=on_progress))
    size = sum(len(text.encode()) for text in texts)
    return -nats / size / torch.log(torch.tensor(2.0)).item() if size else 0.0


@dataclass
class _Contest:
    """The choices of one example, and what is known of each so far."""

    prompt: str
    choices: Sequence[str]
    ids: list[list[int]]
    first: list[int]
    known: list[dict[int, float]] = field(init=False)  # a choice's log-probability by position

    def __post_init__(self) -> None:
        self.known = [{} for _ in self.choices]

    def learn(self, index: int, row: _ScoredRow) -> None:
        """Take what the row of one choice says of every choice that begins with the same tokens."""
        for other, ids in enumerate(self.ids):
            shared = _shared_prefix(row.ids, ids)
            last = min(shared, len(row.ids) - 1, len(ids) - 1)
            for position in range(max(row.first, self.first[other]), last + 1):
                value = row.log_probs[position - row.first, ids[position]].item()
                self.known[other].setdefault(position, value)

    def leader(self) -> tuple[int, bool]:
        """The choice of the highest upper bound, and whether its sum is complete.

        Unknown log-probabilities are at most 0, so a complete leader is the winner.
        """
        bounds = [sum(values.values()) for values in self.known]
        best = max(range(len(bounds)), key=bounds.__getitem__)
        return best, len(self.known[best]) == len(self.ids[best]) - self.first[best]


def best_choices(
    runner: Runner,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    on_progress: OnProgress = ignore,
) -> list[int]:
    """Index of the choice with the highest summed log-probability after each prompt.

    Exact, yet most choices are never run: the row of one choice gives the first tokens' log-probabilities of
    all that share its beginning, the sum so far bounds a choice from above, and only a choice that leads by
    its bound is run. The first row is that of the first choice listed, whichever is right.

    Args:
        runner: the model with whatever acts on it.
        prompts: one prompt an example.
        choices: the texts that may follow each prompt.
        batch_size: texts at once.
        on_progress: gets stage `choose`.
    """
    winners: list[int] = []
    examples = list(zip(prompts, choices, strict=True))
    for start in range(0, len(examples), batch_size):
        contests = [_contest(runner, prompt, texts) for prompt, texts in examples[start : start + batch_size]]
        _settle(runner, contests)
        winners.extend(contest.leader()[0] for contest in contests)
        on_progress(Progress("choose", len(winners), len(examples)))
    return winners


def _contest(runner: Runner, prompt: str, choices: Sequence[str]) -> _Contest:
    batch = runner.lm.encode([prompt + choice for choice in choices])
    first, ids = _rows_of(batch, [prompt] * len(choices))
    return _Contest(prompt, choices, ids, first)


def _settle(runner: Runner, contests: Sequence[_Contest]) -> None:
    """Run rows until every contest has a complete leader."""
    due = [(contest, 0) for contest in contests]
    while due:
        pairs = [(contest.prompt, contest.choices[index]) for contest, index in due]
        for (contest, index), row in zip(due, _scored_rows(runner, pairs), strict=True):
            contest.learn(index, row)
        leaders = [(contest, *contest.leader()) for contest in contests]
        due = [(contest, index) for contest, index, complete in leaders if not complete]


@torch.no_grad()
def _scored_rows(runner: Runner, pairs: Sequence[tuple[str, str]]) -> Iterator[_ScoredRow]:
    """Score every `(prompt, completion)`, as many at once as their logits allow, in order."""
    batch = runner.lm.encode([prompt + completion for prompt, completion in pairs])
    mask = completion_mask(batch, [prompt for prompt, _ in pairs])
    _check_whole(runner, batch, pairs)
    rows, positions = torch.nonzero(mask, as_tuple=True)
    if len(pairs) > 1 and len(rows) > runner.lm.positions_at_once:
        half = len(pairs) // 2
        yield from _scored_rows(runner, pairs[:half])
        yield from _scored_rows(runner, pairs[half:])
        return
    # The token at a position is predicted one position before it.
    log_probs = runner.logits(batch, rows, positions - 1).float().log_softmax(-1)
    first, ids = _rows_of(batch, [prompt for prompt, _ in pairs])
    done = 0
    for row, start in zip(ids, first, strict=True):
        count = len(row) - start
        yield _ScoredRow(row, start, log_probs[done : done + count])
        done += count


def _check_whole(runner: Runner, batch: TokenBatch, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse a prompt so long that its completion was cut off: what is left would score too well."""
    limit = runner.lm.context_length
    for (prompt, _), length in zip(pairs, batch.attention_mask.sum(1).tolist(), strict=True):
        if prompt and limit and length >= limit:
            raise TaskError(
                f"A prompt with its completion fills all {limit} tokens that {runner.lm.name} can read; "
                "leave out or shorten such examples."
            )


def _rows_of(batch: TokenBatch, prompts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Position of each row's first completion token, and each row's ids without padding."""
    lengths = batch.attention_mask.sum(1).tolist()
    counts = completion_mask(batch, prompts).sum(1).tolist()
    ids = [row[:length] for row, length in zip(batch.input_ids.tolist(), lengths, strict=True)]
    return [length - count for length, count in zip(lengths, counts, strict=True)], ids


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many of the first ids are the same."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))
