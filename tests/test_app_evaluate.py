"""Evaluate behind the page: runs that are kept method by method, found again, and written out."""

import csv
import io
import json
import shlex
import threading
import time
from dataclasses import asdict, replace

import pytest
from conftest import TRAINING_TEXT
from fake_backend import ended

from app import plots, snippets, tables
from app.engine import Engine
from app.evaluations import Evaluations
from app.facts import FitOptions, FitRequest, MapRequest, TranslateRequest
from app.jobs import Jobs, JobState
from app.library import CastBackend
from app.runs import BASELINES, METHODS, READ_PROMPTS, Ends, EvaluateRequest, Kept, Missed, Run, RunStore
from app.tabs.steps import steps_of
from app.workspace import Selection
from cast import adapters
from cast.baselines import BASELINES as KNOWN_BASELINES
from cast.cli import build_parser
from cast.comparison import methods_named
from cast.errors import CastError, ModelError
from cast.progress import ignore
from cast.results import Result

CHOICE = Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood")
ASKED = EvaluateRequest(CHOICE, "pocket:mood", ("hosted", "naive-copy", "proxy-tuning"), 100)
VISITOR, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def made(backend, jobs, tmp_path):
    engine = Engine(backend, jobs, tmp_path, None, kept=tmp_path / "kept")
    return Evaluations(backend, engine, jobs, RunStore(tmp_path / "runs"), tmp_path)


def test_a_run_keeps_each_method_and_says_which_was_not_measured(made):
    run_id = made.start(VISITOR, ASKED)
    assert ended(lambda: made.job(run_id)).state is JobState.DONE
    run = made.run(VISITOR, run_id)
    assert (run.state, run.measured, run.task) == ("done", 3, "pocket:mood")
    assert [result.method for result in run.results] == ["hosted", "proxy-tuning"]
    assert [missed.method for missed in run.missed] == ["naive-copy"]
    assert run.ends == Ends("choice", 100, 0.2, 0.9, 0.25, 0.95)


def test_a_cancelled_run_keeps_what_had_ended(made, backend):
    going = threading.Event()

    class Slow(type(backend)):
        def compare(self, request, heads, on_progress):
            for told in super().compare(request, heads, on_progress):
                yield told
                if not isinstance(told, Ends):
                    self.pace, self.steps = 0.01, 10_000
                    going.set()

    made._backend = Slow()
    run_id = made.start(VISITOR, ASKED)
    assert going.wait(5)
    assert not made.cancel(OTHER, run_id)
    asked = time.monotonic()
    assert made.cancel(VISITOR, run_id)
    assert ended(lambda: made.job(run_id)).state is JobState.CANCELLED
    assert time.monotonic() - asked < 2
    run = made.run(VISITOR, run_id)
    assert (run.state, [result.method for result in run.results]) == ("cancelled", ["hosted"])
    assert "1 of 3 methods measured" in tables.running(made.job(run_id), run)


def test_a_failure_is_a_sentence_and_loses_nothing(made, tmp_path):
    task = tmp_path / "deep" / "mine.jsonl"
    task.parent.mkdir()
    task.write_text("not json\n")
    run_id = made.start(VISITOR, replace(ASKED, task=str(task)))
    job = ended(lambda: made.job(run_id))
    assert (job.state, job.message) == (
        JobState.FAILED,
        "mine.jsonl, line 1: not JSON; each line must be one object.",
    )
    assert made.run(VISITOR, run_id).message == job.message
    with pytest.raises(CastError, match=r"^mine\.jsonl, line 1"):
        made.task_file(task)
    with (tmp_path / "huge.jsonl").open("wb") as huge:
        huge.truncate(65 << 20)
    with pytest.raises(CastError, match=r"^huge\.jsonl is larger than 64 MiB"):
        made.start(VISITOR, replace(ASKED, train=huge.name))
    with pytest.raises(CastError, match=r"^gone\.jsonl cannot be read"):
        made.task_file(tmp_path / "gone.jsonl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"selection": Selection("pocket:llama", "", "")}, "Choose a source"),
        ({"task": ""}, "Choose a task"),
        ({"methods": ()}, "at least one method"),
        ({"limit": 0}, "Between 1 and 500"),
        ({"retrained": "a", "train": "b"}, "choose one"),
    ],
)
def test_wrong_requests_are_sentences(made, change, words):
    with pytest.raises(CastError, match=words):
        made.start(VISITOR, replace(ASKED, **change))
    assert made.runs(VISITOR) == []


