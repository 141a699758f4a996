"""Names of the pocket zoo, and the cards and files that are shipped under them."""

import json

import pytest

from cast.errors import RequestError
from cast.pocket import registry
from cast.pocket.tasks import TASKS


@pytest.fixture
def empty_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "assets_folder", lambda: tmp_path)
    return tmp_path


def put(folder, name, card) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    (folder / registry.CARD).write_text(json.dumps(card))


def test_names_resolve_to_folders(empty_zoo) -> None:
    put(empty_zoo / "llama", "config.json", {"parameters": 1})
    put(empty_zoo / "adapters" / "llama" / "mood", "adapter_config.json", {"task": "mood"})
    assert registry.resolve("pocket:llama") == empty_zoo / "llama"
    assert registry.resolve("pocket:llama/mood") == empty_zoo / "adapters" / "llama" / "mood"
    assert registry.models() == ("llama",)
    assert registry.model_card("pocket:llama") == registry.model_card("llama") == {"parameters": 1}
    (adapter,) = registry.adapters("llama")
    assert (adapter.name, adapter.card) == ("pocket:llama/mood", {"task": "mood"})
    assert registry.adapters() == registry.adapters("llama")
    assert registry.adapters("neox") == ()


def test_what_is_not_built_says_how_to_build_it(empty_zoo) -> None:
    assert registry.models() == ()
    with pytest.raises(RequestError, match="pocket build"):
        registry.resolve("pocket:llama")
    with pytest.raises(RequestError, match="pocket build"):
        registry.resolve("pocket:llama/mood")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pocket:gpt", "no model 'gpt'.*llama"),
        ("pocket:llama/mode", "no task 'mode'.*mood"),
        ("pocket:../llama", "no model"),
        ("pocket:llama/../../etc", "no task"),
        ("pocket:", "no model"),
    ],
)
def test_wrong_names_are_refused_with_what_there_is(name, words) -> None:
    with pytest.raises(RequestError, match=words):
        registry.resolve(name)


def test_only_pocket_names_are_pocket_names() -> None:
    assert registry.is_pocket("pocket:llama")
    assert not registry.is_pocket("org/pocket")


def test_an_installed_package_keeps_its_own_assets(tmp_path, monkeypatch) -> None:
    module = tmp_path / "cast" / "pocket" / "registry.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(registry, "__file__", str(module))
    assert registry.assets_folder() == tmp_path / "assets" / "pocket"
    (tmp_path / "cast" / "assets" / "pocket").mkdir(parents=True)
    assert registry.assets_folder() == tmp_path / "cast" / "assets" / "pocket"


def test_every_shipped_adapter_teaches_its_task() -> None:
    for adapter in registry.adapters():
        base, adapted = adapter.card["base"]["score"], adapter.card["adapted"]["score"]
        assert adapted >= 0.85, adapter.name
        assert adapted - base >= 0.1, adapter.name


def test_every_model_ships_with_every_adapter() -> None:
    assert registry.models() == registry.MODEL_NAMES
    for model in registry.MODEL_NAMES:
        assert {adapter.task for adapter in registry.adapters(model)} == set(TASKS)
