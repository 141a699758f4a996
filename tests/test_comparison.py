"""Methods beside one another: each is told as it ends, and one that does not fit spoils no other."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from cast.comparison import (
    Failure,
    compare,
    compared,
    ends_of_the_scale,
    method_name,
    methods_named,
    reference,
)
from cast.errors import AdapterError, Cancelled, RequestError
from cast.evaluate import TaskData
from cast.pocket.tasks import Example
from cast.recipes import TranslationConfig
from cast.results import Result

TASK = TaskData("colours", tuple(Example(f"The fox met {name}:", " owl", (" owl", " moon")) for name in "ab"))


@pytest.fixture(scope="module")
def given(tiny_model: Callable, tiny_lora: Callable):
    source, target = tiny_model("llama"), tiny_model("gpt_neox", width=24)
    return source, target, tiny_lora(source, roles={"q", "v", "o"})


@pytest.fixture(scope="module")
def ends(given):
    return ends_of_the_scale(*given, TASK, retrained=None, text="pocket")


def test_a_method_that_does_not_fit_takes_nothing_from_the_others(given, ends) -> None:
    names = ("hosted", "naive-copy", "truncate-and-pad", "proxy-tuning")
    outcomes = list(compared(*given, ends, methods_named(names), text="pocket"))
    assert [outcome.method for outcome in outcomes] == list(names)
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False, False]
    assert all(o.examples == 2 and o.off_task is not None for o in outcomes if isinstance(o, Result))
    with pytest.raises(AdapterError, match="No kernel"):
        compare(*given, ends, methods_named(["naive-copy"]), text="pocket")


def test_what_has_ended_is_there_when_the_next_is_cancelled(given, ends) -> None:
    kept: list[object] = []

    def cancel_the_second(report: object) -> None:
        if kept:
            raise Cancelled("enough")

    outcomes = compared(
        *given, ends, methods_named(["hosted", "proxy-tuning"]), text="pocket", on_progress=cancel_the_second
    )
    kept.append(next(outcomes))
    assert isinstance(kept[0], Result)
    with pytest.raises(Cancelled):
        next(outcomes)


def test_a_reference_is_read_or_trained_not_both(given) -> None:
    with pytest.raises(RequestError, match="choose one"):
        reference(given[1], "pocket:mood", retrained="a", train="b")
    assert reference(given[1], "pocket:mood") is None


@pytest.mark.parametrize("name", ["compiled", "compiled-general", "hosted", "hosted-states", "hosted-2"])
def test_a_method_is_called_what_it_was_asked_for_as(name: str) -> None:
    (config,) = methods_named([name], seed=3)
    assert isinstance(config, TranslationConfig)
    assert method_name(config) == name
    assert config.text_kind(()) == ("self-generated" if name == "compiled" else "general")


@pytest.mark.parametrize("name", ["compiled-states", "instant-2", "hosted-general", "hosted-0"])
def test_a_method_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="no method"):
        methods_named([name])


def test_a_baseline_that_reads_prompts_gets_the_adapters_answers_to_them(given, ends) -> None:
    methods = methods_named(["self-distillation"], steps=2)
    prompts = [example.prompt for example in TASK.examples]
    methods = [replace(method, config=replace(method.config, prompts_wanted=4)) for method in methods]
    (outcome,) = compared(*given, ends, methods, text="pocket", prompts=prompts)
    assert isinstance(outcome, Result)
    assert (outcome.method, outcome.text) == ("self-distillation", "prompts")
    assert 0 < outcome.tokens < 500
    (without,) = compared(*given, ends, methods, text="pocket")
    assert isinstance(without, Failure)
    assert "example prompts" in str(without.error)
