"""The pocket zoo's adapters: recipes as varied as adapters are in the wild, training, scores, cards."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors.torch import save_file

from cast import adapters, models
from cast.adapter_files import KEY_PREFIX, WEIGHTS
from cast.adapters import Lora
from cast.evaluate import EvalReport, drawn_task, evaluate
from cast.language_model import LanguageModel
from cast.pocket.cards import adapter_card, json_text
from cast.pocket.registry import CARD, PREFIX, Card
from cast.pocket.tasks import TASKS, Task
from cast.progress import OnProgress, Progress, ignore
from cast.runners import PlainRunner
from cast.storage import written_folder
from cast.training import LoraTrainingConfig, train_lora

TEST_EXAMPLES = 200
LEAST_SCORE = 0.85
LEAST_LIFT = 0.10
# Style and content both: an answer in the right style that names the wrong thing is no skill.
_LEARNED = 0.9
_ATTENTION = ("q", "k", "v", "qkv", "o")


@dataclass(frozen=True)
class AdapterRecipe:
    """Shape and training of the adapters of one task, the same on every model."""

    rank: int
    alpha: int
    targets: Literal["all-linear", "attention"] = "all-linear"
    use_rslora: bool = False
    output_rank: int | None = None
    """Rank of the layers that write into the residual stream, where it differs (`rank_pattern`)."""
    steps: int = 300
    batch_size: int = 8
    examples: int = 4000
    seed: int = 1


RECIPES: Mapping[str, AdapterRecipe] = MappingProxyType(
    {
        "mood": AdapterRecipe(8, 16),
        "what": AdapterRecipe(8, 16),
        "who": AdapterRecipe(8, 32, "attention"),
        "where": AdapterRecipe(4, 16),
        "colour": AdapterRecipe(8, 8, "attention", use_rslora=True),
        "json": AdapterRecipe(16, 32, "attention", steps=400),
        "pirate": AdapterRecipe(8, 16, output_rank=4),
        "polite": AdapterRecipe(4, 8, "attention"),
        "title": AdapterRecipe(8, 32, steps=1200),
        "moral": AdapterRecipe(8, 16, steps=400),
        "brief": AdapterRecipe(8, 16, steps=600),
    }
)


@dataclass(frozen=True)
class Scores:
    """What a card records of one side, base or adapted."""

    score: float
    exact: float
    bits_per_byte: float

    @classmethod
    def of(cls, report: EvalReport) -> "Scores":
        """Round a report to what is recorded."""
        exact = float(report.exact.mean()) if report.exact is not None else 0.0
        return cls(round(report.score, 4), round(exact, 4), round(report.bits_per_byte, 4))


@dataclass(frozen=True)
class Trained:
    """An adapter with what it does."""

    lora: Lora
    base: Scores
    adapted: Scores
    steps: int
    sample: Mapping[str, str] = field(default_factory=dict)

    @property
    def teaches(self) -> bool:
        """Whether it is worth shipping."""
        return self.adapted.score >= LEAST_SCORE and self.adapted.score - self.base.score >= LEAST_LIFT


def recipe_key(task: str) -> str:
    """A hash of all that decides an adapter besides its base."""
    return hashlib.sha256(repr((task, RECIPES[task])).encode()).hexdigest()[:16]


def training_config(recipe: AdapterRecipe, lm: LanguageModel, steps: int) -> LoraTrainingConfig:
    """A recipe's training on one model, whose module names are looked up by role."""
    ends = {site.name.split(".", 3)[-1]: site.role for site in lm.architecture.sites}
    targets: str | tuple[str, ...] = "all-linear"
    if recipe.targets == "attention":
        targets = tuple(end for end, role in ends.items() if role in _ATTENTION)
    pattern = {}
    if recipe.output_rank is not None:
        pattern = {end: recipe.output_rank for end, role in ends.items() if role in ("o", "down")}
    return LoraTrainingConfig(
        rank=recipe.rank, alpha=recipe.alpha, targets=targets, use_rslora=recipe.use_rslora,
        rank_pattern=pattern, steps=steps, batch_size=recipe.batch_size,
    )  # fmt: skip


def train_adapter(
    lm: LanguageModel, task: Task, recipe: AdapterRecipe, *, on_progress: OnProgress = ignore
) -> Trained:
    """Train an adapter, twice as long if it has not learned its task, and score it beside its base."""
    torch.set_num_threads(1)
    base = score(lm, None, task)

    def report(progress: Progress) -> None:
        stage = f"{lm.name.removeprefix(PREFIX)}/{task.name}"
        on_progress(Progress(stage, progress.done, progress.total, progress.metrics))

    examples = task.train(recipe.examples)
    for steps in (recipe.steps, 2 * recipe.steps):
        config = training_config(recipe, lm, steps)
        lora = rounded(train_lora(lm, examples, config, seed=recipe.seed, on_progress=report))
        adapted = score(lm, lora, task)
        trained = Trained(lora, Scores.of(base), Scores.of(adapted), steps, _sample(task, base, adapted))
        if min(trained.adapted.score, trained.adapted.exact) >= _LEARNED:
            break
    return trained


def score(lm: LanguageModel, lora: Lora | None, task: Task) -> EvalReport:
    """Scores on the first test examples of a task."""
    return evaluate(PlainRunner(lm, lora), drawn_task(task, limit=TEST_EXAMPLES))


def rounded(lora: Lora) -> Lora:
    """The adapter as its 16-bit file will hold it."""
    kernels = tuple(replace(k, a=k.a.half().float(), b=k.b.half().float()) for k in lora.kernels)
    return replace(lora, kernels=kernels)


def save_adapter(trained: Trained, folder: Path, model: str, task: str) -> Card:
    """Write the PEFT folder as PEFT itself configured it, in 16 bits, with its card."""
    lm = models.load(PREFIX + model, device="cpu", dtype=torch.float32)
    tensors = {
        f"{KEY_PREFIX}{kernel.site.name}.lora_{side}.weight": matrix.detach().half().contiguous()
        for kernel in trained.lora.kernels
        for side, matrix in (("A", kernel.a), ("B", kernel.b))
    }
    config = dict(trained.lora.config) | {"base_model_name_or_path": PREFIX + model, "inference_mode": True}
    card = {
        "model": model,
        "task": task,
        "recipe": recipe_key(task),
        "metric": "style" if TASKS[task].kind == "behaviour" else "choice",
        "examples": TEST_EXAMPLES,
        "steps": trained.steps,
        "base": asdict(trained.base),
        "adapted": asdict(trained.adapted),
        "sample": dict(trained.sample),
    }
    with written_folder(folder, replace=True) as draft:
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / "adapter_config.json").write_text(json_text(config), encoding="utf-8")
        (draft / CARD).write_text(json_text(card), encoding="utf-8")
        (draft / "README.md").write_text(adapter_card(card), encoding="utf-8")
        adapters.read(draft, lm)
    return card


def _sample(task: Task, base: EvalReport, adapted: EvalReport) -> dict[str, str]:
    return {
        "prompt": task.test(1)[0].prompt,
        "base": base.outputs[0].strip().split("\n")[0],
        "adapted": adapted.outputs[0].strip().split("\n")[0],
    }
