"""The main job in a real browser on the shipped zoo: read the recording, choose, translate, generate."""

import json

import pytest
from pages import CastPage, chromium, served
from playwright.sync_api import expect

from app import theme
from app.library import CastBackend
from app.showcase import Showcase
from cast.pocket.tasks import TASKS

RECORDING = theme.assets_folder() / "showcase.json"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with (
        chromium() as browser,
        served(CastBackend(), tmp_path_factory.mktemp("page"), RECORDING) as address,
    ):
        yield CastPage(browser.new_context(viewport={"width": 1440, "height": 900}), address)


def test_the_recording_is_of_shipped_things():
    recorded = Showcase.load(RECORDING)
    backend = CastBackend()
    shipped = [option.name for option in backend.models()]
    assert {recorded.selection.source, recorded.selection.target} <= set(shipped)
    assert recorded.selection.adapter in [a.name for a in backend.adapters(recorded.selection.source)]
    assert set(recorded.answers) == {"source", "source_adapter", "target", "target_adapter", "retrained"}
    assert "/" not in json.loads(RECORDING.read_text())["made"]


def test_choose_translate_and_generate(page):
    recorded = Showcase.load(RECORDING)
    # A result stands there before anything is loaded.
    expect(page.answer("target_adapter")).to_have_text(recorded.answers["target_adapter"])
    page.generate()
    expect(page.pane("target_adapter")).to_have_attribute("data-state", "done")
    expect(page.answer("source_adapter")).to_have_text(recorded.answers["source_adapter"])

    page.choose("Adapter of the source", "pocket:llama/what")
    expect(page.facts).to_contain_text("pocket:llama/what")
    example = TASKS["what"].test(1)[0]
    page.write(example.prompt)
    page.translate_with(steps=20)
    expect(page.job).to_contain_text("Done in", timeout=900_000)
    expect(page.mode("compiled")).to_be_checked()
    page.generate()
    expect(page.pane("target_adapter")).to_contain_text("compiled")
    expect(page.pane("target_adapter")).to_have_attribute("data-state", "done")
    expect(page.answer("source_adapter")).to_have_text(f"{example.completion}".rstrip())

    page.pick_mode("hosted")
    page.generate()
    expect(page.pane("target_adapter")).to_contain_text("hosted")
    expect(page.pane("target_adapter")).to_have_attribute("data-state", "done")
    written = page.answer("target_adapter").inner_text().strip()
    assert written in {choice.strip() for choice in example.choices}
    assert page.errors == []
