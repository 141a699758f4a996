"""Heads of a visitor's own: trained, queued, cut short and gone on with, loaded, packed."""

import threading
import zipfile
from dataclasses import fields, replace

import pytest
from fake_backend import ended

from app import heads_words, live, views
from app.engine import Engine
from app.exports import Exports
from app.facts import FitOptions, FitRequest, LoadRequest
from app.jobs import Job, Jobs, JobState
from app.library import CastBackend, _fit_config
from app.shelf import HeadsShelf
from app.tabs import fit_form, heads_jobs
from app.workspace import Attached, Pair
from cast.errors import HeadsError, RequestError
from cast.fitting import FitConfig
from cast.progress import Progress

PAIR, OTHER = Pair("pocket:llama", "pocket:mistral"), Pair("pocket:qwen", "pocket:llama")
SHORT = FitRequest(PAIR, tokens=1000)


@pytest.fixture
def begin(backend, tmp_path):
    """A server's engine on what earlier ones have left; each call is a server started anew."""
    running = []

    def anew(workers=1):
        for jobs in running:
            jobs.close()
        running.append(Jobs(workers))
        return Engine(backend, running[-1], tmp_path / "temporary", None, kept=tmp_path / "kept")

    yield anew
    for jobs in running:
        jobs.close()


def over(engine, job_id):
    return ended(lambda: engine.job(job_id))


def stopped_halfway(engine, backend):
    backend.pace, backend.steps = 0.005, 4000
    job_id = engine.own.start(SHORT)
    reached = ended_when(lambda: (engine.job(job_id).progress or Progress("", 0, 1)).done >= 3)
    assert reached
    engine.cancel(job_id)
    assert over(engine, job_id).state is JobState.CANCELLED
    return job_id


def ended_when(true):
    gate = threading.Event()
    for _ in range(1000):
        if true():
            return True
        gate.wait(0.005)
    return False


def test_heads_outlive_the_server_for_their_visitor_alone(begin, backend):
    backend.without_heads = {(PAIR.source, PAIR.target), (OTHER.source, OTHER.target)}
    engine = begin()
    first = over(engine, engine.own.start(SHORT)).id
    second = over(engine, engine.own.start(replace(SHORT, pair=OTHER), first)).id
    for server in (engine, begin()):
        assert server.own.of(PAIR, second) == (PAIR.source, PAIR.target)
        assert server.own.of(OTHER, second) == (OTHER.source, OTHER.target)
        assert server.own.of(OTHER, first) is None
        assert server.own.of(PAIR, "") is None
        assert server.own.of(PAIR, "f" * 32) is None
        assert server.heads_facts(PAIR) is None


def test_a_fit_is_gone_on_with_after_a_restart_of_the_server(begin, backend):
    job_id = stopped_halfway(begin(), backend)
    engine = begin()
    assert engine.job(job_id) is None
    told, _, go_on, discard, _ = heads_jobs.job_updates(engine, job_id)
    assert "The server was started anew" in told
    assert (go_on["visible"], discard["visible"]) == (True, True)
    backend.pace, backend.steps = 0.0, 40
    heads_jobs.acted(engine, heads_jobs.go_on, Attached(heads_job=job_id).to_json())
    job = over(engine, job_id)
    assert job.state is JobState.DONE
    assert job.stage_began_at >= 3
    told, _, go_on, *_ = heads_jobs.job_updates(engine, job_id)
    assert "Done in" in told
    assert not go_on["visible"]


def test_a_cancelled_fit_can_be_gone_on_with_or_discarded(begin, backend):
    engine = begin()
    job_id = stopped_halfway(engine, backend)
    assert "Its newest checkpoint is kept" in heads_jobs.job_updates(engine, job_id)[0]
    heads_jobs.acted(engine, heads_jobs.discard, Attached(heads_job=job_id).to_json())
    assert not heads_jobs.job_updates(engine, job_id)[2]["visible"]
    with pytest.raises(RequestError, match="no unfinished fit"):
        engine.own.go_on(job_id)


def test_several_fits_wait_in_a_queue_and_each_says_its_place(begin, backend):
    backend.pace, backend.steps = 0.005, 4000
    engine = begin()
    newest = ""
    for _ in range(3):
        shown = heads_jobs.started(engine, Attached(heads_job=newest).to_json(), lambda: SHORT)
        newest = shown[-1]["heads_job"]
    assert ended_when(lambda: engine.own.asked(newest)[-1].job.state is JobState.RUNNING)
    told, cancel, *_ = heads_jobs.job_updates(engine, newest)
    assert "Waiting in the queue, 2 jobs before it" in told
    assert "Next in the queue" in told
    assert cancel["value"] == "Cancel the newest"
    kept = Attached(heads_job=newest).to_json()
    for _ in range(3):
        heads_jobs.acted(engine, heads_jobs.cancel, kept)
    assert ended_when(lambda: not any(asked.is_going for asked in engine.own.asked(newest)))


def test_heads_are_loaded_or_the_reason_is_said(begin, backend):
    backend.without_heads, backend.heads_at = {(PAIR.source, PAIR.target)}, {"me/heads"}
    engine = begin()
    job = over(engine, engine.own.start(LoadRequest(PAIR, "/nowhere")))
    assert (job.state, "holds no heads.json" in job.message) == (JobState.FAILED, True)
    job = over(engine, engine.own.start(LoadRequest(PAIR, "me/heads"), job.id))
    assert engine.heads_facts(PAIR, job.id) is not None
    for wrong in (LoadRequest(PAIR, ""), LoadRequest(Pair("", ""), "me/heads")):
        assert "cast-error" in heads_jobs.started(engine, {}, lambda asked=wrong: asked)[0]


