"""Recovered lift in the pocket zoo: every method on a grid of pairs, tasks and seeds.

    python -m benchmarks.fidelity --slice small     three ordered pairs, every task, every mode, one seed
    python -m benchmarks.fidelity --methods theseus,hosted-2 --pairs llama:mistral     whatever else is named
    python -m benchmarks.fidelity --slice full      every ordered pair, three seeds of the whole fit
    python -m benchmarks.fidelity --table           docs/fidelity.md anew, from the kept results alone
    python -m benchmarks.fidelity_fill              what older results lack and no compiled fit is needed for

One run writes one JSON file under `benchmarks/results/fidelity/`; runs whose file is there are left out, so
the command can be stopped and started again. Cheap methods run first.
"""

import argparse
import itertools
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.fidelity_table import write_table
from benchmarks.speed_record import RESULTS as SPEEDS
from cast import adapters, comparison, evaluate, models, pipeline
from cast.baselines import BASELINES
from cast.comparison import Comparison
from cast.errors import CastError
from cast.evaluate import EvalReport
from cast.fitting import FitConfig
from cast.models import LanguageModel
from cast.pipeline import FoundHeads
from cast.pocket import registry
from cast.pocket.tasks import TASKS, Task
from cast.recipes import TranslationConfig
from cast.results import file_name
from cast.runners import PlainRunner
from cast.scoring import bits_per_byte
from cast.storage import cache_folder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "fidelity"
_PROMPTED, _PROMPTS = "-prompts", 5
# By cost: a run that is stopped early has the whole breadth of the cheap ones.
METHODS = (
    "hosted", "hosted-states", "hosted-1", "instant", "kernel", "compiled-prompts", "compiled",
    "compiled-general",
)  # fmt: skip
SMALL_PAIRS = (("llama", "mistral"), ("qwen", "neox"), ("mistral", "llama"))


@dataclass(frozen=True)
class Run:
    """One cell of the grid, by the zoo's short names."""

    source: str
    target: str
    task: str
    method: str
    seed: int
    limit: int
    steps: int | None
    results: Path

    @property
    def path(self) -> Path:
        """Where its result is kept."""
        names = (f"{registry.PREFIX}{name}" for name in (self.source, self.target, self.task))
        (config,) = comparison.methods_named([self.method.removesuffix(_PROMPTED)])
        kind: str = "prompts" if self.prompts else "general"
        if isinstance(config, TranslationConfig):
            kind = config.text_kind(self.prompts)
        return self.results / file_name(self.method, *names, self.seed, text=kind)

    @property
    def prompts(self) -> list[str]:
        """Example prompts of the task, where the method takes some."""
        own = self.method in BASELINES and BASELINES[self.method].needs_prompts
        return example_prompts(TASKS[self.task]) if own or self.method.endswith(_PROMPTED) else []


def grid(arguments: argparse.Namespace) -> Iterator[Run]:
    """The runs that were asked for, in the order in which they are worth most."""
    for method, seed in itertools.product(arguments.methods, range(arguments.seeds)):
        for (source, target), task in itertools.product(arguments.pairs, arguments.tasks):
            cell = (source, target, task, method, seed)
            yield Run(*cell, arguments.limit, arguments.steps, arguments.results)


@cache
def loaded(model: str) -> LanguageModel:
    """A pocket model, kept for the life of this worker."""
    return models.load(f"{registry.PREFIX}{model}")


@cache
def scored(model: str, task: str, adapted: bool, limit: int) -> EvalReport:
    """One end of the scale: a model, bare or with its own adapter. Many pairs share it."""
    lm = loaded(model)
    lora = adapters.read(f"{registry.PREFIX}{model}/{task}", lm) if adapted else None
    return evaluate.evaluate(PlainRunner(lm, lora), evaluate.read_task(registry.PREFIX + task, limit=limit))


@cache
def own_cost(model: str, task: str) -> float:
    """What a model's own adapter costs it on held-out general text, as a share of its bits per byte."""
    lm = loaded(model)
    held_out = comparison.held_out_texts(pipeline.POCKET_CORPUS)
    return comparison.own_off_task(lm, adapters.read(f"{registry.PREFIX}{model}/{task}", lm), held_out)


@cache
def general_bits(model: str) -> float:
    """Bits per byte of held-out general text that a model needs without any adapter."""
    return bits_per_byte(PlainRunner(loaded(model)), comparison.held_out_texts(pipeline.POCKET_CORPUS))


