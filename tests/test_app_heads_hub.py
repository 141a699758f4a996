"""Heads that come from the Hub and go to it, behind the page, against a small Hub on this machine."""

from dataclasses import replace

import pytest
from fake_backend import ended
from fake_hub import FakeRepo, reachable_hub

from app.engine import Engine
from app.exports import Exports
from app.facts import LoadRequest
from app.jobs import JobState
from app.library import CastBackend
from app.tabs import heads_jobs
from app.workspace import Attached, Pair
from cast.errors import HubError, RequestError
from cast.pocket import registry

PAIR = Pair("pocket:llama", "pocket:mistral")
TURNED = Pair(PAIR.target, PAIR.source)
TOKEN = "hf_secretsecretsecret"
FILES = {"README.md", "heads.json", "heads.safetensors"}


@pytest.fixture(scope="module")
def library():
    return CastBackend()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that holds the heads of the pair, and some that are none."""
    shipped = {p.name: p.read_bytes() for p in registry.heads_folder("llama", "mistral").iterdir()}
    with reachable_hub(monkeypatch, tmp_path / "hub") as running:
        running.repos = {
            "me/heads": FakeRepo({**shipped, "evil.pkl": b"evil"}),
            "me/damaged": FakeRepo({**shipped, "heads.json": b"{"}),
            "me/halved": FakeRepo({"heads.json": shipped["heads.json"]}),
            "me/gated": FakeRepo(shipped, status=403, error_code="GatedRepo"),
            "me/model": FakeRepo({"config.json": b"{}"}),
        }
        yield running


@pytest.fixture
def engine(library, jobs, tmp_path):
    return Engine(library, jobs, tmp_path / "work", None, kept=tmp_path / "kept")


def loaded(engine, name, pair=PAIR, earlier=""):
    """What the tab's handler starts, once it has come to its end."""
    shown = heads_jobs.started(engine, Attached(heads_job=earlier).to_json(), lambda: LoadRequest(pair, name))
    return ended(lambda: engine.job(shown[-1]["heads_job"]), seconds=60)


def test_heads_come_from_the_hub_and_serve_their_visitor(engine, hub, tmp_path):
    job = loaded(engine, "me/heads")
    assert (job.state, job.title) == (
        JobState.DONE,
        "Load heads from me/heads for pocket:llama to pocket:mistral.",
    )
    assert engine.heads_facts(PAIR, job.id) == engine.heads_facts(PAIR)
    folder = engine.heads_folder(PAIR, job.id)
    assert {path.name for path in folder.iterdir()} == FILES
    assert engine.heads_folder(PAIR) != folder
    assert not any("evil.pkl" in asked for asked in hub.requests)

    hub.repos.clear()  # what was loaded is the visitor's own, whatever becomes of the repository
    assert engine.own.entry_of(PAIR, job.id).finished


@pytest.mark.parametrize(
    ("name", "pair", "words"),
    [
        ("me/nothing", PAIR, "The Hub has no repository me/nothing"),
        ("me/heads", TURNED, "the other way; use or fit heads for pocket:mistral → pocket:llama"),
        ("me/heads", replace(PAIR, target="pocket:neox"), "not for pocket:llama → pocket:neox"),
        ("me/damaged", PAIR, "is not JSON"),
        ("me/halved", PAIR, "me/halved has no heads.safetensors"),
        ("me/model", PAIR, "me/model has no heads.json, so it holds no heads that can be read"),
        ("me/gated", PAIR, "me/gated is gated: accept its terms"),
        ("/no/where", PAIR, "There is no folder /no/where"),
        ("~nobody-has-this-name/heads", PAIR, "There is no folder ~nobody-has-this-name/heads"),
        ("me/" + "x" * 5000, PAIR, "is not a name that the Hub knows"),
        ("me/he\0ads", PAIR, "is not a name that the Hub knows"),
    ],
)
def test_heads_that_cannot_be_loaded_are_a_sentence_and_leave_nothing(
    engine, hub, tmp_path, name, pair, words
):
    job = loaded(engine, name, pair)
    assert job.state is JobState.FAILED
    assert words in job.message
    assert str(tmp_path) not in job.message
    told, cancel, go_on, *_ = heads_jobs.job_updates(engine, job.id)
    assert "cast-error" in told
    assert (cancel["interactive"], go_on["visible"]) == (False, False)
    assert engine.own.of(pair, job.id) is None
    # The visitor's next try is not held up by it.
    assert loaded(engine, "me/heads", earlier=job.id).state is JobState.DONE


def test_offline_the_heads_that_were_fetched_before_still_load(engine, hub, monkeypatch):
    first = loaded(engine, "me/heads")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = loaded(engine, "me/heads", earlier=first.id)
    assert again.state is JobState.DONE
    missing = loaded(engine, "me/other", earlier=again.id)
    assert (
        "cannot be reached because HF_HUB_OFFLINE is set, and me/other is not in the cache" in missing.message
    )
    # Those from before are still the visitor's.
    assert engine.own.entry_of(PAIR, missing.id).id == again.id


def test_published_heads_can_be_loaded_by_another_visitor(engine, library, hub, tmp_path):
    exports = Exports(library, engine, tmp_path / "work")
    found = exports.heads(PAIR, loaded(engine, "me/heads").id)
    assert found.name == "heads-llama-to-mistral"
    assert found.card.lstrip().startswith("---")
    assert exports.publish(found, "me/mine", TOKEN, False).endswith("/me/mine")
    assert set(hub.repos["me/mine"].files) == FILES
    assert loaded(engine, "me/mine").state is JobState.DONE
    assert TOKEN.encode() not in b"".join(hub.repos["me/mine"].files.values())


def test_heads_that_cannot_be_published_say_why(engine, library, hub, tmp_path, monkeypatch):
    exports = Exports(library, engine, tmp_path / "work")
    found = exports.heads(PAIR, "")
    for repo, token, words in (
        ("mine", TOKEN, "owner/name, such as me/heads-llama-to-mistral"),
        ("me/mine", "", "your own Hub token"),
    ):
        with pytest.raises(RequestError, match=words):
            exports.publish(found, repo, token, False)
    for status, words in (
        (401, "refuses this token for me/mine"),
        (429, "asked too often"),
        (500, "of its own"),
    ):
        hub.status = status
        with pytest.raises(HubError, match=words) as caught:
            exports.publish(found, "me/mine", TOKEN, False)
        assert TOKEN not in str(caught.value)
    hub.status = 200
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, so me/mine was not published"):
        exports.publish(found, "me/mine", TOKEN, False)
    assert "me/mine" not in hub.repos
