"""What each way costs: seconds to translate, a token while scoring and a token while writing, memory.

    python -m benchmarks.speed --source pocket:llama --target pocket:mistral --adapter pocket:llama/mood

Prints a table and keeps the figures, with the machine's processor, in `benchmarks/results/speed/`, of which
`python -m benchmarks.fidelity --table` renders what segments cost. All ways are timed in turn, round by
round, and each figure is the median of the rounds; compare figures of one run only.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.speed_record import RESULTS, Cost, SpeedRun
from cast import adapters, comparison, corpus, models, pipeline
from cast.hosting import HostedRunner
from cast.models import LanguageModel
from cast.results import library_versions
from cast.runners import PlainRunner, Runner
from cast.wording import WordedRunner

# Without the fits of minutes: what comes out of them runs as `instant` does, and their seconds stand in the
# results of `benchmarks.fidelity`.
METHODS = "hosted,hosted-states,hosted-3,hosted-2,hosted-1,proxy-tuning,instant,kernel"
_TEXTS = 16
_WRITTEN = 40
# What hosting may cost above both models' own work.
_ALLOWED = 0.15
_Clock = Callable[[], float]


@dataclass(frozen=True)
class Way:
    """A runner under its name, and the seconds that it took to make."""

    method: str
    runner: Runner
    translate_seconds: float = 0.0


class _Taken(NamedTuple):
    """Seconds of one round, a token but for the first, which is a whole prompt's."""

    scored: float
    first: float
    written: float


def costs(ways: Sequence[Way], texts: Sequence[str], repeats: int, clock: _Clock) -> list[Cost]:
    """Time all ways in turn, so that what slows the machine slows all of them; one round warms up.

    The first way is the target alone.
    """
    taken: list[list[_Taken]] = [[] for _ in ways]
    blocks: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + repeats):
        for way, times, alone in zip(ways, taken, blocks, strict=True):
            times.append(_timed(way.runner, texts, clock))
            if isinstance(way.runner, HostedRunner | WordedRunner):
                alone.append(blocks_seconds(way.runner.source, hosted_blocks(way.runner), texts[0], clock))
    medians = [_Taken(*map(statistics.median, zip(*times[1:], strict=True))) for times in taken]
    own = medians[0].written
    return [
        Cost(
            method=way.method,
            translate_seconds=round(way.translate_seconds, 2),
            scored_seconds=median.scored,
            first_seconds=median.first,
            written_seconds=median.written,
            limit_seconds=(1 + _ALLOWED) * (own + 2 * statistics.median(alone[1:])) if alone else None,
        )
        for way, median, alone in zip(ways, medians, blocks, strict=True)
    ]


def _timed(runner: Runner, texts: Sequence[str], clock: _Clock) -> _Taken:
    batch = runner.lm.encode(texts)
    started = clock()
    runner.logits(batch)
    scored = (clock() - started) / int(batch.attention_mask.sum())
    times = written(runner, texts[0], clock)
    return _Taken(scored, times[0], statistics.fmean(times[1:]))


def written(runner: Runner, prompt: str, clock: _Clock) -> list[float]:
    """Seconds of each of a few dozen tokens that are written greedily, on through any end of the text."""
    session, ids, times = runner.session(), runner.lm.encode([prompt]).input_ids[0].tolist(), []
    for _ in range(1 + _WRITTEN):
        started = clock()
        ids.append(int(session.next_logits(ids).argmax()))
        times.append(clock() - started)
    return times


def hosted_blocks(runner: HostedRunner | WordedRunner) -> set[int]:
    """The source blocks that run beside the target, counted from 1."""
    if isinstance(runner, WordedRunner) or runner.segments is None:
        return set(range(1, runner.source.depth + 1))
    return {block for segment in runner.segments for block in segment.blocks}


def blocks_seconds(lm: LanguageModel, blocks: set[int], prompt: str, clock: _Clock) -> float:
    """Seconds a new token that some of a model's blocks take, bare, while it writes by itself."""
    spent, started = [0.0], [0.0]

    def start(*_: object) -> None:
        started[0] = clock()

    def stop(*_: object) -> None:
        spent[0] += clock() - started[0]

    hooks = []
    for number in blocks:
        block = lm.architecture.blocks[number - 1]
        hooks += [block.register_forward_pre_hook(start), block.register_forward_hook(stop)]
    session, ids = PlainRunner(lm).session(), lm.encode([prompt]).input_ids[0].tolist()
    try:
        for turn in range(1 + _WRITTEN):
            if turn == 1:
                spent[0] = 0.0
            ids.append(int(session.next_logits(ids).argmax()))
    finally:
        for hook in hooks:
            hook.remove()
    return spent[0] / _WRITTEN


def measure(arguments: argparse.Namespace, clock: _Clock) -> list[Cost]:
    """The costs of the target, of the source, and of every method."""
    source, target = models.load(arguments.source), models.load(arguments.target)
    lora = adapters.read(arguments.adapter, source)
    methods = comparison.methods_named(arguments.methods.split(","), steps=arguments.steps)
    # A fit of heads takes minutes on real models; the ways that need none are timed without.
    needed = any(method.needs_heads for method in methods)
    found = pipeline.heads_for(source, target, text=arguments.corpus) if needed else None
    text = arguments.corpus or pipeline.default_corpus(source, target)
    texts = list(islice(corpus.general_text(text, seed=0, held_out=True), arguments.texts))
    ways = [
        Way("target", PlainRunner(target)),
        Way("source", PlainRunner(source)),
        Way("source + adapter", PlainRunner(source, lora)),
    ]
    for method in methods:
        runner, facts = comparison.made_by(method, source, target, lora, heads=found, text=arguments.corpus)
        ways.append(Way(facts["method"], runner, facts["seconds"]))
    return costs(ways, texts, arguments.repeats, clock)


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="pocket:llama")
    parser.add_argument("--target", default="pocket:mistral")
    parser.add_argument("--adapter", default="pocket:llama/mood")
    parser.add_argument("--named", help="how the adapter is called in the record; its own last name if not")
    parser.add_argument("--corpus", help="general text; the pair's own by default")
    parser.add_argument(
        "--texts", type=int, default=_TEXTS, help="scored at once; a large vocabulary wants few"
    )
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--steps", type=int, help="steps of a round of compiled mode")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Processor seconds leave out what else the machine does, but add up over threads and miss a GPU.
    by_processor = arguments.threads == 1 and not torch.cuda.is_available()
    made = measure(arguments, time.process_time if by_processor else time.perf_counter)
    # The last part of a name: a folder's own path is of this machine only.
    source, target, adapter = (
        name.replace(":", "/").rsplit("/", 1)[-1].removesuffix(".gguf")
        for name in (arguments.source, arguments.target, arguments.named or arguments.adapter)
    )
    run = SpeedRun(
        source=source,
        target=target,
        adapter=adapter,
        processor=processor(),
        cores=os.cpu_count() or 1,
        threads=arguments.threads,
        clock="processor" if by_processor else "wall",
        repeats=arguments.repeats,
        peak_memory_bytes=comparison.peak_memory_bytes(),
        versions=library_versions(),
        costs=tuple(made),
    )
    print(run.table())
    run.write(arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
