"""Text from a runner: streamed piece by piece for one prompt, greedy in batches for evaluation."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from cast.adapters import applied
from cast.errors import RequestError
from cast.language_model import rows_in_cache
from cast.models import LanguageModel
from cast.progress import OnProgress, Progress, ignore
from cast.runners import PlainRunner, Runner
from cast.stepping import BatchSession, StreamSession, TokenStream
from cast.transcript import Transcript

# Of so many tokens probabilities are summed first.
_RUN = 512


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Attributes:
        max_new_tokens: most tokens after the prompt.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: keep the likeliest tokens that together have at least this probability, in (0, 1].
        seed: of the draws; step k of every generation with one seed draws the same number, so equal
            distributions give equal texts whatever runner they come from.
        stop: end before this text; None for no such end.

    Raises:
        RequestError: a value is out of its range.
    """

    max_new_tokens: int = 80
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: str | None = None

    def __post_init__(self) -> None:
        """Hold the ranges above."""
        if self.max_new_tokens < 0:
            raise RequestError(f"The number of new tokens is {self.max_new_tokens}; it must be 0 or more.")
        if not 0 <= self.temperature < float("inf"):
            raise RequestError(f"The temperature is {self.temperature}; it must be a number of at least 0.")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"Top-p is {self.top_p}; it must be above 0 and at most 1.")
        if self.stop == "":
            raise RequestError("The text to stop at is empty; leave it out instead.")


