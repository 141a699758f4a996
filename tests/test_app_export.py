"""Export behind the page: what leaves is a copy of the translation's own files, and the snippets load it."""

import logging
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from fake_backend import ended
from fake_hub import reachable_hub

from app import snippets
from app.engine import Engine
from app.exports import Exports
from app.facts import MapRequest, Opened, TranslateRequest
from app.library import CastBackend
from app.workspace import Attached, Selection
from cast import adapters, models
from cast.errors import AdapterError, CastError, HubError
from cast.pipeline import translate_adapter
from cast.recipes import TranslationConfig

CHOICE = Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood", "instant")
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def engine(backend, jobs, tmp_path):
    return Engine(backend, jobs, tmp_path / "work", None, kept=tmp_path / "kept")


@pytest.fixture
def exports(backend, engine, tmp_path):
    return Exports(backend, engine, tmp_path / "work")


def translated(engine, selection=CHOICE):
    job_id = engine.start_translate(TranslateRequest(selection, 10))
    ended(lambda: engine.job(job_id))
    return Attached(translate_job=job_id)


def packed(found):
    """The files in the one folder of a zip."""
    with zipfile.ZipFile(found.archive) as archive:
        paths = [Path(name) for name in archive.namelist()]
    assert {path.parent for path in paths} == {Path(found.name)}
    return {path.name for path in paths}


def test_a_translation_leaves_as_a_folder_of_its_own_name(exports, engine):
    made = translated(engine)
    found = exports.current(CHOICE, made)
    assert (found.name, found.rank, found.card) == ("mood-for-mistral", 24, "# instant mood")
    assert packed(found) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "cast.json"}
    assert exports.current(CHOICE, made) is found
    assert exports.current(CHOICE, Attached()) is None  # of another visitor
    assert exports.current(replace(CHOICE, target="pocket:qwen"), made) is None


def test_a_recipe_leaves_without_weights(exports, engine):
    hosted = replace(CHOICE, mode="hosted", segment=2)
    found = exports.current(hosted, translated(engine, hosted))
    assert found.rank is None
    assert found.recipe == "hosted, 2 blocks a segment mood"


def test_only_the_files_of_a_translation_leave_an_opened_folder(exports, backend, tmp_path):
    opened, secret = tmp_path / "mine", tmp_path / "secret.txt"
    opened.mkdir()
    secret.write_text("secret")
    for name in ("cast.json", "adapter_config.json", "notes.json", "model.safetensors"):
        (opened / name).write_text('{"r": 4}')
    (opened / "README.md").symlink_to(secret)
    backend.folders = {str(opened): Opened(str(opened), CHOICE, 1.0, 1)}
    found = exports.current(CHOICE, Attached(folder=str(opened)))
    assert packed(found) == {"cast.json", "adapter_config.json"}
    assert (found.card, found.rank) == ("", 4)
    assert tmp_path / "work" in found.archive.parents

    (opened / "cast.json").unlink()
    with pytest.raises(AdapterError, match="translate once more"):
        exports.current(CHOICE, Attached(folder=str(opened)))


def test_a_map_is_drawn_on_the_command_line_with_the_folder_that_it_shows(exports, engine, backend, tmp_path):
    made = translated(engine)
    assert exports.on_a_map(CHOICE, made) == "mood-for-mistral"
    # Hosted by words moves no states, so the map shows what else is translated; nothing where nothing is.
    assert exports.on_a_map(replace(CHOICE, mode="hosted"), made) == "mood-for-mistral"
    assert exports.on_a_map(replace(CHOICE, mode="kernel"), made) == "mood-for-mistral"
    assert exports.on_a_map(CHOICE, Attached()) == exports.on_a_map(replace(CHOICE, target="x"), made) == ""
    opened = tmp_path / "my own"
    backend.folders = {str(opened): Opened(str(opened), CHOICE, 1.0, 1)}
    assert exports.on_a_map(CHOICE, Attached(folder=str(opened))) == str(opened)
    line = snippets.manifold(MapRequest(CHOICE, 3), str(opened))
    assert f"--adapter pocket:llama/mood --translated '{opened}' --out" in line
    assert "--translated" not in snippets.manifold(MapRequest(CHOICE, 3, adapter=False), str(opened))


