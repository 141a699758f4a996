"""The stages from two models and real data to measurements; each keeps its artifact and is not run twice.

In the work folder: `general.txt`, `heads`, and for each task `source-lora`, `target-lora` and `compiled`,
PEFT folders, each with a `.making.json` beside it that tells what it cost. Nothing of this belongs in the
repository; the measurements do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.real_pair import data
from benchmarks.real_pair.record import Making, Measurement, Task
from cast import adapters
from cast.adapters import Lora
from cast.corpus import general_text
from cast.evaluate import TaskData, evaluate
from cast.fitting import FitConfig, fit_heads
from cast.heads import HeadSet
from cast.hosting import HostedRunner
from cast.models import LanguageModel, load
from cast.progress import OnProgress
from cast.runners import PlainRunner, Runner
from cast.storage import write_atomically
from cast.training import LoraTrainingConfig, train_lora
from cast.translate import TranslationConfig, load_translated, translate
from cast.wording import WordedRunner

Role = Literal["source", "target"]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much is spent on it."""

    source: str
    target: str
    work: Path
    """Models' adapters, heads and translations lie here; a second run goes on from them."""
    results: Path
    """Measurements lie here."""
    task: Task = "kind"
    seed: int = 0
    train: int = 2400
    """Examples that the two LoRAs are trained on."""
    test: int = 200
    """Examples that everything is scored on."""
    strengths: tuple[float, ...] = (1.0, 2.0)
    """Of the adapter that is hosted through the heads."""
    lora: LoraTrainingConfig = field(
        default_factory=lambda: LoraTrainingConfig(
            rank=8,
            alpha=16,
            targets=("q_proj", "k_proj", "v_proj", "o_proj"),
            steps=300,
            batch_size=16,
            learning_rate=1e-3,
            max_length=256,
        )
    )
    """The same for the source's adapter and for the reference on the target."""
    heads: FitConfig = field(
        default_factory=lambda: FitConfig(
            kind="affine",
            tokens=60_000,
            depths=(0, 6, 12, 18),
            kl_weight=0,
            corpus="debian-handbook, fortunes",
        )
    )
    """Affine: on this pair MLP heads cost several times as much and carry no more."""
    compiled: TranslationConfig = field(
        default_factory=lambda: TranslationConfig(
            mode="compiled",
            steps=60,
            batch_size=8,
            learning_rate=1e-3,
            site_tokens=1200,
            max_length=128,
        )
    )
    prompts: int = 5
    """Example prompts without answers, of the training stream, for `compiled-prompts`."""

    @property
    def lora_of_task(self) -> LoraTrainingConfig:
        """Passages are longer than glosses, and teach more each."""
        if self.task == "kind":
            return self.lora
        return replace(self.lora, steps=100, batch_size=8, max_length=128)


