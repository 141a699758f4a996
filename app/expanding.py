"""The backend's side of the example prompts: what a compiled fit would read, before anything is fitted."""

from typing import TYPE_CHECKING, cast

from app.facts import AnsweredPrompt, Expansion, TranslateRequest
from cast.progress import OnProgress, Progress

if TYPE_CHECKING:
    from cast.pipeline import FoundHeads
    from cast.recipes import Mode, TranslationConfig


def translation_config(request: TranslateRequest) -> "TranslationConfig":
    """How *Translate* carries an adapter."""
    from cast.recipes import TranslationConfig

    chosen = request.selection
    config = TranslationConfig(cast("Mode", chosen.mode), segment=chosen.segment, steps=request.steps)
    return config if request.expand else config.reading_as_they_stand(request.prompts)


def expanded(request: TranslateRequest, heads: "FoundHeads | None", on_progress: OnProgress) -> Expansion:
    """The prompts that the fit would make and have answered, and how much of the adapter they excite.

    Args:
        request: as it would be translated.
        heads: the visitor's own; else those of the pair, whose text is read then.
        on_progress: gets the stages `load`, `generate` and `coverage`.
    """
    from cast import adapters, models, pipeline
    from cast.coverage import covered
    from cast.exciting import mostly_drawn
    from cast.interrupting import interruptible
    from cast.prediction import ENDLESS, excites, excites_in_words
    from cast.translate import answered_prompts

    chosen, config = request.selection, translation_config(request)
    source, target = (models.load(name, on_progress=on_progress) for name in (chosen.source, chosen.target))
    lora = adapters.read(chosen.adapter, source)
    found = heads or pipeline.find_heads(source, target)
    corpus, given = found.heads.recipe.corpus if found else None, bool(request.prompts)
    texts = pipeline.fitting_text(source, target, config, corpus, prompts=given)
    with interruptible((source, target), on_progress) as told:
        answers = answered_prompts(source, target, lora, request.prompts, texts, config, on_progress=told)
        told(Progress("coverage", 0, 1))
        shown = covered(source, lora, texts, [answer.text for answer in answers], config)
    words = excites_in_words(shown.reach, shown.strongest)
    rows = tuple(
        AnsweredPrompt(answer.text[: answer.answer], answer.text[answer.answer :]) for answer in answers
    )
    return Expansion(
        rows=rows,
        reach=shown.reach,
        excites=excites(shown.reach),
        words=words if excites(shown.reach) else f"{words}: {more_prompts(given=given)}",
        warning=ENDLESS if mostly_drawn(answers) else "",
    )


def more_prompts(*, given: bool) -> str:
    """What would help where a text hardly excites an adapter, as a clause."""
    return f"give {'other' if given else 'a few'} example prompts"