def test_a_damaged_configuration_is_a_sentence(exports, backend, tmp_path):
    opened = tmp_path / "mine"
    opened.mkdir()
    for name in ("cast.json", "adapter_config.json"):
        (opened / name).write_text("[]")
    backend.folders = {str(opened): Opened(str(opened), CHOICE, 1.0, 1)}
    with pytest.raises(AdapterError, match=r"adapter_config\.json of this translation cannot be read"):
        exports.current(CHOICE, Attached(folder=str(opened)))


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("", TOKEN, "owner/name"),
        ("mood", TOKEN, "owner/name"),
        ("me/a b", TOKEN, "owner/name"),
        ("me/mood", "", "your own Hub token"),
        ("me/mood", "hf_ two", "your own Hub token"),
    ],
)
def test_publishing_needs_a_name_and_the_visitors_own_token(exports, engine, backend, repo, token, words):
    found = exports.current(CHOICE, translated(engine))
    with pytest.raises(CastError, match=words):
        exports.publish(found, repo, token, False)
    assert backend.published == []


def test_a_refusal_never_holds_the_token(exports, engine):
    found = exports.current(CHOICE, translated(engine))
    with pytest.raises(HubError, match="refuses this token … for nobody/x") as caught:
        exports.publish(found, "nobody/x", TOKEN, False)
    assert TOKEN not in repr(caught.value) + repr(caught.value.__cause__)


def test_the_hub_gets_the_files_and_nobody_keeps_the_token(
    monkeypatch, exports, engine, tmp_path, caplog, capfd
):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_server")
    found = exports.current(CHOICE, translated(engine))
    real = Exports(CastBackend(), engine, tmp_path / "work")
    with reachable_hub(monkeypatch, tmp_path / "hub") as hub, caplog.at_level(logging.DEBUG):
        assert real.publish(found, "me/mood", TOKEN, True).endswith("/me/mood")
        assert set(hub.repos["me/mood"].files) == packed(found)
        hub.status = 403
        with pytest.raises(HubError, match="refuses this token for me/mood; use one with the right to write"):
            real.publish(found, "me/mood", TOKEN, True)
    seen = caplog.text + "".join(capfd.readouterr())
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert (TOKEN in seen, kept) == (False, [])


def test_without_a_connection_nothing_is_published_and_it_is_said(monkeypatch, exports, engine, tmp_path):
    found = exports.current(CHOICE, translated(engine))
    real = Exports(CastBackend(), engine, tmp_path / "work")
    with reachable_hub(monkeypatch, tmp_path / "hub"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, so me/mood was not published"):
            real.publish(found, "me/mood", TOKEN, False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached, so me/mood was not published"):
        real.publish(found, "me/mood", TOKEN, False)


@pytest.fixture
def ran(monkeypatch, capsys, tmp_path):
    """What a snippet prints when it is run as it stands, in the folder where the zip was unpacked."""

    def run(code):
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        exec(code, {})
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def pair(tiny_model, tiny_lora, tmp_path_factory):
    """A pair of tiny models with an adapter, as folders."""
    folder = tmp_path_factory.mktemp("pair")
    source, target = tiny_model("llama"), tiny_model("llama", width=24, seed=1)
    for lm, name in ((source, "source"), (target, "target")):
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    lora = tiny_lora(target, roles={"q", "v"})
    return folder, source, target, lora


def test_the_peft_snippet_loads_what_was_exported(pair, ran, tmp_path):
    folder, _, target, lora = pair
    adapters.write(lora, tmp_path / "mood-for-it", target, card="")
    text = ran(snippets.load_with_peft(str(folder / "target"), "mood-for-it"))
    assert text.startswith("Once upon a time")
    assert len(text) > len("Once upon a time\n")


def test_the_cast_snippets_run(pair, ran, tmp_path):
    folder, _, target, lora = pair
    adapters.write(lora, tmp_path / "lora", target, card="")
    chosen = Selection(str(folder / "target"), str(folder / "target"), str(tmp_path / "lora"), "hosted")
    at_once = ran(snippets.run_hosted(chosen))
    lm = models.load(chosen.target)
    made = translate_adapter(lm, lm, adapters.read(chosen.adapter, lm), TranslationConfig("hosted"))
    made.save(tmp_path / "mood-for-it", lm)
    kept = ran(snippets.run_folder(chosen.target, "mood-for-it"))
    assert kept == at_once
    assert kept


def test_vllm_is_told_the_rank_where_it_must_be():
    line = snippets.serve_with_vllm("me/model", "mood-for-it", 16)
    assert line == "vllm serve me/model --enable-lora --lora-modules mood-for-it=./mood-for-it"
    assert snippets.serve_with_vllm("me/model", "mood-for-it", 17).endswith("--max-lora-rank 32")


def test_a_shell_can_find_the_model_of_the_zoo():
    line = snippets.serve_with_vllm("pocket:mistral", "mood-for-mistral", 16)
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run(
        ["bash", "-c", line.replace("vllm serve", "echo").replace("python", sys.executable, 1)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (Path(found.stdout.split(" --")[0]) / "config.json").is_file()