def generate(
    runner: Runner,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Stream the continuation of a prompt.

    Args:
        runner: the model with whatever acts on it; nothing acts between two pieces.
        prompt: any text; an empty one begins at the BOS.
        sampling: None for the defaults.
        should_stop: asked before each token.

    Yields:
        New text, whole characters only; together they are the continuation, without end-of-text and `stop`.

    Raises:
        RequestError: the prompt leaves no room in the model's context.
    """
    sampling = sampling or Sampling()
    pick = _Picker(runner.lm, sampling)
    text = _Continuation(runner.lm, prompt, sampling.stop, sampling.seed)
    session = runner.session()
    for _ in range(sampling.max_new_tokens):
        if should_stop() or text.take(pick(session.next_logits(text.ids)[None], [text])[0]):
            break
        if piece := text.piece():
            yield piece
    if piece := text.piece(final=True):
        yield piece


def generate_many(
    runner: Runner,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: OnProgress = ignore,
) -> list[str]:
    """Continuations of many prompts; greedy ones equal those that `generate` streams.

    Args:
        runner: the model with whatever acts on it.
        prompts: any texts.
        max_new_tokens: most tokens of each.
        stop: end before this text.
        temperature: see `Sampling`.
        seed: of the draws. Each prompt gets its own by it, whatever the others are.
        batch_size: prompts that are stepped together; those of like length are taken together.
        on_progress: gets stage `generate`.

    Raises:
        RequestError: a prompt leaves no room in the model's context.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, stop=stop)
    texts = [
        _Continuation(runner.lm, prompt, stop, own)
        for prompt, own in zip(prompts, _seeds(prompts, seed), strict=True)
    ]
    order = sorted(texts, key=lambda text: len(text.ids))
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for ended in _finished(runner, chunk, sampling):
            # At every step: many long texts of a large model could not be cancelled else.
            on_progress(Progress("generate", start + ended, len(order)))
    return [text.piece(final=True) for text in texts]


def _seeds(prompts: Sequence[str], seed: int) -> Iterator[str]:
    """A seed for each prompt, from its text; where several are the same, from which of them it is as well."""
    before: Counter[str] = Counter()
    for prompt in prompts:
        yield f"{seed} {before[prompt]} {prompt}"
        before[prompt] += 1


def _finished(runner: Runner, texts: Sequence["_Continuation"], sampling: Sampling) -> Iterator[int]:
    """Step a batch of texts until each has ended; yields how many have. Those are taken out of the batch."""
    pick = _Picker(runner.lm, sampling)
    session, running = _batch_session(runner, len(texts)), list(texts)
    for _ in range(sampling.max_new_tokens):
        tokens = pick(session.next_logits([text.ids for text in running]), running)
        ended = [text.take(token) for text, token in zip(running, tokens, strict=True)]
        going = [row for row, over in enumerate(ended) if not over]
        if not going:
            break
        yield len(texts) - len(going)
        if len(going) < len(running):
            running = [running[row] for row in going]
            session.select(going)
    yield len(texts)


def _batch_session(runner: Runner, rows: int) -> BatchSession:
    if isinstance(runner, PlainRunner):
        acting = partial(applied, runner.lm, runner.lora, runner.strength) if runner.lora else nullcontext
        return StreamSession(TokenStream(runner.lm, rows, acting))
    if hasattr(runner, "batch_session"):
        return runner.batch_session(rows)
    if hasattr(runner, "acting"):
        return StreamSession(TokenStream(runner.lm, rows, runner.acting))
    return _OneByOne(runner, rows)


class _OneByOne:
    """The batch session of a runner that only knows single texts."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self._sessions = [runner.session() for _ in range(rows)]

    def next_logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack([own.next_logits(ids) for own, ids in zip(self._sessions, rows, strict=True)])

    def select(self, rows: Sequence[int]) -> None:
        self._sessions = [self._sessions[row] for row in rows]


class _Picker:
    """Chooses tokens from logits."""

    def __init__(self, lm: LanguageModel, sampling: Sampling) -> None:
        self._size = min(lm.vocabulary, len(lm.tokenizer))  # Rows of the head beyond it belong to no token.
        self._greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: Tensor, texts: Sequence["_Continuation"]) -> list[int]:
        """One token for each row of logits [B, V], by the next number that its text draws."""
        logits = logits[:, : self._size].float().cpu()
        if self._greedy:
            return logits.argmax(-1).tolist()
        # One number a row against the summed probabilities, not `multinomial`: panes that differ by rounding
        # only then draw alike, on any device.
        numbers = torch.tensor([text.draw() for text in texts], dtype=torch.float64)
        tokens: list[int] = []
        for at in rows_in_cache(*logits.shape):
            scores = self._warpers(torch.empty(len(logits[at]), 0, dtype=torch.long), logits[at])
            tokens += drawn(scores.softmax(-1), numbers[at]).tolist()
        return tokens


def drawn(shares: Tensor, numbers: Tensor) -> Tensor:
    """The places [B] at which sums over shares [B, V] first exceed numbers [B] in [0, 1) of the whole.

    First the run of places is found, then the place in it: whole sums in float64 over a vocabulary of 262,144
    took as long as its logits, or twice as long.
    """
    runs = pad(shares, (0, -shares.shape[1] % _RUN)).unflatten(-1, (-1, _RUN))
    ends = runs.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = numbers[:, None] * ends[:, -1:]
    run = torch.searchsorted(ends, wanted, right=True).clamp(max=ends.shape[1] - 1)
    within = runs[torch.arange(len(runs)), run[:, 0]].double().cumsum(-1)
    before = ends.gather(1, run) - within[:, -1:]
    # Where rounding leaves nothing above what is wanted, the last place that has a share.
    last = torch.searchsorted(within, within[:, -1:].contiguous())
    place = torch.searchsorted(within, wanted - before, right=True).minimum(last)
    return (run * _RUN + place)[:, 0]


class _Continuation:
    """A text that grows behind its prompt until it ends, and the numbers in [0, 1) that it draws."""

    def __init__(self, lm: LanguageModel, prompt: str, stop: str | None, seed: int | str) -> None:
        self._lm, self._stop = lm, stop
        self.draw = random.Random(seed).random
        self.ids: list[int] = lm.encode([prompt]).input_ids[0].tolist()
        if self._full():
            raise RequestError(
                f"The prompt fills the {lm.context_length} tokens that {lm.name} can read; shorten it."
            )
        self._transcript = Transcript(lm)
        self._transcript.read(self.ids)
        self._start = self._given = len(self._transcript.text)

    def _full(self) -> bool:
        return self._lm.context_length is not None and len(self.ids) >= self._lm.context_length

    def take(self, token: int) -> bool:
        """Add a token; true when the text has ended with it."""
        if token in self._lm.eos_ids:
            return True
        self.ids.append(token)
        self._transcript.read(self.ids)
        return self._full() or self._stopped() >= 0

    def _stopped(self) -> int:
        """Where the text to stop at begins, -1 if it has not come."""
        return -1 if self._stop is None else self._transcript.text.find(self._stop, self._start)

    def piece(self, final: bool = False) -> str:
        """The new text since the last call; what may begin `stop` is held back until that is clear."""
        text, end = self._transcript.text, self._stopped()
        if end < 0:
            end = len(text) if final else len(text) - self._held_back()
        piece = text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held_back(self) -> int:
        if self._stop is None:
            return 0
        new = self._transcript.text[self._start :]
        return next((n for n in range(len(self._stop) - 1, 0, -1) if new.endswith(self._stop[:n])), 0)
