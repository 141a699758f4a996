"""The Explore tab in a real headless Chromium, on a stand-in for the library."""

import pytest
from playwright.sync_api import expect

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
    assert page.download("Save SVG").read_text("utf-8").startswith("<svg")


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
