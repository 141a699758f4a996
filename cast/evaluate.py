"""Scores of a runner on a task, and what of a skill a translation recovered.

Knows a model only as a `Runner`: the base, a LoRA and every mode of translation are scored by the same code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from cast.errors import TaskError
from cast.generation import generate_many
from cast.json_lines import JsonLine, read_json_lines
from cast.pocket.tasks import TASKS, Example, Task, first_line
from cast.progress import OnProgress, ignore
from cast.runners import Runner
from cast.scoring import best_choices, bits_per_byte, completion_log_probs

Metric = Literal["choice", "style", "exact"]
Split = Literal["train", "test"]
StyleRule = Callable[[Example, str], float | None]

MINIMUM_LIFT = 0.10
"""Tasks on which retraining gains less than this are left out by rule: their recovered lift is noise."""

_POCKET = "pocket:"
_POCKET_COUNT = {"train": 2000, "test": 500}
_LONGEST_LINE = 1_000_000


@dataclass(frozen=True)
class TaskData:
    """Examples of one task, and the metric that counts for it."""

    name: str
    examples: tuple[Example, ...]
    style: StyleRule | None = None
    """Rule that scores a generated continuation in [0, 1]; behaviour tasks have one."""

    @property
    def metric(self) -> Metric:
        """`choice` where every example has choices, `style` where there is a rule, else `exact`."""
        if all(example.choices for example in self.examples):
            return "choice"
        return "style" if self.style else "exact"


@dataclass(frozen=True, eq=False)
class EvalReport:
    """Scores of one runner on one task, example by example; every array has shape [N].

    Shares are in [0, 1]. What was not measured is None.
    """

    task: str
    metric: Metric
    bits: np.ndarray
    """Bits the runner needs for each gold completion."""
    sizes: np.ndarray
    """Bytes of UTF-8 of each gold completion."""
    choice: np.ndarray | None
    """1 where the right choice had the highest summed log-probability."""
    exact: np.ndarray | None
    """1 where the greedy continuation was the gold completion."""
    style: np.ndarray | None
    """Style score of the greedy continuation."""
    outputs: tuple[str, ...]
    """Greedy continuations; empty where none were asked for."""

    @property
    def count(self) -> int:
        """Examples scored."""
        return len(self.bits)

    @property
    def scores(self) -> np.ndarray:
        """The metric's value example by example, as the bootstrap takes it."""
        scores = {"choice": self.choice, "style": self.style, "exact": self.exact}[self.metric]
        if scores is None:
            raise TaskError(f"{self.task} is scored by its {self.metric}; evaluate it with greedy=True.")
        return scores

    @property
    def score(self) -> float:
        """The headline figure: the mean of `scores`."""
        return float(self.scores.mean())

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the gold completions, all examples together."""
        return float(self.bits.sum() / self.sizes.sum())

    def summary(self) -> dict[str, str | int | float | None]:
        """The means, as JSON takes them."""
        return {
            "task": self.task,
            "examples": self.count,
            "metric": self.metric,
            "choice": None if self.choice is None else float(self.choice.mean()),
            "exact": None if self.exact is None else float(self.exact.mean()),
            "style": None if self.style is None else float(self.style.mean()),
            "bits_per_byte": self.bits_per_byte,
        }


def read_task(spec: str, split: Split = "test", limit: int | None = None) -> TaskData:
    """Read a task: one of the pocket zoo's, or a JSONL file.

    Args:
        spec: `pocket:mood`, or the path of a file with one `{"prompt", "completion", "choices"?}` a line.
        split: which of a pocket task's two disjoint streams; a file is what it is and has none.
        limit: examples at most; without it 500 of a pocket task's test stream, 2,000 of its training stream,
            and the whole of a file.

    Raises:
        TaskError: no such task or file, or a malformed line, with its number.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"{limit} examples were asked for; at least 1 is needed.")
    if not spec.startswith(_POCKET):
        return TaskData(Path(spec).stem, _read_file(Path(spec), limit))
    name = spec.removeprefix(_POCKET)
    task = TASKS.get(name)
    if task is None:
        raise TaskError(f"There is no pocket task {name!r}; there are {', '.join(TASKS)}.")
    return drawn_task(task, split, limit)


def drawn_task(task: Task, split: Split = "test", limit: int | None = None) -> TaskData:
    """The examples of a task on the story world; the arguments are those of `read_task`."""
    examples = (task.test if split == "test" else task.train)(limit or _POCKET_COUNT[split])
    return TaskData(_POCKET + task.name, examples, task.style_score if task.kind == "behaviour" else None)


def _read_file(path: Path, limit: int | None) -> tuple[Example, ...]:
    examples = tuple(map(_example, islice(read_json_lines(path, TaskError, _LONGEST_LINE), limit)))
    if not examples:
        raise TaskError(f"{path} holds no example; give one JSON object a line.")
    if len({example.choices is None for example in examples}) > 1:
        raise TaskError(f"{path} gives choices to some examples only; give them to all or to none.")
    return examples


def _example(line: JsonLine) -> Example:
    prompt, completion, choices = line.text("prompt"), line.text("completion"), line.record.get("choices")
    if not completion:
        raise TaskError(f"{line.where}: the completion is empty.")
    if choices is not None:
        _check_choices(choices, completion, line.where)
    return Example(prompt, completion, None if choices is None else tuple(choices))


def _check_choices(choices: object, completion: str, where: str) -> None:
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise TaskError(f"{where}: `choices` must be a list of strings that are not empty.")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise TaskError(f"{where}: `choices` needs at least two strings, all different.")
    if completion not in choices:
        raise TaskError(f"{where}: the completion {completion!r} is none of its choices; spaces count.")


