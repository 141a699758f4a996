"""The Explore tab in a real headless Chromium, on a stand-in for the library."""

import re

import pytest
from playwright.sync_api import expect
from test_app_accessibility import harmful

pytestmark = pytest.mark.unrecorded


def test_explore_draws_a_map_beside_its_measures_and_saves_it(visit):
    page = visit()
    page.tab("Explore")
    page.press("Draw the map")
    expect(page.page.get_by_text("UMAP at target depth 3, source depth 2")).to_be_visible()
    expect(page.page.get_by_text("trustworthiness 0.93")).to_be_visible()
    expect(page.page.get_by_text("moves the target's words and none of its states")).to_be_visible()
    page.find_tokens("tok1")
    expect(page.highlighted).to_contain_text("tok10")
    assert page.chosen_points() == [[1, *range(10, 20), *range(100, 200)]] * 2
    rows = page.download("Save CSV").read_text("utf-8").splitlines()
    assert len(rows) == 301
    svg = page.download("Save SVG").read_text("utf-8")
    assert svg.startswith("<svg")
    assert "Plex" not in svg  # type that the file does not bring


def test_a_drawing_and_a_comparison_can_be_stopped(visit, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "pace", 0.02)
    monkeypatch.setattr(stand_in, "steps", 10_000)
    page = visit()
    page.tab("Explore")
    stopped = page.page.get_by_text("Cancelled.")
    for number, (begin, stop, title) in enumerate(
        (
            ("Draw the map", "Stop drawing", "Draw the map."),
            ("Compare all layers", "Stop comparing", "Compare all layers."),
        ),
        start=1,
    ):
        page.press(begin)
        expect(page.page.get_by_role("progressbar", name=title)).to_be_visible()
        page.press(stop)
        expect(page.page.get_by_role("progressbar", name=title)).to_have_count(0)
        expect(stopped).to_have_count(number)
        expect(page.page.get_by_role("button", name=stop)).to_be_disabled()
    assert page.errors == []


@pytest.mark.parametrize(("width", "wide", "tall"), [(1440, 900, 600), (2560, 1700, 900)])
def test_a_map_grows_with_the_window_and_shrinks_with_it(visit, width, wide, tall):
    page = visit(width)
    page.tab("Explore")
    page.press("Draw the map")
    expect(page.page.get_by_text("UMAP at target depth 3, source depth 2")).to_be_visible()
    page.settle()
    expect(page.plot).to_have_count(1)
    assert page.plot_size() == (pytest.approx(wide, rel=0.15), tall)
    page.page.set_viewport_size({"width": 1440, "height": 900})
    page.settle()
    assert page.plot_size() == (pytest.approx(900, rel=0.15), 600)
    assert page.overflow() <= 0


def test_a_click_on_one_pane_or_on_a_cell_is_followed(visit):
    page = visit()
    page.tab("Explore")
    page.page.get_by_label("Two linked panes").check()
    page.press("Draw the map")
    expect(page.page.get_by_text("not across")).to_be_visible()
    page.click_token(0, 4)
    expect(page.highlighted).to_contain_text("1 highlighted")
    (in_source,), (in_target,) = page.chosen_points()
    assert in_source == in_target
    assert in_source % 35 == 4  # where the stand-in puts several tokens
    page.press("Compare all layers")
    expect(page.page.get_by_text("Most alike: source depth 4 and target depth 6")).to_be_visible()
    page.click_cell(1, 5)
    expect(page.page.get_by_text("UMAP at target depth 5, source depth 1")).to_be_visible()
    page.command("cast manifold", "--layer 5 --source-layer 1", "--view own")
    assert page.errors == []


def test_the_way_along_the_layers_is_gone_by_keys(visit):
    page = visit()
    page.tab("Explore")
    expect(page.play).to_have_count(0)
    page.page.get_by_label("Along the layers", exact=True).check()
    page.press("Draw the map")
    expect(page.depth_in_map).to_have_attribute("aria-valuetext", re.compile(r"^0 \("))
    page.settle()
    page.watch_map()
    page.chosen("Coloured by").focus()
    assert page.tab_to(page.play)
    page.key("Enter")
    expect(page.depth_in_map).to_have_attribute("aria-valuetext", re.compile(r"^6 \("))
    expect(page.play).to_have_text("▶ Play")
    assert page.map_moved_to() == ["1", "2", "3", "4", "5", "6"]
    assert page.tab_to(page.depth_in_map)
    page.key("ArrowLeft", "ArrowLeft")
    expect(page.depth_in_map).to_have_attribute("aria-valuetext", re.compile(r"^4 \("))
    expect(page.page.get_by_text("Target depth (source depth): 4")).to_be_visible()
    page.play.press("Enter")
    expect(page.play).to_have_text("■ Pause")
    page.play.press("Enter")
    expect(page.play).to_have_text("▶ Play")
    assert harmful(page) == []
    page.page.get_by_label("One joint map").check()
    page.press("Draw the map")
    expect(page.play).to_have_count(0)
    assert page.errors == []
