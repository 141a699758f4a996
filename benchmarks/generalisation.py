"""Several adapters at once, there and back again, and models and tasks that nothing was tuned on.

    python -m benchmarks.generalisation            what is missing, then docs/generalisation.md
    python -m benchmarks.generalisation --table    the page anew, from the kept results alone

One case writes one JSON file under `benchmarks/results/generalisation/`; cases whose file is there are left
out. Fitted LoRAs are kept in the cache, since several cases run the same one.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks import newcomers
from benchmarks.fidelity import ROOT, code_revision, example_prompts, loaded
from benchmarks.fidelity import scored as end_of_scale
from benchmarks.fidelity_table import Cell, provenance
from benchmarks.markdown import arrow, header, percent, row
from benchmarks.newcomers import NewCase
from cast import adapters, comparison, evaluate, pipeline
from cast.adapter_files import TOGETHER
from cast.adapters import Lora
from cast.comparison import Comparison
from cast.pocket import registry
from cast.pocket import tasks as pocket
from cast.progress import Progress
from cast.recipes import TextKind, TranslationConfig
from cast.results import Result, file_name, read_results
from cast.runners import PlainRunner, Runner
from cast.storage import cache_folder

RESULTS = ROOT / "benchmarks" / "results" / "generalisation"
PAGE = ROOT / "docs" / "generalisation.md"
SOURCE, TARGET = "llama", "mistral"
TASKS = ("mood", "what", "json")
SETS = (("mood", "json"), ("mood", "what"), ("mood", "what", "json"))
WAYS = {
    "source": f"{SOURCE} with its own",
    "retrained": f"{TARGET} with its own",
    "hosted": "hosted",
    "compiled": "compiled one by one, summed on the target",
    "compiled-sum": "the sum compiled at once",
}
BACK = {"hosted": "back by hosted", "compiled": "back by compiled"}

HEAD = """# Generalisation

Scores are percent on the task's test stream, with the recovered lift and its 95 % interval as in
[fidelity.md](fidelity.md). In the first two tables `compiled` reads five example prompts, without answers, of
each task that is carried. All is of hosting that forbade more words than the adapter does
(docs/experiments.md).

Made by `python -m benchmarks.generalisation` from `benchmarks/results/generalisation/`, one file a case.
"""
TOGETHER_HEAD = f"""## Several adapters at once, {SOURCE} → {TARGET}

`X{TOGETHER}Y` wherever an adapter is named is the one LoRA whose change at each site is the sum of theirs.
Lift is counted from the model's own base to that model with its own adapter of the task *alone*, so what the
adapters of one model do to each other shows in the first rows.
"""
BACK_HEAD = f"""## There and back, {SOURCE} → {TARGET} → {SOURCE}

The adapter of {SOURCE} is compiled for {TARGET}; what came out, a plain LoRA of {TARGET}, is carried back as
if it had been trained there. Lift back at {SOURCE} is counted up to {SOURCE}'s own adapter.
"""


@dataclass(frozen=True)
class Case:
    """One way to carry some adapters, scored on one task."""

    way: str
    """One of `WAYS`; or one of `BACK`, where the adapters come back to their own model."""
    carried: tuple[str, ...]
    task: str
    returns: bool = False

    @property
    def models(self) -> tuple[str, str]:
        """Short names of the model that an adapter leaves last, and of the one that is scored."""
        if self.returns:
            return TARGET, SOURCE
        return SOURCE, SOURCE if self.way == "source" else TARGET

    @property
    def method(self) -> str:
        """The name in its result."""
        return "-".join([*(["back"] if self.returns else []), self.way, *self.carried])

    @property
    def text(self) -> TextKind:
        """What was read for a fit, on either way."""
        return "prompts" if self.returns or self.way.startswith("compiled") else "general"

    @property
    def file_name(self) -> str:
        """Of its result."""
        names = (f"{registry.PREFIX}{name}" for name in (*self.models, self.task))
        return file_name(self.method, *names, 0, text=self.text)


def cases() -> Iterator[Case]:
    """Every case, those that need no fit first."""
    for way in WAYS:
        alone = [] if way == "compiled-sum" else [(task,) for task in TASKS]
        # A sum of three is a fit of its own; one of two shows what there is to see.
        sets = SETS[:1] if way == "compiled-sum" else SETS
        for carried in (*alone, *sets):
            for task in carried:
                yield Case(way, carried, task)
    for way in BACK:
        for task in TASKS:
            yield Case(way, (task,), task, returns=True)


def own(model: str, tasks: Sequence[str]) -> Lora:
    """The adapters that ship with a model, as one."""
    return adapters.read(TOGETHER.join(f"{registry.PREFIX}{model}/{task}" for task in tasks), loaded(model))


@cache
def compiled(tasks: tuple[str, ...], back: bool = False) -> Lora:
    """The source's adapters compiled for the target; or, `back`, what that gave, compiled for the source."""
    source, target = (TARGET, SOURCE) if back else (SOURCE, TARGET)
    name = f"{'-'.join(tasks)}-{source}-to-{target}{'-again' if back else ''}"
    folder = cache_folder() / "generalisation" / name
    if not folder.is_dir():
        prompts = [prompt for task in tasks for prompt in example_prompts(pocket.TASKS[task])]
        lora = compiled(tasks) if back else own(source, tasks)
        made = pipeline.translate_adapter(loaded(source), loaded(target), lora, prompts=prompts)
        made.save(folder, loaded(target))
    return adapters.read(folder, loaded(target))