def test_runs_are_found_again_after_a_restart_by_their_own_visitor_only(made, backend, tmp_path):
    run_id = made.start(VISITOR, ASKED)
    ended(lambda: made.job(run_id))
    half = replace(made.run(VISITOR, run_id), id="c" * 32, state="running", results=())
    store = RunStore(tmp_path / "runs")
    store.write(VISITOR, half)
    again = Jobs()
    later = Evaluations(
        backend, Engine(backend, again, tmp_path, None, kept=tmp_path / "kept"), again, store, tmp_path
    )
    assert {run.id: run.state for run in later.runs(VISITOR)} == {run_id: "done", half.id: "failed"}
    assert "restarted" in later.run(VISITOR, half.id).message
    assert later.run(VISITOR, run_id) == made.run(VISITOR, run_id)
    assert later.runs(OTHER) == []
    assert later.run(OTHER, run_id) is None
    later.forget(OTHER, [run_id])
    later.forget(VISITOR, [half.id, "../" + run_id])
    assert [run.id for run in later.runs(VISITOR)] == [run_id]
    again.close()


def test_a_run_that_is_cancelled_in_the_queue_says_so(made, jobs):
    free = threading.Event()
    for _ in range(2):
        jobs.start("other", "Other work.", lambda on_progress: free.wait(10))
    run_id = made.start(VISITOR, ASKED)
    assert made.cancel(VISITOR, run_id)
    assert made.run(VISITOR, run_id).state == "cancelled"
    free.set()


def run_of(*results, run_id="d" * 32, ends=None, missed=()):
    names = ("2026-01-02T03:04:05.678", CHOICE.source, CHOICE.target, CHOICE.adapter, "pocket:mood")
    methods = tuple(result.method for result in results)
    return Run(run_id, *names, methods, "done", ends=ends, results=results, missed=missed)


def result(method="hosted", lift=0.5, **change):
    known = Result(
        method, CHOICE.source, CHOICE.target, "pocket:mood", 0, "choice", 0.2, 0.55, 0.9, 0.95, lift,
        None if lift is None else (lift - 0.1, lift + 0.2), -0.01, seconds=2.0, versions={},
    )  # fmt: skip
    return replace(known, **change)


def test_the_store_keeps_the_newest_and_reads_only_what_it_wrote(tmp_path):
    store = RunStore(tmp_path)
    for number in range(55):
        store.write(
            VISITOR, replace(run_of(result()), id=f"{number:032x}", started=f"2026-01-01T00:00:{number:02}")
        )
    kept = store.runs(VISITOR)
    assert (len(kept), kept[0].id, kept[-1].id) == (50, f"{54:032x}", f"{5:032x}")
    timeless = json.dumps(asdict(replace(run_of(), started="today")))
    for number, text in enumerate(("{", "[]", '{"ends": 3}', timeless, "x" * (2 << 20))):
        (tmp_path / VISITOR / f"{number:032x}.json").write_text(text)
    assert store.runs(VISITOR) == kept
    with pytest.raises(CastError, match="reload"):
        store.write("../elsewhere", kept[0])
    assert store.runs("../" + VISITOR) == []
    assert store.run(VISITOR, "../secret") is None


def test_a_browser_keeps_ids_only():
    assert Kept.from_json(Kept(VISITOR, OTHER).to_json()) == Kept(VISITOR, OTHER)
    for wrong in (None, [], {"visitor": "../x", "run": 3}, {"visitor": VISITOR.upper()}):
        assert Kept.from_json(wrong) == Kept()


