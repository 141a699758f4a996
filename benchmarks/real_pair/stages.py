"""The stages from two models and real data to measurements; each keeps its artifact and is not run twice.

In the work folder: `general.txt`; `heads/DIRECTION`; for each task `TASK/MODEL-lora`, which is the source's
adapter in one direction and the retrained reference in the other; and `TASK/DIRECTION/compiled`. All are PEFT
folders or heads, each with a `.making.json` beside it that tells what it cost. Nothing of this belongs in the
repository; the measurements do.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_pair import data
from benchmarks.real_pair.data import Split
from benchmarks.real_pair.plan import Method, Plan
from benchmarks.real_pair.record import Direction, GeneralText, Making, Measurement, ModelName, Task
from benchmarks.real_pair.tasks import TASKS
from cast import adapters
from cast.adapters import Lora
from cast.baselines import BASELINES, Given
from cast.corpus import general_text
from cast.evaluate import TaskData, evaluate
from cast.fitting import fit_heads
from cast.heads import HeadSet
from cast.hosting import HostedRunner
from cast.models import LanguageModel, load
from cast.progress import OnProgress
from cast.runners import PlainRunner, Runner
from cast.scoring import completion_log_probs
from cast.storage import write_atomically
from cast.training import LoraTrainingConfig, train_lora
from cast.translate import load_translated, translate
from cast.wording import WordedRunner


class Bench:
    """The stages of one plan over one pair of models, which are loaded when they are first needed."""

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.plan = plan
        self._on_progress = on_progress
        self._models: dict[ModelName, LanguageModel] = {}
        self._splits: dict[Task, Split] = {}

    def model(self, name: ModelName) -> LanguageModel:
        """One of the two models."""
        if name not in self._models:
            self._models[name] = load(self.plan.models[name], on_progress=self._on_progress)
        return self._models[name]

    def split(self, task: Task) -> Split:
        """A task's examples; `test` are those that everything is scored on."""
        if task not in self._splits:
            train = self.plan.train or TASKS[task].train
            further = self.plan.further
            split = TASKS[task].read(train, self.plan.test, self.plan.seed, further)
            self._splits[task] = replace(split, test=split.further) if further else split
        return self._splits[task]

    def texts(self, *, held_out: bool = False) -> Iterator[str]:
        """Passages of general text, which hold no task; the held-out ones are never fitted on."""
        path = self.plan.work / "general.txt"
        if not path.is_file():
            write_atomically(path, "\n\n".join(data.general_paragraphs()).encode())
        return general_text(str(path), seed=self.plan.seed, held_out=held_out)

    def lora(self, task: Task, name: ModelName) -> Lora:
        """The LoRA that a model learns from a task's labels: source adapter one way, reference the other."""
        lm, folder = self.model(name), self._lora_folder(task, name)
        if not folder.exists():
            config = self.plan.lora or TASKS[task].recipe
            with self._making(folder, tokens=self._trained_tokens(task, lm, config), settings=asdict(config)):
                lora = train_lora(
                    lm, self.split(task).train, config, seed=self.plan.seed, on_progress=self._on_progress
                )
            adapters.write(lora, folder, lm, card=f"LoRA of {lm.name} for the task `{task}`.\n")
        return adapters.read(folder, lm)

    def heads(self, direction: Direction) -> HeadSet:
        """Heads of one direction, fitted on general text; they serve every task."""
        folder, target = self._heads_folder(direction), self.model(direction.target)
        if not folder.exists():
            thirds = tuple(round(target.depth * third / 3) for third in range(4))
            config = replace(self.plan.heads, depths=thirds)
            with self._making(folder, tokens=config.tokens, settings=asdict(config)):
                heads = fit_heads(
                    self.model(direction.source),
                    target,
                    self.texts(),
                    config,
                    checkpoint=folder.with_name(f"{folder.name}-unfinished"),
                    on_progress=self._on_progress,
                )
            heads.save(folder)
        return HeadSet.load(folder)

    def compiled(self, task: Task, direction: Direction, method: Method) -> Lora:
        """The source's adapter as a plain LoRA of the target, from general text and the method's prompts."""
        folder = self._compiled_folder(task, direction, method)
        prompts = [example.prompt for example in self.split(task).train[: self.plan.shown(method)]]
        config = self.plan.prompted if prompts else self.plan.compiled
        if method == "compiled-many-prompts":
            config = config.reading_as_they_stand(prompts)
        target = self.model(direction.target)
        if not folder.exists():
            lora = self.lora(task, direction.source)
            heads = self.heads(direction)
            with self._making(folder, settings=asdict(config)):
                translated = translate(
                    self.model(direction.source),
                    target,
                    lora,
                    heads,
                    self.texts(),
                    config,
                    prompts=prompts,
                    on_progress=self._on_progress,
                )
            translated.save(folder, target)
        return adapters.read(folder, target)

    def run(self) -> None:
        """Everything that is not measured yet: each model and its LoRA, then what is carried over."""
        for task in self.plan.tasks:
            for name in _models_of(self.plan.directions):
                self._measure(task, name, "base", lambda name=name: PlainRunner(self.model(name)))
                self._measure(
                    task,
                    name,
                    "lora",
                    lambda name=name, task=task: PlainRunner(self.model(name), self.lora(task, name)),
                    made_at=self._lora_folder(task, name),
                )
            for direction in self.plan.directions:
                for method in self.plan.methods:
                    self._carry(task, direction, method)

    def _carry(self, task: Task, direction: Direction, method: Method) -> None:
        """Measure one way to carry the source's LoRA over."""
        made_at = None
        if method == "hosted-states":
            made_at = self._heads_folder(direction)
        elif method.startswith("compiled"):
            made_at = self._compiled_folder(task, direction, method)
        for strength in self.plan.strengths if method == "hosted-states" else (1.0,):
            self._measure(
                task,
                direction.target,
                method,
                lambda strength=strength: self._carried(task, direction, method, strength),
                source=direction.source,
                strength=strength,
                made_at=made_at,
            )

    def _carried(self, task: Task, direction: Direction, method: Method, strength: float) -> Runner:
        source, target = self.model(direction.source), self.model(direction.target)
        if method.startswith("compiled"):
            return PlainRunner(target, self.compiled(task, direction, method))
        lora = self.lora(task, direction.source)
        if method == "proxy-tuning":
            return BASELINES[method].make(Given(source, target, lora))
        if method == "hosted-states":
            return HostedRunner(source, lora, target, self.heads(direction), None, strength)
        return WordedRunner(source, lora, target, strength)

    def _measure(
        self,
        task: Task,
        model: ModelName,
        method: str,
        runner: Callable[[], Runner],
        *,
        source: ModelName | None = None,
        strength: float = 1.0,
        made_at: Path | None = None,
    ) -> None:
        """Score one runner on the test examples, unless its measurement is there."""
        key = Measurement.key_of(task, model, source, method, strength)
        if (self.plan.results / f"{key}.json").exists():
            return
        acting = runner()
        started = time.process_time()
        report = evaluate(
            acting,
            TaskData(task, self.split(task).test),
            greedy=TASKS[task].greedy,
            batch_size=16,
            on_progress=self._on_progress,
        )
        spent = time.process_time() - started
        Measurement.of(
            report,
            task=task,
            model=model,
            source=source,
            method=method,
            strength=strength,
            made=_made(made_at),
            general=self._on_general_text(acting),
            cpu_seconds_scored=spent,
            environment=self._environment(model),
        ).write(self.plan.results)

    def _on_general_text(self, runner: Runner) -> GeneralText:
        texts = list(islice(self.texts(held_out=True), self.plan.general))
        nats = completion_log_probs(runner, [("", text) for text in texts], batch_size=8)
        return GeneralText(
            bits=tuple(-value / math.log(2) for value in nats),
            sizes=tuple(len(text.encode()) for text in texts),
        )

    def _environment(self, name: ModelName) -> dict[str, str]:
        lm = self.model(name)
        return {
            "model": Path(lm.name).name,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": lm.device.type,
            "threads": str(torch.get_num_threads()),
        }

    def _lora_folder(self, task: Task, name: ModelName) -> Path:
        return self.plan.work / task / f"{name}-lora"

    def _heads_folder(self, direction: Direction) -> Path:
        return self.plan.work / "heads" / direction.name

    def _compiled_folder(self, task: Task, direction: Direction, method: Method) -> Path:
        return self.plan.work / task / direction.name / method

    def _trained_tokens(self, task: Task, lm: LanguageModel, config: LoraTrainingConfig) -> int:
        texts = [example.prompt + example.completion for example in self.split(task).train]
        mean = lm.encode(texts).attention_mask.sum().item() / len(texts)
        return round(mean * config.steps * config.batch_size)

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


def _models_of(directions: Sequence[Direction]) -> list[ModelName]:
    """Both ends of the directions, each once."""
    return list(dict.fromkeys(name for way in directions for name in (way.source, way.target)))


def _made(folder: Path | None) -> Making:
    """What is known of how an artifact was made, and of a compiled one what its recipe tells."""
    if folder is None:
        return Making()
    made = Making.read(_beside(folder))
    if not folder.name.startswith("compiled"):
        return made
    recipe = load_translated(folder)
    settings = {
        **made.settings,
        "strength": recipe.strength,
        "quality": asdict(recipe.quality),
        "heads": recipe.heads_recipe,
    }
    return replace(made, tokens=recipe.tokens, settings=settings)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.making.json")
