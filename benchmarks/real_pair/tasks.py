"""The four tasks on real data: where their examples come from, and how much teaches one to a LoRA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from benchmarks.real_pair import data, wordnet
from benchmarks.real_pair.data import Split
from benchmarks.real_pair.record import Task
from cast.training import LoraTrainingConfig


@dataclass(frozen=True)
class RealTask:
    """One task: `read(train, test, seed, further)` draws its examples."""

    read: Callable[[int, int, int, int], Split]
    train: int
    """Examples that a LoRA is trained on; of some verbs WordNet has no more."""
    recipe: LoraTrainingConfig
    """Of a LoRA; long completions teach more a step and cost more, so they take fewer."""
    greedy: bool
    """Whether an answer is right or wrong as a text; a passage is scored by bits per byte alone."""


_LABELS = LoraTrainingConfig(
    rank=8,
    alpha=16,
    targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    steps=300,
    batch_size=16,
    learning_rate=1e-3,
    max_length=256,
)


def _kind(train: int, test: int, seed: int, further: int) -> Split:
    return wordnet.kind_task(wordnet.read_wordnet("noun"), train=train, test=test, seed=seed, further=further)


def _verb(train: int, test: int, seed: int, further: int) -> Split:
    return wordnet.verb_task(wordnet.read_wordnet("verb"), train=train, test=test, seed=seed, further=further)


def _entry(train: int, test: int, seed: int, further: int) -> Split:
    return wordnet.entry_task(
        wordnet.read_wordnet("noun"), train=train, test=test, seed=seed, further=further
    )


def _style(train: int, test: int, seed: int, further: int) -> Split:
    return data.style_task(data.read_verses(), train=train, test=test, seed=seed, further=further)


TASKS: Mapping[Task, RealTask] = MappingProxyType(
    {
        "kind": RealTask(_kind, 2400, _LABELS, greedy=True),
        "verb": RealTask(_verb, 1240, replace(_LABELS, steps=150), greedy=True),
        "entry": RealTask(_entry, 2400, replace(_LABELS, steps=100, batch_size=8), greedy=True),
        "style": RealTask(_style, 2400, replace(_LABELS, steps=100, batch_size=8), greedy=False),
    }
)
"""Every task by its name, in the order of the table."""