def runner(case: Case) -> Runner:
    """The model that is scored, with what acts on it."""
    source, target = (loaded(name) for name in case.models)
    if case.way in ("source", "retrained"):
        return PlainRunner(target, own(case.models[1], case.carried))
    if case.way == "hosted":
        lora = compiled(case.carried) if case.returns else own(SOURCE, case.carried)
        made = pipeline.translate_adapter(source, target, lora, TranslationConfig("hosted"))
        return made.runner(source, target)
    if case.way == "compiled-sum" or case.returns:
        return PlainRunner(target, compiled(case.carried, case.returns))
    return PlainRunner(target, adapters.summed(target, [compiled((task,)) for task in case.carried]))


def carry_out(case: Case, limit: int, revision: str) -> Result:
    """Do one case."""
    source, target = case.models
    ends = Comparison(
        task=evaluate.read_task(registry.PREFIX + case.task, limit=limit),
        base=end_of_scale(target, case.task, False, limit),
        retrained=end_of_scale(target, case.task, True, limit),
        source_base=end_of_scale(source, case.task, False, limit),
        source_adapted=end_of_scale(source, case.task, True, limit),
    )
    started = time.monotonic()
    acting = runner(case)
    return Result(
        method=case.method,
        source=f"{registry.PREFIX}{source}",
        target=f"{registry.PREFIX}{target}",
        task=ends.task.name,
        seed=0,
        text=case.text,
        seconds=round(time.monotonic() - started, 2),
        off_task=None,
        revision=revision,
        **comparison.scored(acting, ends),
    )


def render(results: Sequence[Result]) -> str:
    """The page for these results."""
    found = {result.file_name: result for result in results}
    sections = (
        _together(found),
        _there_and_back(found),
        newcomers.section(found),
        newcomers.sizes_section(found),
    )
    return "\n".join([HEAD, *(line for part in sections for line in (*part, "")), provenance(results)])


def _together(found: dict[str, Result]) -> list[str]:
    lines = [TOGETHER_HEAD, *header(["way", "task", "base", "alone", *map(TOGETHER.join, SETS)])]
    for way, title in WAYS.items():
        for task in TASKS:
            sets = [(task,), *SETS]
            row_cases = [Case(way, carried, task) for carried in sets]
            cells = [_cell(found, case) for case in row_cases]
            if any(cell != "–" for cell in cells):
                lines.append(row([title, task, _base(found, row_cases), *cells]))
    return lines


def _there_and_back(found: dict[str, Result]) -> list[str]:
    lines = [BACK_HEAD, *header(["task", f"base of {SOURCE}", f"at {TARGET}", *BACK.values()])]
    for task in TASKS:
        back = [Case(way, (task,), task, returns=True) for way in BACK]
        cells = [_cell(found, case) for case in (Case("compiled", (task,), task), *back)]
        lines.append(row([task, _base(found, back), *cells]))
    return lines


def _cell(found: dict[str, Result], case: Case) -> str:
    result = found.get(case.file_name)
    return str(Cell((result,))) if result else "–"


def _base(found: dict[str, Result], row_cases: Sequence[Case]) -> str:
    bases = [found[case.file_name].base for case in row_cases if case.file_name in found]
    return percent(bases[0] if bases else None)


_AnyCase = TypeVar("_AnyCase", Case, NewCase)


def _missing(every: Iterator[_AnyCase], results: Path) -> list[_AnyCase]:
    return [case for case in every if not (results / case.file_name).is_file()]


def _keep(result: Result, results: Path) -> None:
    result.write_result(results)
    pair = arrow((result.source, result.target))
    print(f"{pair}, {result.method} on {result.task}: {Cell((result,))}", flush=True)


def _report(progress: Progress) -> None:
    """A line for about every twentieth of a stage, or every tenth step where nobody knows the end."""
    if progress.done % max(1, progress.total // 20 or 10) == 0:
        print(f"{progress.stage} {progress.done}/{progress.total or '?'}", file=sys.stderr)


def main() -> int:
    """Parse, do what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=100, help="test examples (default 100)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--table", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    revision = code_revision()
    if not arguments.table:
        for case in _missing(cases(), arguments.results):
            _keep(carry_out(case, arguments.limit, revision), arguments.results)
        for new in _missing(newcomers.new_cases(), arguments.results):
            _keep(newcomers.carry_out(new, arguments.limit, revision, _report), arguments.results)
    arguments.page.write_text(render(read_results(arguments.results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
