"""axe-core over the whole page, in light and dark and in talk mode: nothing serious, nothing critical."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import CastPage

HARMFUL = ("serious", "critical")
# What a theme can break: all else is the same in the dark.
COLOURS = {"runOnly": ["color-contrast", "color-contrast-enhanced", "link-in-text-block"]}


def harmful(page, rules=None):
    """Serious and critical violations, one line for each element."""
    found = (
        Axe().run(page.page, options={"resultTypes": ["violations"]} | (rules or {})).response["violations"]
    )
    return [
        f"{rule['id']}: {node['target']} {node['html'][:160]} {node['failureSummary'][:300]}"
        for rule in found
        if rule["impact"] in HARMFUL
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("talk", [False, True], ids=["page", "talk"])
def test_nothing_serious_on_any_tab(browser, address, look, talk):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = CastPage(context, address, look)
    if talk:
        page.key("t")
    found = {}
    for tab in page.tabs:
        page.tab(tab)
        page.unfold()
        page.settle()
        found[tab] = harmful(page, COLOURS if look == "dark" else None)
    context.close()
    assert {tab: lines for tab, lines in found.items() if lines} == {}


def test_nothing_serious_in_the_tour(browser, address):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = CastPage(context, address)
    page.key("g")
    found = []
    for number in range(1, 7):
        page.tour.get_by_text(f"{number} of 6").wait_for()
        found += harmful(page)
        page.key("ArrowRight")
    context.close()
    assert found == []


def test_the_main_path_is_reached_by_the_tab_key(browser, address):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = CastPage(context, address)
    for label in ("Source model", "Target model", "Adapter of the source", "Prompt"):
        assert page.tab_to(page.chosen(label)), label
    assert page.tab_to(page.page.get_by_role("button", name="Generate", exact=True))
    page.key("Enter")
    page.answer("target_adapter").get_by_text("hosted").wait_for()
    context.close()


@pytest.mark.parametrize("look", ["light", "dark"])
def test_the_tab_key_goes_round_the_page_and_the_focus_is_always_seen(visit, look):
    page = visit(look=look)
    page.key("Tab")
    first = page.focus()
    assert first.name == "Guided tour (G)"
    for key in ("Tab", "Shift+Tab"):
        stops = page.round_of(key, 100)
        assert stops[-1] == first
        # At the end of the page the focus goes by the browser's own bar, and may be on nothing once.
        assert [stop for stop in stops[:-2] if not stop.name or not stop.is_seen] == []
        page.lists_close()
