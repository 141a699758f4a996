"""The Hub client against a small Hub on this machine: hits, safe files, and a sentence for every refusal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeRepo, reachable_hub
from huggingface_hub import constants

from cast import hub
from cast.errors import HubError

BASE = "me/base"
TAG = f"base_model:adapter:{BASE}"


def config(base=BASE, peft_type="LORA", rank=8):
    return json.dumps(
        {
            "peft_type": peft_type,
            "base_model_name_or_path": base,
            "r": rank,
            "target_modules": ["v_proj", "q_proj"],
        }
    ).encode()


def adapter(downloads=1, tags=(TAG, "license:mit"), **entries):
    files = {
        "adapter_config.json": config(**entries),
        "adapter_model.safetensors": b"\0" * 16,
        "optimizer.pt": b"evil",
    }
    return FakeRepo(files, tags, downloads)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    with reachable_hub(monkeypatch, tmp_path / "cache") as running:
        yield running


def test_adapters_are_confirmed_by_their_own_configuration(fake):
    fake.repos = {
        "a/small": adapter(5, rank=4),
        "a/popular": adapter(50),
        "a/other-base": adapter(70, base="me/another"),
        "a/prompt-tuning": adapter(80, peft_type="PROMPT_TUNING"),
        "a/no-config": FakeRepo({"README.md": b"hi"}, (TAG,), 90),
        "a/not-json": FakeRepo({"adapter_config.json": b"\xff{"}, (TAG,), 95),
        "a/gated": FakeRepo(adapter().files, (TAG,), 99, 403, "GatedRepo"),
        "a/untagged": adapter(100, tags=()),
    }
    hits = hub.search_adapters(BASE)
    assert [hit.repo_id for hit in hits] == ["a/popular", "a/small"]
    assert hits[0] == hub.AdapterHit("a/popular", BASE, 8, ("q_proj", "v_proj"), 50, "mit")


def test_search_stops_at_the_limit(fake):
    fake.repos = {f"a/l{i}": adapter(i) for i in range(8)}
    assert [hit.repo_id for hit in hub.search_adapters(BASE, limit=3)] == ["a/l7", "a/l6", "a/l5"]


def test_models_are_found_by_name(fake):
    fake.repos = {"me/story-model": FakeRepo({}, ("license:mit",), 3), "me/else": FakeRepo({}, (), 9)}
    assert hub.search_models("story") == [hub.ModelHit("me/story-model", 3, "mit")]


def test_download_fetches_safe_files_only(fake):
    fake.repos = {"a/x": adapter()}
    folder = hub.download("a/x", kind="adapter")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not any("optimizer.pt" in request for request in fake.requests)


def test_model_download_leaves_subfolders_and_other_formats(fake):
    files = {
        "config.json": b"{}",
        "model.safetensors": b"\0",
        "pytorch_model.bin": b"\0",
        "original/model.safetensors": b"\0",
        "consolidated.safetensors": b"\0",
        "modeling_evil.py": b"raise SystemExit",
    }
    fake.repos = {"a/m": FakeRepo(files)}
    folder = hub.download("a/m", kind="model")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == [
        "config.json",
        "model.safetensors",
    ]


def test_pickle_only_repository_is_refused(fake):
    fake.repos = {"a/p": FakeRepo({"adapter_config.json": config(), "adapter_model.bin": b"\0"})}
    with pytest.raises(HubError, match=r"a/p has no adapter_model\.safetensors.*pickle files are never"):
        hub.download("a/p", kind="adapter")


def test_fetched_files_serve_when_the_hub_is_gone(fake):
    fake.repos = {"a/x": adapter()}
    first = hub.download("a/x", kind="adapter")
    fake.status = 503
    assert hub.download("a/x", kind="adapter") == first


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        (FakeRepo({}, status=403, error_code="GatedRepo"), "a/x is gated: accept its terms"),
        (FakeRepo({}, status=404, error_code="RepoNotFound"), "The Hub has no repository a/x"),
        (FakeRepo({}, status=429), "asked too often"),
        (FakeRepo({}, status=403), "refuses access to a/x"),
        (FakeRepo({}, status=502), "problem of its own"),
        (FakeRepo({"README.md": b""}), "a/x lacks the file"),
        (FakeRepo({"config.json": b"["}), "not JSON"),
        (FakeRepo({"config.json": b"[]"}), "not a JSON object"),
        (FakeRepo({"config.json": b" " * (1 << 20) + b"{}"}), "larger than 1 MiB"),
    ],
)
def test_each_refusal_is_one_sentence(fake, repo, words):
    fake.repos = {"a/x": repo}
    with pytest.raises(HubError) as caught:
        hub.fetch_config("a/x")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500])
def test_search_says_that_the_hub_refuses(fake, status):
    fake.status = status
    with pytest.raises(HubError, match=r"asked too often|problem of its own"):
        hub.search_adapters(BASE)


def test_unreachable_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(HubError, match="cannot be reached"):
        hub.search_adapters(BASE)
    with pytest.raises(HubError, match="cannot be reached"):
        hub.download("a/nothing-cached", kind="model")


def test_bad_name_is_said(fake):
    with pytest.raises(HubError, match="should look like owner/name"):
        hub.download("a//b c", kind="model")


def test_push_makes_the_repository_and_sends_the_written_files_only(fake, tmp_path):
    for name in ("adapter_config.json", "README.md", "notes.txt"):
        (tmp_path / name).write_text("{}")
    address = hub.push(tmp_path, "me/moved", "hf_token")
    assert address.endswith("/me/moved")
    assert sorted(fake.repos["me/moved"].files) == ["README.md", "adapter_config.json"]


def test_push_of_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(HubError, match="empty or missing"):
        hub.push(tmp_path, "me/x")


def test_offline_setting_is_honoured():
    code = (
        "from cast import hub\nfrom cast.errors import HubError\n"
        "try:\n    hub.search_adapters('me/base')\nexcept HubError as error:\n    print(error)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "because HF_HUB_OFFLINE is set" in done.stdout
