"""Translations measured on a task, beside the ends of the scale: the bare target and a retrained LoRA."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Any

from cast import adapters, corpus, evaluate, prediction
from cast.adapters import Lora
from cast.arriving import held_out_quality
from cast.baselines import BASELINES, Baseline, Given
from cast.corpus import Passage
from cast.errors import Cancelled, CastError, RequestError
from cast.evaluate import EvalReport, TaskData
from cast.models import LanguageModel
from cast.pipeline import FoundHeads, default_corpus, fitting_text, heads_for, translate_adapter
from cast.pocket import registry
from cast.progress import OnProgress, ignore
from cast.recipes import Quality, TranslationConfig
from cast.results import Result
from cast.runners import PlainRunner, Runner
from cast.scoring import bits_per_byte
from cast.storage import cache_folder
from cast.training import LoraTrainingConfig, train_lora
from cast.translate import answered_prompts

_OFF_TASK_TEXTS = 200


@dataclass(frozen=True)
class Comparison:
    """What a method is measured against on one task: the four ends of the scale."""

    task: TaskData
    base: EvalReport
    retrained: EvalReport | None
    source_base: EvalReport
    source_adapted: EvalReport
    source_off_task: float | None = None
    """What the adapter costs its own model on held-out general text."""
    retrained_off_task: float | None = None
    """What the retrained adapter costs the target there."""


@dataclass(frozen=True)
class Failure:
    """A method that could not be measured, and why."""

    method: str
    error: CastError


def ends_of_the_scale(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    task: TaskData,
    *,
    retrained: Lora | None,
    text: str | None = None,
    on_progress: OnProgress = ignore,
) -> Comparison:
    """Score the target, the target with a retrained LoRA, the source, and the source with the adapter.

    Args:
        source: the model that the adapter was trained on.
        target: the model that shall have the skill.
        lora: the source adapter.
        task: what is scored.
        retrained: a LoRA that was trained on the target.
        text: corpus of general text, on whose held-out side the two adapters' own cost is measured; with
            None it is not.
        on_progress: gets the stages of scoring.
    """
    held_out = held_out_texts(text) if text else []

    def score(runner: Runner) -> EvalReport:
        return evaluate.evaluate(runner, task, on_progress=on_progress)

    return Comparison(
        task=task,
        base=score(PlainRunner(target)),
        retrained=score(PlainRunner(target, retrained)) if retrained else None,
        source_base=score(PlainRunner(source)),
        source_adapted=score(PlainRunner(source, lora)),
        source_off_task=own_off_task(source, lora, held_out) if held_out else None,
        retrained_off_task=own_off_task(target, retrained, held_out) if held_out and retrained else None,
    )


def own_off_task(lm: LanguageModel, lora: Lora, held_out: Sequence[str]) -> float:
    """What an adapter costs the model that it was trained on, on held-out general text."""
    return evaluate.off_task(PlainRunner(lm, lora), bits_per_byte(PlainRunner(lm), held_out), held_out)


def compare(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    ends: Comparison,
    methods: Sequence[TranslationConfig | Baseline],
    *,
    heads: FoundHeads | None = None,
    text: str | None = None,
    prompts: Sequence[str] = (),
    revision: str = "",
    on_progress: OnProgress = ignore,
) -> list[Result]:
    """Translate an adapter by each method and score it on one task.

    The arguments are those of `compared`; what stops a method is raised.
    """
    results = []
    for outcome in compared(
        source, target, lora, ends, methods,
        heads=heads, text=text, prompts=prompts, revision=revision, on_progress=on_progress,
    ):  # fmt: skip
        if isinstance(outcome, Failure):
            raise outcome.error
        results.append(outcome)
    return results


def compared(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    ends: Comparison,
    methods: Sequence[TranslationConfig | Baseline],
    *,
    heads: FoundHeads | None = None,
    text: str | None = None,
    prompts: Sequence[str] = (),
    revision: str = "",
    on_progress: OnProgress = ignore,
) -> Iterator[Result | Failure]:
    """Translate an adapter by each method and score it on one task, one after the other.

    Args:
        source: the model that the adapter was trained on.
        target: the model that shall have the skill.
        lora: the source adapter.
        ends: base, retrained and source scores, from `ends_of_the_scale`.
        methods: the modes to measure, with their settings, and baselines.
        heads: heads of this pair; else found or fitted.
        text: corpus of general text.
        prompts: unlabelled prompts to mix in.
        revision: commit of the code, for the record.
        on_progress: gets every stage.
    """
    held_out = held_out_texts(text or default_corpus(source, target))
    before = bits_per_byte(PlainRunner(target), held_out, on_progress=on_progress)
    for method in methods:
        try:
            if heads is None and method.needs_heads:
                heads = heads_for(source, target, text=text, on_progress=on_progress)
            runner, facts = made_by(
                method, source, target, lora, heads=heads, text=text, prompts=prompts, on_progress=on_progress
            )
            facts |= scored(runner, ends, on_progress)
            yield Result(
                source=source.name,
                target=target.name,
                task=ends.task.name,
                off_task=evaluate.off_task(runner, before, held_out, on_progress=on_progress),
                source_off_task=ends.source_off_task,
                retrained_off_task=ends.retrained_off_task,
                general_bits=before,
                peak_memory_bytes=peak_memory_bytes(),
                revision=revision,
                **{"seed": 0, "tokens": 0} | facts,
            )
        except Cancelled:
            raise
        except CastError as error:
            # The other methods, and what they took, must not be lost to one that does not fit this pair.
            yield Failure(_name(method, prompts), error)


def made_by(
    method: TranslationConfig | Baseline,
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    *,
    heads: FoundHeads | None = None,
    text: str | None = None,
    prompts: Sequence[str] = (),
    on_progress: OnProgress = ignore,
) -> tuple[Runner, dict[str, Any]]:
    """The target with the adapter acting by one method, and what a result tells of how it was made.

    What held-out text says of it is measured here too, where the translation has not told it already; the
    seconds do not count that. The arguments are those of `compare`.
    """
    quality = Quality()
    started = time.monotonic()
    if isinstance(method, Baseline):
        given = _given(method, source, target, lora, heads, text, prompts, on_progress)
        runner = method.make(given)
        read = [passage.text for passage in given.answers] if method.needs_prompts else given.texts
        facts: dict[str, Any] = {
            "seed": method.config.seed, "strength": 1.0, "tokens": _tokens(target, read),
            "text": "prompts" if method.needs_prompts else "general",
        }  # fmt: skip
    else:
        made = translate_adapter(
            source, target, lora, method, heads=heads, text=text, prompts=prompts, on_progress=on_progress
        )
        runner, quality = made.runner(source, target), made.recipe.quality
        facts = {
            "seed": method.seed,
            "strength": made.recipe.strength,
            "text": method.text_kind(prompts),
            "tokens": made.recipe.tokens,
        }
    facts |= {"method": _name(method, prompts), "seconds": round(time.monotonic() - started, 2)}
    config = method.config if isinstance(method, Baseline) else method
    if isinstance(method, TranslationConfig) and not method.takes_heads:
        return runner, facts | {"missing": 0.0, "predicted": prediction.predicted(None)}
    if quality.missing is None:
        texts = fitting_text(source, target, config, text, prompts=bool(prompts))[: config.batch_size]
        quality = held_out_quality(source, lora, runner, texts, config)
    return runner, facts | {
        "missing": quality.missing,
        "coverage": quality.coverage,
        "reach": quality.reach,
        "said": quality.said,
        "predicted": prediction.predicted(quality),
    }


def _given(
    method: Baseline,
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    heads: FoundHeads | None,
    text: str | None,
    prompts: Sequence[str],
    on_progress: OnProgress,
) -> Given:
    """What a baseline may look at: of general text what the mode that it is measured beside reads."""
    passages: list[str] = []
    if method.needs_text or method.needs_prompts:
        passages = fitting_text(source, target, method.config, text, prompts=bool(prompts))
    answers: list[Passage] = []
    if method.needs_prompts and prompts:
        answers = answered_prompts(
            source, target, lora, prompts, passages, method.config, on_progress=on_progress
        )
    return Given(
        source,
        target,
        lora,
        passages if method.needs_text else (),
        heads.heads if heads else None,
        method.config,
        cache_folder() / "sites",
        answers,
    )


def _tokens(target: LanguageModel, texts: Sequence[str]) -> int:
    return int(target.encode(texts).attention_mask.sum()) if texts else 0


def _name(method: TranslationConfig | Baseline, prompts: Sequence[str]) -> str:
    return method.name if isinstance(method, Baseline) else method_name(method, prompts)


def scored(runner: Runner, ends: Comparison, on_progress: OnProgress = ignore) -> dict[str, Any]:
    """The score of one way beside the ends of the scale, as a result holds them."""
    report = evaluate.evaluate(runner, ends.task, on_progress=on_progress)
    lift, interval = None, None
    if ends.retrained:
        lift = evaluate.recovered_lift(ends.base.score, report.score, ends.retrained.score)
        interval = evaluate.bootstrap_interval(ends.base.scores, report.scores, ends.retrained.scores)
    return {
        "metric": report.metric,
        "base": ends.base.score,
        "translated": report.score,
        "retrained": ends.retrained.score if ends.retrained else None,
        "source_adapted": ends.source_adapted.score,
        "lift": lift,
        "interval": interval,
        "examples": report.count,
    }


def method_name(config: TranslationConfig, prompts: Sequence[str] = ()) -> str:
    """The mode; of `hosted` also how: `hosted-2` for segments of two target blocks, `hosted-states`.

    With prompts `compiled` is `compiled-prompts`; the other modes do not read them.
    """
    if config.mode == "compiled":
        plain = "compiled" if config.asks else "compiled-general"
        return "compiled-prompts" if prompts else plain
    if config.mode != "hosted" or not config.needs_heads:
        return config.mode
    return f"{config.mode}-{config.segment or config.readout}"


def reference(
    target: LanguageModel,
    task: str,
    *,
    retrained: str | None = None,
    train: str | None = None,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> Lora | None:
    """The LoRA of the target that recovered lift is measured against; None without any.

    Args:
        target: the model that it is of.
        task: as `evaluate.read_task` takes it; a pocket task has a shipped reference.
        retrained: a LoRA of the target, by name.
        train: a task file to train one on.
        seed: of that training.
        on_progress: gets the training's stages.

    Raises:
        RequestError: both `retrained` and `train` are given.
    """
    if retrained and train:
        raise RequestError("A retrained LoRA and a file to train one on are both given; choose one.")
    if retrained:
        return adapters.read(retrained, target)
    if train:
        examples = evaluate.read_task(train, split="train").examples
        return train_lora(target, examples, LoraTrainingConfig(), seed=seed, on_progress=on_progress)
    return retrained_reference(target, task)


def retrained_reference(target: LanguageModel, task: str) -> Lora | None:
    """The shipped LoRA that was trained on the target for a pocket task; None where there is none."""
    if not (registry.is_pocket(target.name) and registry.is_pocket(task)):
        return None
    name = f"{target.name}/{task.removeprefix(registry.PREFIX)}"
    folder = registry.adapter_folder(*name.removeprefix(registry.PREFIX).split("/"))
    return adapters.read(name, target) if folder.is_dir() else None


def held_out_texts(text: str, count: int = _OFF_TASK_TEXTS) -> list[str]:
    """General text that neither heads nor translations were fitted on."""
    return list(islice(corpus.general_text(text, seed=0, held_out=True), count))


_FORMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"hosted-states": {"readout": "states"}, "compiled-general": {"moments": 0, "forms": 0}}
)
"""Methods that are a mode in another form, with the fields that they set."""


def methods_named(names: Iterable[str], **settings: Any) -> list[TranslationConfig | Baseline]:
    """Methods by name: a mode; `hosted-states`; `hosted-1`, `hosted-2`, … block by block; a baseline.

    `compiled-general` is `compiled` on general text as it is, without `cast.unprompted`.

    Args:
        names: see above, and `cast.baselines`.
        settings: fields of `TranslationConfig` for the modes; None leaves the default.

    Raises:
        RequestError: there is no such method.
    """
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    methods: list[TranslationConfig | Baseline] = []
    for name in names:
        if name in BASELINES:
            methods.append(replace(BASELINES[name], config=replace(BASELINES[name].config, **given)))
            continue
        mode, dash, size = name.partition("-")
        form = _FORMS.get(name, {})
        if mode == "hosted" and size.isdigit() and int(size) > 0:
            form = {"segment": int(size)}
        if dash and not form:
            raise RequestError(
                f"There is no method {name!r}; hosted-2 and hosted-states are some, and the baselines are "
                f"{', '.join(BASELINES)}."
            )
        methods.append(TranslationConfig(**{"mode": mode, **given, **form}))
    return methods


def peak_memory_bytes() -> int:
    """Most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
