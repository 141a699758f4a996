"""What a run measures, and how much it spends on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks.real_pair.record import DIRECTIONS, Direction, ModelName, Task
from benchmarks.real_pair.tasks import TASKS
from cast.fitting import FitConfig
from cast.training import LoraTrainingConfig
from cast.translate import TranslationConfig

Method = Literal[
    "hosted", "proxy-tuning", "compiled", "compiled-prompts", "compiled-many-prompts", "hosted-states"
]
METHODS: tuple[Method, ...] = ("hosted", "proxy-tuning", "compiled", "compiled-prompts")
"""What is measured unless something else is asked for: few have thousands of prompts, and `hosted-states`,
through heads, carries less."""


_COMPILED = TranslationConfig(
    mode="compiled",
    steps=240,
    rounds=1,
    passes=3,
    batch_size=16,
    max_length=96,
    prompt_share=0.875,
    moments=400,
    forms=2000,
)


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much is spent on it."""

    models: Mapping[ModelName, str]
    """Hub id, folder or `.gguf` file of each."""
    work: Path
    """Models' adapters, heads and translations lie here; a second run goes on from them."""
    results: Path
    """Measurements lie here."""
    tasks: tuple[Task, ...] = tuple(TASKS)
    directions: tuple[Direction, ...] = DIRECTIONS
    methods: tuple[Method, ...] = METHODS
    seed: int = 0
    train: int | None = None
    """Examples that the LoRAs are trained on, instead of the tasks' own numbers."""
    test: int = 200
    """Examples that everything is scored on."""
    further: int = 0
    """More examples, drawn behind these, that everything is scored on in their place."""
    general: int = 40
    """Paragraphs of held-out general text that everything is scored on."""
    strengths: tuple[float, ...] = (1.0, 2.0)
    """Of the adapter that is hosted through the heads."""
    lora: LoraTrainingConfig | None = None
    """Instead of the tasks' own recipes."""
    heads: FitConfig = field(
        default_factory=lambda: FitConfig(
            kind="affine", tokens=60_000, kl_weight=0, corpus="debian-handbook, fortunes"
        )
    )
    """Affine: on this pair MLP heads cost several times as much and carry no more. The depths are thirds of
    the target's, whatever this names."""
    compiled: TranslationConfig = _COMPILED
    """On general text alone, where every answer that is fitted on costs several texts that are asked."""
    prompted: TranslationConfig = field(
        default_factory=lambda: replace(_COMPILED, steps=480, passes=4, prompts_wanted=2000)
    )
    """With example prompts."""
    prompts: int = 5
    """Example prompts without answers, of the training stream, for `compiled-prompts`."""
    many_prompts: int = 2000
    """The same for `compiled-many-prompts`, which makes no more of them; all where there are fewer."""

    def shown(self, method: Method) -> int:
        """How many prompts of a task a method sees."""
        return {"compiled-prompts": self.prompts, "compiled-many-prompts": self.many_prompts}.get(method, 0)
