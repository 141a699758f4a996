"""The engine behind the page, on a stand-in for the library."""

import dataclasses
import threading
from dataclasses import replace

import pytest
from fake_backend import DEPTHS, ended

from app.cache import Cache
from app.engine import Engine, GenerateRequest, TranslateResult
from app.facts import FitRequest, Opened, SamplingChoice, TranslateRequest
from app.jobs import JobState
from app.tabs.pick import PickTab, waiting
from app.views import PANE_TITLES, PANES
from app.workspace import Attached, Beside, Pair, Selection
from cast.errors import CastError, RequestError

CHOICE = Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood")


@pytest.fixture
def engine(backend, jobs, tmp_path):
    return Engine(backend, jobs, tmp_path, None, kept=tmp_path / "kept")


def request(selection=CHOICE, prompt="Who?", job="", folder="", strength=1.0, tokens=8):
    made = Attached(translate_job=job, folder=folder)
    return GenerateRequest(selection, strength, prompt, SamplingChoice(tokens, 0.0, 0), made)


def over(engine, job_id):
    return ended(lambda: engine.job(job_id), seconds=5)


def last(engine, asked):
    *_, shown = engine.generate(asked)
    return {pane.key: pane for pane in shown}


def test_four_panes_stream_to_their_end(engine):
    shown = last(engine, request(strength=0.5))
    assert tuple(shown) == PANES
    assert {pane.state for pane in shown.values()} == {"done"}
    assert shown["source"].text.startswith(" pocket:llama says nothing")
    assert shown["source_adapter"].text.startswith(" pocket:llama says mood")
    assert shown["target_adapter"].text.startswith(" pocket:mistral says hosted mood whole x0.5")


def test_the_retrained_adapter_and_a_second_way_stand_beside_with_strengths_of_their_own(engine):
    beside = Beside(1.5, engine.retrained(CHOICE), 0.5, "hosted", 2.0)
    shown = last(engine, replace(request(), beside=beside))
    assert tuple(shown) == tuple(PANE_TITLES)
    assert shown["source_adapter"].text.startswith(" pocket:llama says mood x1.5")
    assert shown["target_adapter"].text.startswith(" pocket:mistral says hosted mood whole x1 ")
    assert shown["second"].text.startswith(" pocket:mistral says hosted mood whole x2")
    assert shown["retrained"].text.startswith(" pocket:mistral says mood x0.5")
    assert shown["retrained"].name == "pocket:mistral/mood, strength 0.5"
    moved = {key: [mark.text for mark in shown[key].marks if mark.change > 1] for key in shown}
    assert (moved["second"], moved["retrained"], moved["target"]) == ([" hosted"], [" mood"], [])


def test_what_is_wrong_with_a_further_pane_is_its_own_sentence(engine):
    beside = Beside(retrained="pocket:qwen/mood", second_mode="instant")
    shown = last(engine, replace(request(), beside=beside))
    assert "another model than pocket:mistral" in shown["retrained"].text
    assert "press Translate" in shown["second"].text
    assert {shown[key].state for key in PANES} == {"done"}


def test_only_another_shipped_adapter_of_the_same_task_is_the_retrained_one(engine):
    assert engine.retrained(CHOICE) == "pocket:mistral/mood"
    assert engine.retrained(replace(CHOICE, target="pocket:llama")) == ""
    assert engine.retrained(replace(CHOICE, target="/my/model")) == ""
    assert engine.retrained(replace(CHOICE, adapter="me/mood")) == ""


def test_the_last_two_translations_can_stand_side_by_side(engine):
    compiled, instant = (replace(CHOICE, mode=mode) for mode in ("compiled", "instant"))
    earlier, later = (
        over(engine, engine.start_translate(TranslateRequest(c, 1))).id for c in (compiled, instant)
    )
    made = Attached(translate_job=later, earlier_job=earlier)
    asked = replace(request(instant), made=made, beside=Beside(second_mode="compiled"))
    shown = last(engine, asked)
    assert shown["target_adapter"].text.startswith(" pocket:mistral says instant mood")
    assert shown["second"].text.startswith(" pocket:mistral says compiled mood")
    assert engine.translated_folder(compiled, made) != engine.translated_folder(instant, made)


