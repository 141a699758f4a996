"""Record the example that stands on the page before anything is loaded: `python -m app.record`.

Everything in the recording comes from the engine that serves the page, on shipped models, adapters and heads.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app import theme
from app.engine import Engine, GenerateRequest
from app.facts import MapRequest, SamplingChoice
from app.jobs import Jobs
from app.library import CastBackend
from app.showcase import Showcase, SkillScore
from app.workspace import Beside, Pair, Selection
from cast import adapters, models
from cast.comparison import retrained_reference
from cast.errors import RequestError
from cast.evaluate import evaluate, read_task
from cast.pocket import registry
from cast.runners import PlainRunner
from cast.wording import WordedRunner

_SAMPLING = SamplingChoice(max_tokens=48, temperature=0.0, seed=0)
_MAP_POINTS = 300
_SCORED = 50


def record(selection: Selection, prompt: str | None, depth: int | None) -> Showcase:
    """Run one selection and keep what the page shows of it.

    Args:
        selection: shipped models and adapter, in a mode that needs no waiting.
        prompt: what to continue; the first test prompt of the adapter's task by default.
        depth: target depth of the map; the middle by default.

    Raises:
        CastError: something of the selection is not shipped, or a pane could not be written.
    """
    engine = Engine(CastBackend(), Jobs(), Path(tempfile.gettempdir()), None)
    prompt = prompt or engine.prompts(selection.adapter)[0]
    own = engine.retrained(selection)
    request = GenerateRequest(selection, 1.0, prompt, _SAMPLING, beside=Beside(retrained=own))
    *_, shown = engine.generate(request)
    if silent := [pane for pane in shown if pane.state != "done"]:
        raise RequestError(silent[0].text)
    facts = engine.facts(selection)
    if facts.adapter is None:
        raise RequestError("A recording needs an adapter.")
    depth = facts.target.depth // 2 if depth is None else depth
    skills = tuple(scores(selection.pair, _SCORED))
    *_, (drawn,) = engine.maps.drawn(MapRequest(selection, depth, points=_MAP_POINTS))
    return Showcase(
        selection=selection,
        strength=1.0,
        prompt=prompt,
        answers={pane.key: pane.text for pane in shown},
        source=facts.source,
        target=facts.target,
        adapter=facts.adapter,
        heads=engine.heads_facts(selection.pair),
        joint_map=drawn,
        made=(
            f"Recorded with python -m app.record: mode {selection.mode}, strength 1, the likeliest token "
            "at each step. Generate runs it again."
        ),
        skills=skills,
        scored=_SCORED,
        layers=engine.maps.compared(selection.pair),
        retrained=own,
    )


def scores(pair: Pair, examples: int) -> Iterator[SkillScore]:
    """Score every skill that is shipped for both models, hosted by words, on its first test prompts."""
    source, target = models.load(pair.source), models.load(pair.target)
    for shipped in registry.adapters(pair.source.removeprefix(registry.PREFIX)):
        own = retrained_reference(target, f"{registry.PREFIX}{shipped.task}")
        if own is None:
            continue
        task = read_task(f"{registry.PREFIX}{shipped.task}", limit=examples)
        runners = (
            PlainRunner(target),
            WordedRunner(source, adapters.read(shipped.name, source), target),
            PlainRunner(target, own),
        )
        written = task.metric != "choice"
        yield SkillScore(shipped.task, *(evaluate(runner, task, greedy=written).score for runner in runners))


def main() -> None:
    """Record and write `assets/showcase.json`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--source", default="pocket:llama")
    parser.add_argument("--target", default="pocket:qwen")
    parser.add_argument("--adapter", default="pocket:llama/pirate")
    parser.add_argument("--prompt")
    parser.add_argument("--depth", type=int)
    asked = parser.parse_args()
    selection = Selection(asked.source, asked.target, asked.adapter)
    record(selection, asked.prompt, asked.depth).save(theme.assets_folder() / "showcase.json")


if __name__ == "__main__":
    main()
