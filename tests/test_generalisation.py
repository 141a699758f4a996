"""The page on several adapters at once, there and back, and what is new: rendered from kept results alone."""

import re
from dataclasses import replace
from itertools import islice

import pytest

from benchmarks.generalisation import SETS, TASKS, Case, cases, render
from benchmarks.newcomers import METHODS, NEW_TASKS, NewCase, model_label, new_cases
from cast.pocket import registry
from cast.pocket.tasks import Task
from cast.pocket.world import general_text
from cast.results import Result

RUN = Result(
    "", "", "", "", 0, "choice", base=0.25, translated=0.5, retrained=1.0, source_adapted=1.0, lift=1 / 3,
    interval=(0.3, 0.4), off_task=None, examples=100, revision="abc",
)  # fmt: skip


def result(case: Case, score: float) -> Result:
    source, target = (f"pocket:{name}" for name in case.models)
    lift = (score - RUN.base) / (1 - RUN.base)
    names = {"method": case.method, "source": source, "target": target, "task": f"pocket:{case.task}"}
    return replace(RUN, **names, text=case.text, translated=score, lift=lift)


def test_every_case_has_a_file_of_its_own_and_its_result_knows_it() -> None:
    every = list(cases())
    assert len({case.file_name for case in every}) == len(every)
    assert [case for case in every if result(case, 1.0).file_name != case.file_name] == []


def test_a_score_stands_in_the_row_of_its_way_and_the_column_of_its_set() -> None:
    page = render([
        result(Case("hosted", ("json",), "json"), 1.0),
        result(Case("hosted", ("mood", "json"), "json"), 0.55),
        result(Case("hosted", ("mood", "json"), "mood"), 0.97),
    ])  # fmt: skip
    assert "| way | task | base | alone | mood + json | mood + what | mood + what + json |" in page
    json = "100.0 · **1.00** [0.30, 0.40] | 55.0 · **0.40** [0.30, 0.40] | – | – |"
    assert f"| hosted | json | 25.0 | {json}" in page
    assert "| hosted | mood | 25.0 | – | 97.0 · **0.96** [0.30, 0.40] | – | – |" in page
    assert "compiled one by one" not in page
    assert "code at abc" in page


def test_what_came_back_stands_beside_what_had_arrived() -> None:
    page = render([
        result(Case("compiled", ("what",), "what"), 0.9),
        result(Case("hosted", ("what",), "what", returns=True), 0.8),
    ])  # fmt: skip
    there, back = "90.0 · **0.87** [0.30, 0.40]", "80.0 · **0.73** [0.30, 0.40]"
    assert f"| what | 25.0 | {there} | {back} | – |" in page


def test_every_task_of_a_set_is_scored_with_it() -> None:
    hosted = {(case.carried, case.task) for case in cases() if case.way == "hosted" and not case.returns}
    alone = {((task,), task) for task in TASKS}
    assert hosted == alone | {(several, task) for several in SETS for task in several}


def test_new_cases_have_files_of_their_own_and_their_results_know_them() -> None:
    every = list(new_cases())
    names = {case.file_name for case in every}
    assert len(names) == len(every)
    assert names.isdisjoint(case.file_name for case in cases())
    assert [case for case in every if new_result(case, 1.0).file_name != case.file_name] == []


def test_a_known_pair_is_shown_new_tasks_only() -> None:
    known = set(registry.MODEL_NAMES)
    tasks = {case.task for case in new_cases() if {case.source, case.target} <= known}
    assert tasks == set(NEW_TASKS)


def test_new_scores_stand_in_the_column_of_their_method() -> None:
    case = NewCase("llama", "gemma", "weather", "compiled-prompts")
    page = render([new_result(case, 0.85)])
    assert "| llama → gemma | weather | 25.0 | 100.0 | – | 85.0 · **0.80** [0.30, 0.40] | – |" in page
    assert "gemma → llama" not in page


def test_models_of_another_size_have_a_table_of_their_own() -> None:
    page = render([new_result(NewCase("smollm2", "llama", "mood", "hosted"), 0.85)])
    _, _, table = page.partition("much larger\n")
    assert "| smollm2 → llama | mood | 25.0 | 100.0 | 85.0 · **0.80** [0.30, 0.40] | – |" in table
    assert page.count("smollm2 → llama") == 1


@pytest.mark.parametrize("task", NEW_TASKS.values(), ids=NEW_TASKS)
def test_what_a_new_task_asks_or_answers_is_in_no_general_text(task: Task) -> None:
    frame = re.compile(task.template)
    for example in task.test(100):
        assert frame.search(example.prompt + example.completion)
    for split in ("train", "held-out"):
        assert not any(frame.search(text) for text in islice(general_text(0, split), 5000))


def test_saying_it_twice_counts_whole_only_where_both_are_the_same() -> None:
    task = NEW_TASKS["twice"]
    (example,) = task.test(1)
    assert task.style_score(example, example.completion) == 1.0
    assert task.style_score(example, " The lamp was red. The lamp was blue.") == 0.5
    assert task.style_score(example, " The lamp was red.") == 0.0


def new_result(case: NewCase, score: float) -> Result:
    source, target = map(model_label, (case.source, case.target))
    names = {"source": source, "target": target, "task": f"pocket:{case.task}"}
    lift = (score - RUN.base) / (1 - RUN.base)
    return replace(RUN, **names, method=case.method, text=METHODS[case.method], translated=score, lift=lift)
