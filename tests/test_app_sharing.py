"""A share link names what anybody can fetch; whatever else it holds is left out."""

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import sharing
from app.workspace import MAX_STRENGTH, MODES, Workspace

KEPT = Workspace("/my/model", "pocket:qwen", "/my/lora", "kernel", 0, 0.5, "Mine", seed=7)


def link(**told):
    return "?" + urlencode({"__theme": "dark", **told})


def test_a_link_restores_every_choice_and_nothing_of_the_reader():
    sent = Workspace(
        "org/base",
        "pocket:mistral",
        "org/lora",
        "hosted",
        2,
        1.25,
        "Who <b>sang</b>?\nNow:",
        64,
        0.7,
        3,
        False,
    )
    told = {**sent.choice(), **sent.settings(), "one_line": "false"}
    assert sharing.read(link(**told), KEPT) == sent
    read = sharing.read(link(source="pocket:llama", target="pocket:mistral", prompt="Hi"), KEPT)
    assert read == Workspace("pocket:llama", "pocket:mistral", prompt="Hi")


def test_a_link_may_name_a_public_retrained_adapter_and_no_folder():
    assert sharing.read(link(retrained="me/own", second_mode="instant"), KEPT).retrained == "me/own"
    read = sharing.read(link(retrained="/etc", second_strength="0.5"), KEPT)
    assert (read.retrained, read.second_strength) == ("", 0.5)


def test_without_a_link_what_was_kept_stays():
    assert sharing.read("", KEPT) == KEPT
    assert sharing.read(link(), KEPT) == KEPT
    assert sharing.read(link(utm_source="x"), KEPT) == KEPT


def test_a_link_without_models_keeps_the_readers_own():
    assert sharing.read(link(prompt="Hi"), KEPT) == Workspace(*KEPT.choice().values(), prompt="Hi")


@pytest.mark.parametrize(
    "name",
    ["/etc", "~/lora", "../lora", "./a/b", "a/../b", "C:\\lora", "model.gguf", "a/b/c", "https://x/y",
     "tests/x", "pocket:../../etc", "a/b\n", "-x/../y", ""],
)  # fmt: skip
def test_a_link_names_no_folder_of_this_machine(name, tmp_path, monkeypatch):
    (tmp_path / "tests" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not sharing.is_public(name)
    if name:
        assert sharing.read(link(source=name, prompt="Hi"), KEPT) == KEPT


@given(st.dictionaries(st.sampled_from([*Workspace().choice(), *Workspace().settings(), "x"]), st.text()))
def test_whatever_a_link_holds_the_choices_are_valid(told):
    read = sharing.read("?" + urlencode(told, errors="surrogatepass"), Workspace())
    assert read.mode in MODES
    assert 0 <= read.strength <= MAX_STRENGTH
    assert Workspace.from_json(read.choice(), read.settings()) == read


def test_a_link_of_any_length_is_read_in_bounds():
    assert sharing.read("?" + "a=1&" * 10_000, KEPT) == KEPT
    assert sharing.read(link(prompt="x" * 5000), KEPT).prompt == ""