def test_without_heads_words_cross_and_block_by_block_says_so(engine, backend):
    backend.without_heads.add((CHOICE.source, CHOICE.target))
    assert last(engine, request())["target_adapter"].state == "done"
    shown = last(engine, request(replace(CHOICE, segment=2)))
    assert shown["target_adapter"].state == "note"
    assert "Heads tab" in shown["target_adapter"].text
    assert shown["target"].state == "done"


def test_a_mode_without_translation_asks_for_one(engine):
    shown = last(engine, request(replace(CHOICE, mode="compiled")))
    assert "press Translate" in shown["target_adapter"].text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(prompt="  "), "Write a prompt"),
        (request(prompt="x" * 5000), "5,000 characters"),
        (request(Selection("pocket:llama", "pocket:mistral", "")), "Choose an adapter"),
        (request(Selection("nowhere", "pocket:mistral", "nowhere/mood")), "no model nowhere"),
        (request(Selection("pocket:llama", "pocket:mistral", "pocket:qwen/mood")), "another model"),
    ],
)
def test_wrong_requests_are_sentences(engine, asked, words):
    with pytest.raises(CastError, match=words):
        list(engine.generate(asked))


def test_a_stopped_generation_closes_its_streams(engine, backend):
    stream = engine.generate(request(tokens=800))
    next(stream)
    next(stream)
    assert backend.open_streams == 4
    stream.close()
    assert backend.open_streams == 0