class Bench:
    """The stages of one plan over one pair of models, which are loaded when they are first needed."""

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.plan = plan
        self._on_progress = on_progress

    @cached_property
    def source(self) -> LanguageModel:
        """The model that the adapter is trained on."""
        return load(self.plan.source, on_progress=self._on_progress)

    @cached_property
    def target(self) -> LanguageModel:
        """The model that the adapter is carried to."""
        return load(self.plan.target, on_progress=self._on_progress)

    @cached_property
    def split(self) -> data.Split:
        """The task's examples."""
        plan = self.plan
        if plan.task == "kind":
            return data.kind_task(data.read_wordnet(), train=plan.train, test=plan.test, seed=plan.seed)
        return data.style_task(data.read_verses(), train=plan.train, test=plan.test, seed=plan.seed)

    def texts(self) -> Iterator[str]:
        """Passages of general text, which hold neither task."""
        path = self.plan.work / "general.txt"
        if not path.is_file():
            write_atomically(path, "\n\n".join(data.general_paragraphs()).encode())
        return general_text(str(path), seed=self.plan.seed)

    def lora(self, role: Role) -> Lora:
        """The source's adapter, or the reference retrained on the target's own copy of the labels."""
        lm, config = self._model(role), self.plan.lora_of_task
        folder = self._folder(f"{role}-lora")
        if not folder.exists():
            with self._making(folder, tokens=self._trained_tokens(lm), settings=asdict(config)):
                lora = train_lora(
                    lm, self.split.train, config, seed=self.plan.seed, on_progress=self._on_progress
                )
            adapters.write(lora, folder, lm, card=f"LoRA of {lm.name} for the task `{self.plan.task}`.\n")
        return adapters.read(folder, lm)

    def heads(self) -> HeadSet:
        """Heads of the pair, fitted on general text; they serve every task."""
        folder, config = self.plan.work / "heads", self.plan.heads
        if not folder.exists():
            with self._making(folder, tokens=config.tokens, settings=asdict(config)):
                heads = fit_heads(
                    self.source,
                    self.target,
                    self.texts(),
                    config,
                    checkpoint=self.plan.work / "heads-unfinished",
                    on_progress=self._on_progress,
                )
            heads.save(folder)
        return HeadSet.load(folder)

    def compiled(self, prompts: Sequence[str] = ()) -> Lora:
        """The source's adapter as a plain LoRA of the target, fitted on general text and any prompts."""
        folder, config = self._folder("compiled-prompts" if prompts else "compiled"), self.plan.compiled
        if not folder.exists():
            lora, heads = self.lora("source"), self.heads()
            with self._making(folder, settings=asdict(config)):
                translated = translate(
                    self.source,
                    self.target,
                    lora,
                    heads,
                    self.texts(),
                    config,
                    prompts=prompts,
                    cache=self.plan.work / "sites",
                    on_progress=self._on_progress,
                )
            translated.save(folder, self.target)
        return adapters.read(folder, self.target)

    def run(self) -> None:
        """Everything that is not measured yet, the cheap and the necessary first."""
        plan = self.plan
        self._measure("source-base", "source", lambda: PlainRunner(self.source))
        self._measure("target-base", "target", lambda: PlainRunner(self.target))
        self._measure(
            "source-lora", "source", lambda: PlainRunner(self.source, self.lora("source")), "source-lora"
        )
        self._measure(
            "retrained", "target", lambda: PlainRunner(self.target, self.lora("target")), "target-lora"
        )
        self._measure("hosted", "target", lambda: WordedRunner(self.source, self.lora("source"), self.target))
        for strength in plan.strengths:
            self._measure(
                "hosted-states", "target", lambda strength=strength: self._hosted(strength), "heads", strength
            )
        self._measure("compiled", "target", lambda: PlainRunner(self.target, self.compiled()), "compiled")
        if plan.task == "kind":
            prompts = [example.prompt for example in self.split.train[: plan.prompts]]
            self._measure(
                "compiled-prompts",
                "target",
                lambda: PlainRunner(self.target, self.compiled(prompts)),
                "compiled-prompts",
            )

    def _hosted(self, strength: float) -> Runner:
        return HostedRunner(self.source, self.lora("source"), self.target, self.heads(), None, strength)

    def _measure(
        self,
        method: str,
        role: Role,
        runner: Callable[[], Runner],
        artifact: str | None = None,
        strength: float = 1.0,
    ) -> None:
        """Score one runner on the test examples, unless its measurement is there."""
        task = self.plan.task
        key = Measurement.key_of(task, method, strength)
        if (self.plan.results / f"{key}.json").exists():
            return
        acting = runner()
        started = time.process_time()
        report = evaluate(
            acting,
            TaskData(task, self.split.test),
            greedy=task == "kind",
            batch_size=16,
            on_progress=self._on_progress,
        )
        spent = time.process_time() - started
        Measurement.of(
            report,
            task=task,
            method=method,
            strength=strength,
            made=self._made(artifact),
            cpu_seconds_scored=spent,
            environment=self._environment(role),
        ).write(self.plan.results)

    def _made(self, artifact: str | None) -> Making:
        if artifact is None:
            return Making()
        folder = self.plan.work / "heads" if artifact == "heads" else self._folder(artifact)
        made = Making.read(_beside(folder))
        if not artifact.startswith("compiled"):
            return made
        recipe = load_translated(folder)
        settings = {**made.settings, "strength": recipe.strength, "quality": asdict(recipe.quality)}
        return replace(made, tokens=recipe.tokens, settings=settings)

    def _environment(self, role: Role) -> dict[str, str]:
        lm = self._model(role)
        return {
            "model": Path(lm.name).name,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": lm.device.type,
            "threads": str(torch.get_num_threads()),
        }

    def _model(self, role: Role) -> LanguageModel:
        return self.source if role == "source" else self.target

    def _folder(self, name: str) -> Path:
        return self.plan.work / self.plan.task / name

    def _trained_tokens(self, lm: LanguageModel) -> int:
        texts = [example.prompt + example.completion for example in self.split.train]
        mean = lm.encode(texts).attention_mask.sum().item() / len(texts)
        return round(mean * self.plan.lora_of_task.steps * self.plan.lora_of_task.batch_size)

    @contextmanager
    def _making(self, folder: Path, *, settings: dict[str, Any], tokens: int = 0) -> Iterator[None]:
        """Time what is made in the block and keep that beside the folder it will lie in."""
        clock, spent = time.perf_counter(), time.process_time()
        yield
        made = Making(
            seconds=round(time.perf_counter() - clock, 1),
            cpu_seconds=round(time.process_time() - spent, 1),
            tokens=tokens,
            settings=settings,
        )
        made.write(_beside(folder))


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.making.json")
