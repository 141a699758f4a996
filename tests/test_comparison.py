"""Methods beside one another: each is told as it ends, and one that does not fit spoils no other."""

from collections.abc import Callable

import pytest

from cast.comparison import Failure, compare, compared, ends_of_the_scale, methods_named, reference
from cast.errors import AdapterError, Cancelled, RequestError
from cast.evaluate import TaskData
from cast.pocket.tasks import Example
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