def test_csv_and_json_hold_every_figure(made):
    run = run_of(result(), result("naive-copy", None, retrained=None, off_task=None))
    table, record = made.written(VISITOR, [run])
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["method"] for row in rows] == ["hosted", "naive-copy"]
    figures = {
        "lift": 0.5, "lift_low": 0.4, "lift_high": 0.7, "off_task": -0.01, "ratio": 0.55 / 0.9, "seconds": 2,
    }  # fmt: skip
    assert {name: float(rows[0][name]) for name in figures} == figures
    assert (rows[1]["lift"], rows[1]["ratio"], rows[1]["off_task"]) == ("", "", "")
    (kept,) = json.loads(record.read_text())
    assert kept["results"][0]["interval"] == [0.4, 0.7]
    with pytest.raises(CastError, match="reload"):
        made.written("../x", [run])


def test_the_table_is_escaped_sortable_and_says_what_is_missing():
    evil = "<script>"
    ends = Ends("choice", 20, 0.2, None, 0.3, 0.9)
    first = run_of(result(), ends=ends, missed=(Missed("naive-copy", f"No {evil}."),))
    second = replace(run_of(result("instant", None), run_id="e" * 32, ends=ends), target=evil)
    html = tables.table([first, second])
    assert evil not in html
    assert html.count('<th scope="col" aria-sort=') == 8  # a column for the runs among them
    assert 'data-value="0.5"' in html
    assert '0.50 <span class="control">[0.40, 0.70]</span>' in html
    assert "−1.0 %" in html
    assert "There is no LoRA retrained on" in html
    assert "Naive copy was not measured." in html
    weak = run_of(result(lift=None), ends=replace(ends, retrained=0.25))
    assert "gains too little" in tables.table([weak])
    assert "appears here" in tables.table([])


def test_the_plot_has_a_dot_and_an_interval_a_method():
    first, second = run_of(result(), result("proxy-tuning", 0.9)), run_of(result(lift=0.7), run_id="e" * 32)
    figure = plots.recovered_lift([first, second])
    assert [len(trace.x) for trace in figure.data] == [2, 1]
    assert figure.data[0].error_x.array == pytest.approx((0.2, 0.2))
    assert figure.data[0].error_x.arrayminus == pytest.approx((0.1, 0.1))
    assert len(set(figure.data[0].marker.color)) == 2
    assert figure.layout.showlegend
    without = plots.recovered_lift([run_of(result(lift=None, retrained=None))])
    assert without.layout.xaxis.title.text == "Score"
    assert list(without.data[0].x) == [0.55]
    assert plots.recovered_lift([run_of()]) is None


def test_what_is_offered_is_what_the_library_has():
    assert set(BASELINES) == set(KNOWN_BASELINES)
    assert {name for name in BASELINES if KNOWN_BASELINES[name].needs_prompts} == READ_PROMPTS - {"compiled"}
    assert [method.mode for method in methods_named(METHODS)] == [name.split("-")[0] for name in METHODS]


def parsed(line):
    """A shown command line as the command line itself reads it."""
    program, *arguments = shlex.split(line)
    assert program == "cast"
    return build_parser().parse_args(arguments)


@pytest.mark.parametrize(("slider", "steps"), [(0, None), (40.0, 40)])
def test_steps_that_are_nought_are_left_to_the_target(slider, steps):
    assert steps_of(slider) == steps