def evaluate(
    runner: Runner,
    task: TaskData,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    greedy: bool = True,
    on_progress: OnProgress = ignore,
) -> EvalReport:
    """Score a runner on a task.

    Args:
        runner: the model with whatever acts on it.
        task: the examples.
        limit: examples at most, from the front, so that reports of one task stay paired.
        batch_size: texts at once.
        greedy: also generate, which the exact and the style score need; it costs most of the time.
        on_progress: gets stages `score`, `choose` and `generate`.
    """
    examples = task.examples[:limit]
    pairs = [(example.prompt, example.completion) for example in examples]
    log_probs = completion_log_probs(runner, pairs, batch_size=batch_size, on_progress=on_progress)
    outputs: tuple[str, ...] = ()
    if greedy:
        outputs = _continuations(runner, examples, batch_size, on_progress)
    return EvalReport(
        task=task.name,
        metric=task.metric,
        bits=np.array(log_probs) / -math.log(2),
        sizes=np.array([len(completion.encode()) for _, completion in pairs]),
        choice=_choices_right(runner, examples, batch_size, on_progress) if task.metric == "choice" else None,
        exact=_exact(examples, outputs) if greedy else None,
        style=_styles(task.style, examples, outputs) if greedy and task.style else None,
        outputs=outputs,
    )


def _choices_right(
    runner: Runner, examples: Sequence[Example], batch_size: int, on_progress: OnProgress
) -> np.ndarray:
    choices = [example.choices or () for example in examples]
    prompts = [example.prompt for example in examples]
    best = best_choices(runner, prompts, choices, batch_size=batch_size, on_progress=on_progress)
    right = [
        options[index] == example.completion
        for example, options, index in zip(examples, choices, best, strict=True)
    ]
    return np.array(right, dtype=float)


def _continuations(
    runner: Runner, examples: Sequence[Example], batch_size: int, on_progress: OnProgress
) -> tuple[str, ...]:
    """Greedy continuations, long enough for the longest gold completion even in smaller pieces."""
    texts = [example.completion for example in examples]
    longest = int(runner.lm.encode(texts).attention_mask.sum(1).max())
    stop = None if any("\n" in text.strip() for text in texts) else "\n"
    return tuple(
        generate_many(
            runner,
            [example.prompt for example in examples],
            max_new_tokens=2 * longest + 4,
            stop=stop,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    )


def _exact(examples: Sequence[Example], outputs: Sequence[str]) -> np.ndarray:
    """A continuation counts up to its first newline, unless the gold completion has lines itself."""
    hits = [
        (output.strip() if "\n" in gold else first_line(output)) == gold
        for output, gold in zip(outputs, (example.completion.strip() for example in examples), strict=True)
    ]
    return np.array(hits, dtype=float)


def _styles(style: StyleRule, examples: Sequence[Example], outputs: Sequence[str]) -> np.ndarray:
    scores = [style(example, output) for example, output in zip(examples, outputs, strict=True)]
    return np.array([score or 0.0 for score in scores])


def recovered_lift(
    base: float, translated: float, retrained: float, *, minimum: float = MINIMUM_LIFT
) -> float | None:
    """(translated - base) / (retrained - base): the share of the skill that arrived.

    None where retraining itself gains less than `minimum`: such a task cannot show a transfer.
    """
    gained = retrained - base
    return (translated - base) / gained if gained >= minimum else None


def bootstrap_interval(
    base: np.ndarray,
    translated: np.ndarray,
    retrained: np.ndarray,
    *,
    minimum: float = MINIMUM_LIFT,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap of the recovered lift, paired over examples and over seeds.

    Each draw takes the same examples of all three, and for every array with seeds its own seeds anew.

    Args:
        base: scores of the target, [n].
        translated: scores of the translated adapter, [n] or [seeds, n].
        retrained: scores of the retrained adapter, [n] or [seeds, n].
        minimum: see `recovered_lift`.
        level: mass between the two ends.
        draws: resamples.
        seed: of the resampling.

    Returns:
        Lower and upper end; None where `recovered_lift` is None.
    """
    arrays = [np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (base, translated, retrained)]
    if recovered_lift(*(float(scores.mean()) for scores in arrays), minimum=minimum) is None:
        return None
    rng = np.random.default_rng(seed)
    count = arrays[0].shape[1]
    lifts = np.empty(draws)
    for draw in range(draws):
        examples = rng.integers(count, size=count)
        low, middle, high = (
            scores[rng.integers(len(scores), size=len(scores))][:, examples].mean() for scores in arrays
        )
        # A draw that leaves retraining without gain says nothing of the share.
        lifts[draw] = (middle - low) / (high - low) if high > low else np.nan
    tail = (1 - level) / 2
    lower, upper = np.nanquantile(lifts, [tail, 1 - tail])
    return float(lower), float(upper)


def off_task(
    runner: Runner,
    before: float,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    on_progress: OnProgress = ignore,
) -> float:
    """Relative change of bits per byte on held-out general text: 0.02 is 2 % more than the base needs.

    Args:
        runner: the target with the translated adapter.
        before: bits per byte of the target without, from `scoring.bits_per_byte`.
        texts: general text that no adapter was fitted on.
        batch_size: texts at once.
        on_progress: gets stage `score`.
    """
    return bits_per_byte(runner, texts, batch_size=batch_size, on_progress=on_progress) / before - 1