def test_the_shelf_keeps_to_its_folder_and_to_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr("app.shelf._KEPT", 2)
    shelf = HeadsShelf(tmp_path)
    ids = [digit * 32 for digit in "abc"]
    asked = replace(SHORT, options=FitOptions(depths=(0, 6)))
    for job_id in ids:
        shelf.begin(job_id, asked, "")
    assert len(list((tmp_path / "own-heads").iterdir())) == 2
    assert shelf.entry(ids[-1]).request == asked
    for wrong in ("", "../" + "a" * 29, "A" * 32):
        assert shelf.entry(wrong) is None
        with pytest.raises(ValueError, match="no id"):
            shelf.heads(wrong)
    (tmp_path / "own-heads" / ids[-1] / "asked.json").write_text('{"kind": "fit", "request": {}}')
    assert shelf.entry(ids[-1]) is None


def test_heads_are_packed_for_download(begin, backend, tmp_path):
    engine = begin()
    exports = Exports(backend, engine, tmp_path)
    job_id = over(engine, engine.own.start(SHORT)).id
    for heads_job in (job_id, ""):  # one's own, and those that every visitor has
        found = exports.heads(PAIR, heads_job)
        with zipfile.ZipFile(found.archive) as packed:
            names = sorted(packed.namelist())
        place = "heads-llama-to-mistral"
        assert names == [f"{place}/{name}" for name in ("README.md", "heads.json", "heads.safetensors")]
    backend.without_heads = {(PAIR.source, PAIR.target)}
    assert exports.heads(OTHER, job_id) is not None


def test_the_form_asks_for_what_it_shows():
    untouched = ("quick", "mlp", "", 1.0, "", 32, 0.0, 1, 6, 112, 0)
    assert fit_form.request(PAIR, untouched) == FitRequest(PAIR, "", 40_000, "mlp")
    changed = ("best", "affine", "a.txt", 0, "6, 0 0", None, 0.01, 2, 3, 64, 5)
    options = FitOptions(0, (0, 6), 32, 0.01, 2, 3, 64, 5)
    assert fit_form.request(PAIR, changed) == FitRequest(PAIR, "a.txt", 400_000, "affine", options)
    with pytest.raises(RequestError, match="as numbers"):
        fit_form.request(PAIR, (*untouched[:4], "deep", *untouched[5:]))


def test_the_options_of_a_fit_are_the_librarys():
    config, plain = _fit_config(FitRequest(PAIR)), FitConfig()
    for field in fields(FitOptions):
        assert getattr(config, field.name) == getattr(plain, field.name), field.name
    assert _fit_config(FitRequest(PAIR, options=FitOptions(depths=(0, 6)))).depths == (0, 6)


def test_weak_depths_are_said_in_words(backend):
    facts = backend.heads_facts((PAIR.source, PAIR.target))
    assert heads_words.weakness(facts).startswith("No depth is weak")
    values = (0.9, 0.4, 0.3, 0.6, 0.45, 0.95, 0.2)
    depths = tuple(replace(d, r_squared=value) for d, value in zip(facts.depths, values, strict=True))
    words = heads_words.weakness(replace(facts, depths=depths))
    assert "Weak at target depths 1 to 2, 4 and 6:" in words
    assert "Middling at target depth 3:" in words
    assert "The last depth" in words
    assert views.heads_table(replace(facts, depths=depths)).count("class=weak") == 4


def test_a_running_fit_shows_loss_depths_and_tokens_a_second():
    history = tuple(Progress("heads", done, 1000, {"loss": 10.0 / done}) for done in (100, 200, 300))
    job = Job(
        "a" * 32, "heads", "Train.", JobState.RUNNING, stage_started=1.0, started=1.0, stage_began_at=100,
        progress=replace(history[-1], by_depth={0: 0.9, 1: -0.2, 2: 0.5}), history=history,
    )  # fmt: skip
    assert live.pace(job, 3.0) == "100 tokens a second"
    drawn = live.curves(job)
    assert "Training loss, 0.1 at first and 0.0333 now" in drawn
    assert "least at 1: -0.20" in drawn
    assert drawn.count("<rect") == 3
    reading = tuple(Progress("activations", done, 50, {"tokens": 30.0 * done}) for done in (10, 20))
    job = replace(job, stage_began_at=10, progress=reading[-1], history=reading)
    assert live.pace(job, 3.0) == "150 tokens a second"
    assert live.curves(job) == ""


def test_a_training_does_not_stop_another_visitors_generation(begin, backend):
    from test_app_engine import last, request

    backend.pace, backend.steps = 0.005, 4000
    engine = begin()
    job_id = engine.own.start(SHORT)
    assert ended_when(lambda: engine.job(job_id).state is JobState.RUNNING)
    assert {pane.state for pane in last(engine, request()).values()} == {"done"}
    assert not engine.job(job_id).is_over
    engine.cancel(job_id)


def test_real_heads_are_loaded_where_they_fit(tmp_path):
    backend = CastBackend()
    shipped = backend.heads_folder(backend.find_heads(backend.load(PAIR.source), backend.load(PAIR.target)))
    heads = backend.load_heads(LoadRequest(PAIR, str(shipped)), tmp_path / "mine", lambda told: None)
    assert backend.heads_facts(heads) == backend.heads_facts(backend.read_heads(tmp_path / "mine"))
    turned = LoadRequest(Pair(PAIR.target, PAIR.source), str(shipped))
    with pytest.raises(HeadsError, match="the other way"):
        backend.load_heads(turned, tmp_path / "other", lambda told: None)
    assert not (tmp_path / "other").exists()
