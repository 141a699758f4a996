"""Ready-made examples: one click chooses, turns to *Generate*, and answers."""

import pytest
from playwright.sync_api import expect

from app import ready
from app.engine import Engine
from app.library import CastBackend
from app.workspace import Workspace
from cast.errors import RequestError

# What the stand-in says behind its first words where nobody stops it.
WORDS_TO_COME = Workspace().max_tokens // 8
pytestmark = pytest.mark.unrecorded


def test_every_example_ships_and_needs_no_fit(jobs, tmp_path):
    engine = Engine(CastBackend(), jobs, tmp_path, None)
    assert ready.offered(engine) == ready.READY
    for each in ready.READY:
        assert each.selection.by_words
        assert engine.prompts(each.selection.adapter)
    assert {each.selection.source for each in ready.READY} == {option.name for option in engine.models()}


def test_only_what_is_here_is_offered(backend, jobs, tmp_path):
    engine = Engine(backend, jobs, tmp_path, None)
    assert [each.words for each in ready.offered(engine)] == ["Name a story's mood", "Talk like a pirate"]
    assert ready.row(()) == ""
    for wrong in (2, -1, True, "0", None):
        with pytest.raises(RequestError, match="no such example"):
            ready.pressed(ready.offered(engine), wrong)


def test_one_click_chooses_and_generates(visit, stand_in):
    page = visit()
    page.choose("Target model", "pocket:qwen")
    expect(page.facts).to_contain_text("Qwen")
    page.pick_mode("kernel")
    page.strength.fill("0.5")
    page.strength.press("Enter")
    page.write("My own words")
    page.tab("Heads")
    page.settle()

    page.ready("Talk like a pirate").click()
    expect(page.answer("target_adapter")).to_contain_text("pocket:llama says hosted pirate whole x1 ")
    expect(page.answer("retrained")).to_contain_text("pocket:llama says pirate")
    expect(page.pane("source").locator(".cast-prompt")).to_contain_text("pirate of Mara:")
    for label, name in (("Source", "pocket:qwen"), ("Target", "pocket:llama")):
        expect(page.chosen(f"{label} model")).to_have_value(name)
    expect(page.chosen("Adapter of the source")).to_have_value("pirate")
    expect(page.mode("hosted")).to_be_checked()
    expect(page.strength).to_have_value("1")
    expect(page.facts).to_contain_text("pocket:qwen/pirate")
    expect(page.segment).to_have_attribute("max", "4")
    page.command("cast translate", "--source pocket:qwen", "--adapter pocket:qwen/pirate", "--mode hosted")

    page.settle()
    page.open()
    expect(page.chosen("Source model")).to_have_value("pocket:qwen")
    expect(page.mode("hosted")).to_be_checked()
    assert page.comes_to_rest()
    assert page.errors == []


def test_an_example_takes_the_place_of_what_is_running_and_can_be_stopped(visit, stand_in):
    stand_in.pace = 0.5
    page = visit()
    page.generate()
    expect(page.answer("target_adapter")).to_contain_text("pocket:mistral says")
    page.ready("Talk like a pirate").press("Enter")
    expect(page.answer("target")).to_contain_text("pocket:llama says")
    page.stop()
    page.settle()
    assert stand_in.open_streams == 0
    assert page.answer("target_adapter").inner_text().count("more") < WORDS_TO_COME
    stand_in.pace = 0.02
    assert page.errors == []
