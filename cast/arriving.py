"""What of a source adapter's effect a target shows, on text that nothing was fitted on."""

from collections.abc import Sequence

import torch

from cast.adapters import Lora
from cast.corpus import Passage
from cast.models import LanguageModel
from cast.recipes import Quality, TranslationConfig
from cast.runners import PlainRunner, Runner
from cast.word_teacher import WordTeacher


@torch.no_grad()
def held_out_quality(
    source: LanguageModel,
    lora: Lora,
    runner: Runner,
    texts: Sequence[str],
    config: TranslationConfig,
    *,
    strength: float = 1.0,
) -> Quality:
    """The effect that should arrive and what is missing of it, in words: by KL to the hosted source.

    Args:
        source: the adapter's model.
        lora: the adapter.
        runner: the target with whatever acts on it.
        texts: one batch of general text.
        config: `max_length` and `seed`.
        strength: factor on the change that should arrive.
    """
    target = runner.lm
    teacher = WordTeacher(
        source, target, lora, strength=strength, max_length=config.max_length,
        answer_share=config.answer_share, seed=config.seed,
    )  # fmt: skip
    told = teacher.tell([Passage(text) for text in texts])
    missing = []
    for way in (PlainRunner(target), runner):
        said = way.logits(told.tokens, told.rows, told.positions).log_softmax(-1).to(told.wanted.device)
        kl = torch.nn.functional.kl_div(said, told.wanted, log_target=True, reduction="none").sum(-1)
        missing.append(float(kl @ told.weights / told.weights.sum()))
    return Quality(kl_carried_base=missing[0], kl_carried_adapted=missing[1])
