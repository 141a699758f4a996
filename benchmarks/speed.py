"""What each mode costs: seconds to translate, tokens a second while scoring and writing, memory.

    python -m benchmarks.speed --source pocket:llama --target pocket:mistral --adapter pocket:llama/mood

Prints a table and keeps the figures, with the machine's processor, in `benchmarks/results/speed/`. Every
figure is the median of several repeats after a warm-up; compare figures of one machine only.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from cast import adapters, comparison, corpus, models, pipeline
from cast.results import library_versions
from cast.runners import PlainRunner, Runner

RESULTS = Path(__file__).resolve().parent / "results" / "speed"
_BATCH = 16
_WRITTEN = 40


@dataclass(frozen=True)
class Cost:
    """One way to run the target."""

    method: str
    translate_seconds: float
    """Heads not counted; site maps counted where they were not cached."""
    scored_tokens_a_second: float
    """Teacher-forced, 16 texts at once, logits at every position."""
    first_token_seconds: float
    """From the prompt to the first new token."""
    written_tokens_a_second: float
    """Greedy, one text."""


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time of an action after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def cost(method: str, runner: Runner, texts: list[str], translate_seconds: float, repeats: int) -> Cost:
    """Time a runner on these texts."""
    batch = runner.lm.encode(texts[:_BATCH])
    tokens = int(batch.attention_mask.sum())
    prompt = runner.lm.encode(texts[:1]).input_ids[0].tolist()
    first = median_seconds(lambda: write(runner, prompt, 1), repeats)
    whole = median_seconds(lambda: write(runner, prompt, 1 + _WRITTEN), repeats)
    return Cost(
        method=method,
        translate_seconds=round(translate_seconds, 2),
        scored_tokens_a_second=round(tokens / median_seconds(lambda: runner.logits(batch), repeats), 1),
        first_token_seconds=round(first, 4),
        written_tokens_a_second=round(_WRITTEN / (whole - first), 1),
    )


def write(runner: Runner, prompt: list[int], count: int) -> None:
    """Write exactly `count` tokens greedily, on through any end of the text."""
    session, ids = runner.session(), list(prompt)
    for _ in range(count):
        ids.append(int(session.next_logits(ids).argmax()))


def measure(arguments: argparse.Namespace) -> list[Cost]:
    """The costs of the base, of the source, and of every method."""
    source, target = models.load(arguments.source), models.load(arguments.target)
    lora = adapters.read(arguments.adapter, source)
    found = pipeline.heads_for(source, target, text=arguments.corpus)
    text = arguments.corpus or pipeline.default_corpus(source, target)
    texts = list(islice(corpus.general_text(text, seed=0, held_out=True), _BATCH))
    costs = [
        cost("target base", PlainRunner(target), texts, 0.0, arguments.repeats),
        cost("source + adapter", PlainRunner(source, lora), texts, 0.0, arguments.repeats),
    ]
    for method in comparison.methods_named(arguments.methods.split(","), steps=arguments.steps):
        runner, facts = comparison.made_by(method, source, target, lora, heads=found, text=arguments.corpus)
        costs.append(cost(facts["method"], runner, texts, facts["seconds"], arguments.repeats))
    return costs


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
    parser.add_argument("--corpus", help="general text; the pair's own by default")
    parser.add_argument(
        "--methods", default="hosted,hosted-states,hosted-1,proxy-tuning,instant,kernel,compiled"
    )
    parser.add_argument("--steps", type=int, help="steps of compiled mode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    costs = measure(arguments)
    print(f"{'method':<18}{'translate s':>12}{'scored tok/s':>14}{'first token s':>15}{'written tok/s':>15}")
    for one in costs:
        print(
            f"{one.method:<18}{one.translate_seconds:>12}{one.scored_tokens_a_second:>14}"
            f"{one.first_token_seconds:>15}{one.written_tokens_a_second:>15}"
        )
    # The last part of a name: a folder's own path is of this machine only.
    names = (arguments.source, arguments.target)
    source, target = (name.replace(":", "/").rsplit("/", 1)[-1] for name in names)
    record = {
        "source": source,
        "target": target,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "peak_memory_bytes": comparison.peak_memory_bytes(),
        "versions": library_versions(),
        "costs": [asdict(one) for one in costs],
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{source}-to-{target}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