def test_models_are_loaded_once_for_all_visitors(engine, backend):
    threads = [threading.Thread(target=lambda: list(engine.generate(request()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(backend.loads) == ["pocket:llama", "pocket:mistral"]


def test_opposite_pairs_do_not_lock_each_other_out(engine):
    back = Selection("pocket:mistral", "pocket:llama", "pocket:mistral/mood")
    done = []
    threads = [
        threading.Thread(target=lambda s=selection: done.append(last(engine, request(s, tokens=80))))
        for selection in (CHOICE, back) * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 6


def test_a_translation_is_used_by_the_visitor_who_made_it_only(engine):
    compiled = replace(CHOICE, mode="compiled")
    job = over(engine, engine.start_translate(TranslateRequest(compiled, 10)))
    assert job.state is JobState.DONE
    assert isinstance(job.result, TranslateResult)
    assert job.result.archive.suffix == ".zip"
    assert last(engine, request(compiled, job=job.id))["target_adapter"].text.startswith(
        " pocket:mistral says compiled mood"
    )
    assert last(engine, request(compiled))["target_adapter"].state == "note"
    other = replace(compiled, target="pocket:qwen")
    assert last(engine, request(other, job=job.id))["target_adapter"].state == "note"


def opened(folder, selection, strength=1.0):
    return {folder: Opened(folder, selection, strength, 1)}


@pytest.mark.parametrize("way", [("hosted", None), ("hosted", 2), ("kernel", None), ("compiled", None)])
def test_a_translated_folder_stands_for_what_it_was_made_of(engine, backend, way):
    mode, segment = way
    made = replace(CHOICE, target="pocket:qwen", mode=mode, segment=segment)
    backend.folders = opened("/out", made)
    assert engine.opened(replace(CHOICE, adapter="/out")).selection == made
    assert engine.opened(CHOICE) is None
    pane = last(engine, request(made, folder="/out", strength=0.5))["target_adapter"]
    assert pane.text.startswith(f" pocket:qwen says reopened {made.way} x0.5")
    assert pane.name == f"{made.way}, strength 0.5"


def test_a_folder_serves_its_own_choice_only(engine, backend):
    backend.folders = opened("/out", replace(CHOICE, segment=2))
    other = last(engine, request(replace(CHOICE, segment=3), folder="/out"))["target_adapter"]
    assert other.text.startswith(" pocket:mistral says hosted mood 3 x1")
    assert engine.still_open("/out", replace(CHOICE, mode="instant"))
    assert engine.still_open("/out", replace(CHOICE, target="pocket:qwen")) is None
    backend.damaged = {"/out"}
    assert engine.still_open("/out", CHOICE) is None


def test_a_translated_lora_of_the_source_itself_may_be_carried_on(engine, backend):
    first = replace(CHOICE, mode="compiled")
    backend.folders = opened("/first", first) | opened(
        "/second", Selection("pocket:mistral", "pocket:qwen", "/first")
    )
    assert engine.opened(Selection("pocket:mistral", "pocket:qwen", "/first")) is None
    assert engine.opened(Selection("pocket:llama", "pocket:qwen", "/first")).selection == first
    assert engine.opened(Selection("pocket:llama", "pocket:qwen", "/second")).selection.adapter == "/first"


def test_a_recipe_whose_adapter_is_a_recipe_is_refused(engine, backend):
    backend.folders = opened("/a", replace(CHOICE, adapter="/b")) | opened(
        "/b", replace(CHOICE, adapter="/a")
    )
    with pytest.raises(CastError, match="which is none of pocket:llama"):
        engine.opened(replace(CHOICE, adapter="/a"))


def test_a_hosted_translation_can_be_kept(engine):
    chosen = replace(CHOICE, segment=2)
    job = over(engine, engine.start_translate(TranslateRequest(chosen, 1)))
    assert job.result.selection == chosen
    pane = last(engine, request(chosen, job=job.id, strength=0.5))["target_adapter"]
    assert pane.text.startswith(" pocket:mistral says hosted, 2 blocks a segment mood x0.5")


def test_trained_heads_serve_their_visitor(engine, backend):
    pair = Pair(CHOICE.source, CHOICE.target)
    backend.without_heads.add((pair.source, pair.target))
    assert engine.heads_facts(pair) is None
    job = over(engine, engine.own.start(FitRequest(pair, "pocket", 1000, "mlp")))
    assert engine.heads_facts(pair, job.id).tokens == 120_000
    assert engine.heads_facts(pair) is None
    assert engine.heads_facts(Pair("pocket:qwen", "pocket:llama"), job.id) is not None


def test_jobs_need_a_choice(engine):
    with pytest.raises(RequestError, match="Choose a source"):
        engine.start_translate(TranslateRequest(Selection("", "", ""), 10))
    with pytest.raises(RequestError, match="Choose a source"):
        engine.own.start(FitRequest(Pair("pocket:llama", ""), "pocket", 10, "mlp"))


def test_the_layer_map_spans_both_stacks(engine):
    table = engine.layer_map(engine.facts(CHOICE))
    assert (table[0], table[-1], len(table)) == (0, DEPTHS[CHOICE.source], DEPTHS[CHOICE.target] + 1)
    assert list(table) == sorted(table)


def test_the_cache_drops_the_least_recently_used_and_keeps_no_errors():
    cache = Cache(2)
    made = []

    def make(key):
        made.append(key)
        return key

    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, lambda key=key: make(key))
    assert made == ["a", "b", "c", "b"]
    with pytest.raises(ZeroDivisionError):
        cache.get("d", lambda: 1 / 0)
    assert cache.get("d", lambda: "d") == "d"


def test_what_the_adapter_moved_is_marked_beside_each_bare_model(engine):
    shown = last(engine, request())
    assert [mark.text for mark in shown["source_adapter"].marks if mark.change > 1] == [" mood"]
    assert [mark.text for mark in shown["target_adapter"].marks if mark.change > 1] == [" hosted"]
    assert shown["source"].marks == shown["target"].marks == ()


def test_an_answer_that_cannot_be_marked_stays(engine, backend, monkeypatch):
    def fail(*_):
        raise RequestError("too long")

    monkeypatch.setattr(backend, "marks", fail)
    assert last(engine, request())["source_adapter"].text.startswith(" pocket:llama says mood")


def test_the_facts_of_the_last_choice_go_until_those_of_the_next_are_read(engine):
    tab = PickTab(*(f"widget {number}" for number in range(len(dataclasses.fields(PickTab)))))
    assert "asked of the Hub" not in waiting(tab, engine, CHOICE)[tab.picture]
    engine.facts(CHOICE)
    assert waiting(tab, engine, CHOICE) == {}
    slow = dataclasses.replace(CHOICE, source="someone/model")
    shown = waiting(tab, engine, slow)
    assert shown[tab.summary] == shown[tab.expected] == ""
    assert "asked of the Hub" in shown[tab.picture]
