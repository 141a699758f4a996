"""Talk mode and the guided tour in a real headless Chromium, by keyboard alone."""

import re

from playwright.sync_api import expect

TITLES = (
    "The adapter is locked into its model",
    "The target does not have the skill",
    "Carry it over",
    "Side by side, live",
    "One map for both models",
    "How much arrives",
)


def test_talk_mode_is_a_key_and_keeps_to_the_keyboard(visit):
    page = visit()
    small = page.answer("target").evaluate("node => parseFloat(getComputedStyle(node).fontSize)")
    page.key("t")
    assert page.talks
    large = page.answer("target").evaluate("node => parseFloat(getComputedStyle(node).fontSize)")
    assert large >= 24 > small
    expect(page.page.get_by_role("button", name="Talk mode (T)")).to_have_attribute("aria-pressed", "true")
    expect(page.page.get_by_role("button", name="Sampling")).to_be_hidden()
    expect(page.facts).to_be_hidden()

    page.key("p")
    page.page.keyboard.insert_text(" then t, g and 2")
    page.key("t", "Escape", "r")
    expect(page.answer("target_adapter")).to_contain_text("pocket:mistral says hosted pirate")
    assert page.talks
    expect(page.tour).to_have_count(0)
    page.key("2")
    expect(page.page.get_by_role("tab", name="Heads")).to_have_attribute("aria-selected", "true")
    expect(page.plot.locator(".xtitle")).to_have_css("font-size", "24px")

    page.open()
    assert page.talks
    page.key("t")
    assert not page.talks
    page.key("1", "r")
    expect(page.page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    assert page.errors == []


def test_the_tour_tells_six_steps_by_arrow_keys_and_leaves_no_trace(visit):
    page = visit()
    page.choose("Target model", "pocket:qwen")
    expect(page.facts).to_contain_text("Qwen")
    page.page.get_by_label("Target model").blur()
    page.key("g")
    for number, title in enumerate(TITLES, 1):
        heading = page.tour.get_by_role("heading", level=2)
        expect(heading).to_contain_text(title)
        expect(heading).to_be_focused()
        expect(page.tour.get_by_text(f"{number} of 6")).to_be_visible()
        if number == 1:
            expect(page.toured("source_adapter")).to_contain_text("pocket:llama says pirate")
            expect(page.toured("target")).to_be_hidden()
        if number == 4:
            expect(page.toured("target_adapter")).to_contain_text("hosted pirate whole x1 ")
            page.key("ArrowUp", "ArrowUp", "ArrowUp")
            expect(page.toured("target_adapter")).to_contain_text("hosted pirate whole x2 ")
            expect(page.tour).to_contain_text("strength 2")
        page.key("ArrowRight")
    expect(page.tour.get_by_role("row", name="<pirate>")).to_contain_text("100")
    expect(page.tour).to_contain_text("cast translate --source pocket:llama")
    page.key("ArrowLeft")
    expect(page.tour.get_by_role("heading", level=2)).to_contain_text(TITLES[4])
    expect(page.page.get_by_label("Prompt", exact=True)).not_to_be_focused()

    page.key("Escape")
    expect(page.tour).to_be_hidden()
    expect(page.chosen("Target model")).to_have_value("pocket:qwen")
    expect(page.answer("target")).to_have_count(0)
    page.page.get_by_role("button", name="Guided tour (G)").click()
    expect(page.tour.get_by_role("heading", level=2)).to_contain_text(TITLES[0])
    page.tour.get_by_role("button", name="Leave (Esc)").click()
    expect(page.page.get_by_role("button", name="Guided tour (G)")).to_be_focused()
    assert page.errors == []


def test_a_link_carries_the_choices_to_another_browser_and_a_reload_keeps_them(visit):
    page = visit()
    page.choose("Target model", "pocket:qwen")
    expect(page.facts).to_contain_text("Qwen")
    page.write("Who <b>sang</b> & why?\nNow:")
    page.strength.fill("1.5")
    page.strength.press("Enter")
    # An answer to the choice of a target that comes now would close what is opened next.
    page.settle()
    page.page.get_by_role("button", name="Sampling").click()
    # A field that has just been built takes its first value a moment later, faster than a hand could type.
    page.settle()
    page.page.get_by_label("Seed").fill("11")
    page.page.get_by_label("Seed").blur()
    page.pick_mode("kernel")
    page.settle()
    link = page.copied_link()
    assert "seed=11" in link
    assert "temperature" not in link

    def stands(other):
        expect(other.chosen("Source model")).to_have_value("pocket:llama")
        expect(other.chosen("Target model")).to_have_value("pocket:qwen")
        expect(other.chosen("Adapter of the source")).to_have_value(re.compile("pirate"))
        expect(other.page.get_by_label("Prompt", exact=True)).to_have_value("Who <b>sang</b> & why?\nNow:")
        expect(other.strength).to_have_value("1.5")
        if not other.page.get_by_label("Seed").is_visible():
            other.page.get_by_role("button", name="Sampling").click()
        expect(other.page.get_by_label("Seed")).to_have_value("11")
        expect(other.mode("kernel")).to_be_checked()

    reader = visit()
    reader.open(link)
    stands(reader)
    assert "seed" not in reader.page.url
    # What the link set in motion ends before the reader chooses.
    reader.settle()
    reader.choose("Target model", "pocket:mistral")
    expect(reader.facts).to_contain_text("Mistral")
    reader.settle()
    reader.open()
    expect(reader.chosen("Target model")).to_have_value("pocket:mistral")
    page.open()
    stands(page)
    assert page.errors == reader.errors == []


def test_a_link_opens_the_tab_that_was_open(visit):
    page = visit()
    page.tab("Explore")
    link = page.copied_link()
    assert "tab=Explore" in link
    reader = visit()
    reader.page.goto(link, wait_until="load")
    expect(reader.page.get_by_role("tab", name="Explore")).to_have_attribute("aria-selected", "true")
    assert "tab" not in reader.page.url
    assert page.errors == reader.errors == []


def test_what_is_set_in_a_tab_is_there_after_a_reload(visit):
    page = visit()
    page.tab("Heads")
    page.page.get_by_label("quick, 40 thousand tokens").check()
    page.tab("Evaluate")
    page.tick("Kernel, the paper's form")
    page.set_slider("Examples", "40")
    page.settle()
    page.open()
    page.tab("Heads")
    expect(page.page.get_by_label("quick, 40 thousand tokens")).to_be_checked()
    page.command("cast fit", "--tokens 40000")
    page.tab("Evaluate")
    expect(page.page.get_by_label("Kernel, the paper's form")).to_be_checked()
    page.command("cast compare", "--methods kernel", "--limit 40")
    assert page.errors == []


def test_a_link_holds_no_folder_of_the_sender(visit):
    page = visit()
    page.choose("Adapter of the source", "/my/secret/lora")
    expect(page.errors_shown.first).to_be_visible()
    assert "secret" not in page.copied_link()