def test_the_command_lines_are_the_ones_that_the_program_takes():
    asked = replace(
        ASKED, selection=replace(CHOICE, source="/my models/a'b"), methods=("compiled", "hosted-1"), steps=40,
        prompts=("Who?",), train="/t/train.jsonl", corpus="c",
    )  # fmt: skip
    read = parsed(snippets.compare(asked))
    assert (read.source, read.methods, read.limit) == ("/my models/a'b", "compiled,hosted-1", 100)
    assert (read.steps, read.prompts, read.train, read.corpus) == (40, "prompts.txt", "/t/train.jsonl", "c")
    assert parsed(snippets.compare(ASKED)).prompts is None

    hosted = parsed(snippets.translate(TranslateRequest(replace(CHOICE, segment=2), 100, ("a",))))
    assert (hosted.mode, hosted.segment, hosted.steps, hosted.prompts) == ("hosted", "2", None, None)
    compiled = parsed(snippets.translate(TranslateRequest(replace(CHOICE, mode="compiled"), 60, ("a",))))
    assert (compiled.steps, compiled.prompts, compiled.target) == (60, "prompts.txt", [CHOICE.target])
    assert not compiled.as_they_stand
    distilled = parsed(snippets.compare(replace(asked, methods=("self-distillation",))))
    assert (distilled.steps, distilled.prompts) == (40, "prompts.txt")
    # What suits the target is nothing to be told.
    open_ended = replace(CHOICE, mode="compiled")
    assert parsed(snippets.translate(TranslateRequest(open_ended))).steps is None
    assert parsed(snippets.compare(replace(ASKED, methods=("compiled",)))).steps is None
    edited = TranslateRequest(replace(CHOICE, mode="compiled"), 60, ("a",), expand=False)
    assert parsed(snippets.translate(edited)).as_they_stand
    fit = parsed(
        snippets.fit(
            FitRequest(CHOICE.pair, "a b.txt", 40_000, "affine", FitOptions(depths=(0, 6), repeats=3))
        )
    )
    assert (fit.tokens, fit.head, fit.corpus) == (40_000, "linear", "a b.txt")
    assert (fit.depths, fit.repeats, fit.passes) == ((0, 6), 3, None)
    drawn = parsed(snippets.manifold(MapRequest(CHOICE, 3, 2, 400, "own", 3, "pca")))
    assert (drawn.layer, drawn.source_layer, drawn.points, drawn.adapter) == (3, 2, 400, CHOICE.adapter)
    assert (drawn.view, drawn.dimensions, drawn.method) == ("own", 3, "pca")
    bare = parsed(snippets.manifold(MapRequest(CHOICE, 3, adapter=False)))
    assert (bare.adapter, bare.source_layer) == (None, None)
    assert parsed(snippets.push("mood-for-mistral", "me/x", True)).private


@pytest.fixture(scope="module")
def tiny(tiny_model, tiny_lora, tmp_path_factory):
    """A pair of tiny models with an adapter, as folders, and a task file."""
    folder = tmp_path_factory.mktemp("tiny")
    source, target = tiny_model("llama"), tiny_model("gpt_neox", width=24)
    for lm, name in ((source, "source"), (target, "target")):
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    adapters.write(tiny_lora(source, roles={"q", "v"}), folder / "adapter", source, card="")
    lines = [{"prompt": f"{n} fox:", "completion": " owl", "choices": [" owl", " moon"]} for n in range(4)]
    (folder / "task.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "general.txt").write_text(
        "\n\n".join(f"{text} {n}" for n in range(20) for text in TRAINING_TEXT)
    )
    return Selection(*(str(folder / name) for name in ("source", "target", "adapter"))), folder


def test_the_real_library_measures_a_task_file(tiny):
    chosen, folder = tiny
    backend, task = CastBackend(), str(folder / "task.jsonl")
    assert backend.task(task, 3).examples == 3
    asked = EvaluateRequest(
        chosen, task, ("hosted", "naive-copy", "proxy-tuning"), 3, corpus=str(folder / "general.txt")
    )
    ends, *told = backend.compare(asked, None, ignore)
    assert (ends.metric, ends.examples, ends.retrained) == ("choice", 3, None)
    assert [type(one) for one in told] == [Result, Missed, Result]
    assert told[0].examples == 3
    assert told[0].peak_memory_bytes > 0
    with pytest.raises(ModelError):
        list(backend.compare(replace(asked, selection=replace(chosen, source="/no/such")), None, ignore))
