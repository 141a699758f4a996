"""A slice of the fidelity grid on the models that ship: what the README says of them holds."""

from functools import cache
from pathlib import Path

import pytest

from cast import adapters, evaluate, models, pipeline
from cast.baselines import BASELINES, Given
from cast.models import LanguageModel
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner, Runner
from cast.wording import WordedRunner

EXAMPLES = 20


@cache
def pocket(name: str) -> LanguageModel:
    return models.load(f"pocket:{name}")


def score(runner: Runner, task: str) -> float:
    return evaluate.evaluate(runner, evaluate.read_task(f"pocket:{task}", limit=EXAMPLES)).score


@pytest.mark.parametrize(
    ("source", "target", "task"),
    [
        ("llama", "qwen", "mood"),
        ("qwen", "mistral", "what"),
        ("neox", "llama", "json"),
        ("mistral", "neox", "pirate"),
    ],
)
def test_hosted_carries_labels_and_styles_to_another_family(source: str, target: str, task: str) -> None:
    lora = adapters.read(f"pocket:{source}/{task}", pocket(source))
    base = score(PlainRunner(pocket(target)), task)
    hosted = score(WordedRunner(pocket(source), lora, pocket(target)), task)
    assert base < 0.7
    assert hosted >= 0.9


def test_hosted_carries_two_adapters_at_once_and_its_folder_knows_both(tmp_path: Path) -> None:
    lora = adapters.read("pocket:llama/mood + pocket:llama/what", pocket("llama"))
    made = pipeline.translate_adapter(pocket("llama"), pocket("mistral"), lora, TranslationConfig("hosted"))
    made.save(tmp_path / "out", pocket("mistral"))
    opened = pipeline.open_adapter(tmp_path / "out", pocket("mistral"))
    assert min(score(opened, "mood"), score(opened, "what")) >= 0.9


def test_hosted_says_what_a_factor_on_the_targets_words_cannot() -> None:
    lora = adapters.read("pocket:llama/json", pocket("llama"))
    models_of_pair = pocket("llama"), pocket("mistral")
    proxy = score(BASELINES["proxy-tuning"].make(Given(*models_of_pair, lora)), "json")
    assert score(WordedRunner(models_of_pair[0], lora, models_of_pair[1]), "json") > proxy + 0.3
