"""What `cast compare` does, for a visitor: one method at a time. Imports torch, so it is imported late."""

from collections.abc import Iterator

from app.runs import Ends, EvaluateRequest, Missed, Told
from cast import comparison, pipeline
from cast.adapters import read
from cast.evaluate import read_task
from cast.models import load
from cast.pipeline import FoundHeads
from cast.progress import OnProgress


def measured(request: EvaluateRequest, heads: FoundHeads | None, on_progress: OnProgress) -> Iterator[Told]:
    """Measure methods on models of its own: first the ends of the scale, then each method as it ends."""
    chosen = request.selection
    methods = comparison.methods_named(request.methods, steps=request.steps)
    task = read_task(request.task, limit=request.limit)
    source, target = (load(name, on_progress=on_progress) for name in (chosen.source, chosen.target))
    lora = read(chosen.adapter, source)
    found = heads or pipeline.find_heads(source, target)
    text = request.corpus or (found.heads.recipe.corpus if found else pipeline.default_corpus(source, target))
    # What cannot be had is said before anything is scored.
    comparison.held_out_texts(text)
    reference = comparison.reference(
        target, request.task, retrained=request.retrained or None, train=request.train or None,
        on_progress=on_progress,
    )  # fmt: skip
    ends = comparison.ends_of_the_scale(
        source, target, lora, task, retrained=reference, text=text, on_progress=on_progress
    )
    yield Ends(
        metric=task.metric,
        examples=len(task.examples),
        base=ends.base.score,
        retrained=ends.retrained.score if ends.retrained else None,
        source_base=ends.source_base.score,
        source_adapted=ends.source_adapted.score,
    )
    for outcome in comparison.compared(
        source, target, lora, ends, methods,
        heads=found, text=text, prompts=request.prompts, on_progress=on_progress,
    ):  # fmt: skip
        if isinstance(outcome, comparison.Failure):
            yield Missed(outcome.method, str(outcome.error))
        else:
            yield outcome
