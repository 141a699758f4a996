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
    teacher = WordTeacher(source, target, lora, config, strength=strength)
    told = teacher.tell([Passage(text) for text in texts])
    bare, acting = (
        float(told.missing(way.logits(told.tokens, told.rows, told.positions).to(told.weights.device)))
        for way in (PlainRunner(target), runner)
    )
    return Quality(kl_carried_base=bare, kl_carried_adapted=acting)