@cache
def heads_of(source: str, target: str, seed: int) -> FoundHeads:
    """Seed 0 takes the shipped heads; another seed fits heads of its own, once."""
    if seed == 0:
        return pipeline.heads_for(loaded(source), loaded(target))
    place = cache_folder() / "heads-by-seed" / f"{source}-to-{target}-{seed}"
    if place.is_dir() and (found := pipeline.find_heads(loaded(source), loaded(target), place)):
        return found
    heads = pipeline.fit(loaded(source), loaded(target), place, config=FitConfig(seed=seed), resume=True)
    return FoundHeads(heads, place)


def example_prompts(task: Task) -> list[str]:
    """Of the stream that adapters are trained on, so none is a test prompt; the answers stay unread."""
    return [example.prompt for example in task.train(_PROMPTS)]


def carry_out(run: Run, revision: str) -> str:
    """Do one run, keep its result, and say in a line how it went."""
    torch.set_num_threads(1)
    source, target = loaded(run.source), loaded(run.target)
    ends = Comparison(
        task=evaluate.read_task(registry.PREFIX + run.task, limit=run.limit),
        base=scored(run.target, run.task, False, run.limit),
        retrained=scored(run.target, run.task, True, run.limit),
        source_base=scored(run.source, run.task, False, run.limit),
        source_adapted=scored(run.source, run.task, True, run.limit),
        source_off_task=own_cost(run.source, run.task),
        retrained_off_task=own_cost(run.target, run.task),
    )
    lora = adapters.read(f"{registry.PREFIX}{run.source}/{run.task}", source)
    method = run.method.removesuffix(_PROMPTED)
    configs = comparison.methods_named([method], seed=run.seed, steps=run.steps)
    heads = heads_of(run.source, run.target, run.seed)
    (result,) = comparison.compare(
        source, target, lora, ends, configs, heads=heads, prompts=run.prompts, revision=revision
    )
    replace(result, examples=run.limit).write_result(run.results)
    lift = "left out" if result.lift is None else f"{result.lift:.2f}"
    return f"{result.base:.3f} → {result.translated:.3f} of {result.retrained:.3f}, lift {lift}"


def work_off(runs: Sequence[Run], workers: int) -> int:
    """Do the runs, each task always in the same process, which then scores each end of the scale once.

    Returns:
        How many failed.
    """
    revision = code_revision()
    # Workers are single-threaded: the models are too small to share a product among threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = sorted({run.task for run in runs})
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(workers)]
    futures: dict[Future[str], Run] = {
        pools[tasks.index(run.task) % workers].submit(carry_out, run, revision): run for run in runs
    }
    failed = 0
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            run = futures[future]
            head = (
                f"[{done}/{len(runs)}] {run.source} → {run.target} {run.task} {run.method} seed {run.seed}: "
            )
            try:
                print(head + future.result(), flush=True)
            except CastError as error:
                failed += 1
                print(head + str(error), file=sys.stderr, flush=True)
            except Exception:
                failed += 1
                print(head, file=sys.stderr)
                traceback.print_exc()
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def code_revision() -> str:
    """The commit that is checked out, with a mark where the code differs from it; empty outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def pairs_named(text: str) -> list[tuple[str, str]]:
    """Pairs of pocket models from a list such as `llama:mistral,qwen:neox`."""
    pairs = [tuple(pair.split(":")) for pair in text.split(",")]
    if not all(len(pair) == 2 and set(pair) <= set(registry.MODEL_NAMES) for pair in pairs):
        raise argparse.ArgumentTypeError("give pairs of pocket models such as llama:mistral,qwen:neox")
    return [(source, target) for source, target in pairs]


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return names

    return split


def main() -> int:
    """Parse, run what is missing, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slice", choices=("small", "full"), default="small")
    parser.add_argument("--pairs", type=pairs_named, help="instead of the slice's: llama:mistral,qwen:neox")
    parser.add_argument("--tasks", type=_names(TASKS), default=list(TASKS))
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--seeds", type=int, help="seeds of the whole fit, instead of the slice's")
    parser.add_argument("--limit", type=int, default=100, help="test examples (default 100)")
    parser.add_argument("--steps", type=int, help="steps of a round of compiled mode, instead of its default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs")
    parser.add_argument("--speeds", type=Path, default=SPEEDS, help="what benchmarks.speed kept")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "fidelity.md", help="page to write")
    parser.add_argument("--table", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    every = list(itertools.permutations(registry.MODEL_NAMES, 2))
    arguments.pairs = arguments.pairs or (every if arguments.slice == "full" else list(SMALL_PAIRS))
    arguments.seeds = arguments.seeds or (3 if arguments.slice == "full" else 1)
    failed = 0
    if not arguments.table:
        runs = [run for run in grid(arguments) if not run.path.is_file()]
        print(f"{len(runs)} runs to do", flush=True)
        failed = work_off(runs, arguments.workers)
    write_table(arguments.results, arguments.speeds, arguments.page)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
