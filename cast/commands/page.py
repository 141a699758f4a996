"""`cast manifold`, `layers` and `app`: what reaches for the page, when it runs."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from cast import adapters, pipeline
from cast.commands.given import Answer, Say, load_pair, named_folder
from cast.errors import OutputError, RequestError
from cast.inspection import as_json
from cast.models import LanguageModel
from cast.progress import OnProgress
from cast.runners import Runner
from cast.storage import readable_write_errors


def manifold(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast manifold`."""
    from app import mapping, plots_map, views_map
    from app.backend import MapRequest
    from app.workspace import Selection

    out = _new_file(args.out)
    if args.layer is None and args.view != "along":
        raise RequestError("Name a target depth with --layer, or show all of them with --view along.")
    source, target = load_pair(args, args.target, on_progress)
    found = pipeline.find_heads(source, target, named_folder(args.heads))
    lora = adapters.read(args.adapter, source) if args.adapter else None
    moved = _moved_states(args.translated, source, target, on_progress) if args.translated else None
    request = MapRequest(
        Selection(args.source, args.target, args.adapter or ""), args.layer or 0, args.source_layer,
        args.points, args.view, args.dimensions, args.method,
    )  # fmt: skip
    *_, drawn = mapping.drawn_maps(
        source, target, found.heads if found else None, lora, moved, request, on_progress=on_progress,
        text=args.corpus, seed=args.seed,
    )  # fmt: skip
    with _written(out):
        plots_map.write(drawn, args.colour, out)
    say(f"{len(drawn[0].points)} tokens of {source.name} and {target.name}: {out}")
    for one in drawn:
        say(f"  target depth {one.depth}, source depth {one.source_depth}")
        for measure in one.measures:
            say(f"    {measure.name:<24} {measure.value:.3f}   shuffled {measure.control:.3f}")
    say(f"  {views_map.belief(drawn)}")
    return {
        "file": str(out),
        "maps": [
            {
                "source_depth": one.source_depth,
                "depth": one.depth,
                "measures": {m.name: {"value": m.value, "control": m.control} for m in one.measures},
                "trustworthiness": one.trustworthiness,
            }
            for one in drawn
        ],
    }


def layers(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast layers`."""
    from app import mapping, plots_map

    out = _new_file(args.out) if args.out else None
    source, target = load_pair(args, args.target, on_progress)
    found = pipeline.find_heads(source, target)
    facts = mapping.measured_layers(
        source,
        target,
        found.heads if found else None,
        on_progress=on_progress,
        text=args.corpus,
        points=args.points,
        seed=args.seed,
    )
    if out:
        with _written(out):
            plots_map.layer_grid(facts, args.measure).write_html(out, include_plotlyjs=True)
    for grid in facts.grids:
        chance = max(map(max, grid.controls))
        say(f"{grid.name}: source depths down, target depths across (shuffled: at most {chance:.2f})")
        for depth, row in enumerate(grid.values):
            say(f"  {depth:>3}  " + " ".join(f"{value:6.2f}" for value in row))
    return {"file": str(out) if out else None, **as_json(asdict(facts))}


def app(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast app`."""
    if args.port is not None:
        os.environ["GRADIO_SERVER_PORT"] = str(args.port)
    if args.host is not None:
        os.environ["GRADIO_SERVER_NAME"] = args.host
    from app.serve import main

    main()
    return {}


def _new_file(name: str) -> Path:
    out = Path(name)
    if out.exists():
        raise OutputError(f"{out} is there already; name another file.")
    return out


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """Make the folder of a file, and put into a sentence what keeps the block from writing it."""
    with readable_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        yield


def _moved_states(name: str, source: LanguageModel, target: LanguageModel, on_progress: OnProgress) -> Runner:
    """The target with a translated folder that changes its states."""
    made = pipeline.reopened(Path(name), source, target, on_progress=on_progress)
    if made.lora is None and made.heads is None and made.maps is None:
        raise RequestError(
            f"{name} is hosted by words: it moves the target's words and none of its states, so there is "
            "nothing to draw; leave --translated out."
        )
    return made.runner(source, target)
