"""More panes, the list of prompts and the table of answers in a real browser, on a stand-in."""

import csv

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.unrecorded


def test_panes_of_other_strengths_and_a_table_of_several_prompts(visit, stand_in):
    page = visit()
    page.open_fold("More panes and their strengths")
    page.set_slider("Strength of the adapter in the source", "0.5")
    page.set_slider("Strength of the retrained adapter", "2")
    page.page.get_by_label("Carried a second way").click()
    page.page.get_by_role("option", name="kernel").click()
    page.write("Who?")
    page.generate()
    expect(page.answer("source_adapter")).to_contain_text("pocket:llama says mood x0.5")
    expect(page.answer("retrained")).to_contain_text("pocket:mistral says mood x2")
    expect(page.pane("second")).to_contain_text("press Translate")
    moved = page.pane("source_adapter").locator("mark").first
    moved.focus()
    expect(moved).to_have_attribute("data-hint", '20 times as likely\n"x" <b> 9 %')

    page.settle()
    page.open_fold("Several prompts at once")
    page.press("Answer them all")
    expect(page.errors_shown).to_contain_text("Write some prompts first")
    page.press("Take the examples of the task")
    asked = [prompt.replace("\n", "\\n") for prompt in stand_in.prompts("pocket:llama/mood")]
    expect(page.page.get_by_label("Prompts, one a line")).to_have_value("\n".join(asked))
    page.press("Answer them all")
    with open(page.download("Download the answers as CSV"), newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == asked
    assert rows[1][2].startswith(" pocket:llama says mood x0.5")
    expect(page.page.locator(".cast-answers tbody tr")).to_have_count(2)
    page.settle()
    page.open()  # a reload finds the table again
    page.open_fold("Several prompts at once")
    expect(page.page.locator(".cast-answers tbody tr")).to_have_count(2)
    expect(page.pane("source_adapter")).to_be_visible()
    assert page.errors == []


def test_stop_ends_the_answers_and_an_adapter_brings_its_own_prompt(visit, stand_in, monkeypatch):
    page = visit()
    before, after = (stand_in.prompts(f"pocket:llama/{skill}") for skill in ("mood", "pirate"))
    expect(page.prompt).to_have_value(before[0])
    page.choose("Adapter of the source", "pocket:llama/pirate")
    expect(page.prompt).to_have_value(after[0])
    page.settle()
    page.write("Who?")
    page.choose("Adapter of the source", "pocket:llama/mood")
    expect(page.pane("source_adapter")).to_contain_text("pocket:llama/mood")
    expect(page.prompt).to_have_value("Who?")  # written by the visitor
    page.settle()

    page.open_fold("Sampling")
    page.set_slider("Longest answer in tokens", "256")
    monkeypatch.setattr(stand_in, "pace", 0.2)
    page.generate()
    expect(page.answer("target_adapter")).to_contain_text("more more")
    page.stop()
    expect(page.pane("target_adapter")).to_have_attribute("data-state", "stopped")
    expect(page.answer("target_adapter")).to_contain_text("more more")
    page.settle()
    assert stand_in.open_streams == 0
    assert page.page.locator('[data-state="running"]:visible').count() == 0
    assert page.errors == []


def test_no_late_word_begins_the_stopped_answers_anew(visit, stand_in, monkeypatch):
    page = visit()
    page.open_fold("Sampling")
    page.set_slider("Longest answer in tokens", "256")
    monkeypatch.setattr(stand_in, "pace", 0.02)
    for _ in range(5):
        page.generate()
        expect(page.answer("target_adapter")).to_contain_text("more more")
        page.stop()
        page.settle()
        expect(page.page.locator('[data-state="stopped"]:visible').first).to_be_visible()
        assert page.page.locator('[data-state="running"]:visible').count() == 0
    assert page.errors == []


def test_what_is_made_of_the_examples_is_shown_edited_and_translated(visit, stand_in):
    page = visit()
    page.press("Show what is made of them")
    expect(page.page.get_by_text("2 prompts and general text. This text excites the adapter")).to_be_visible()
    page.command("cast translate", "--mode hosted")
    boxes = page.page.get_by_role("grid").get_by_role("checkbox")
    boxes.nth(1).uncheck()  # the first one ticks all
    page.settle()
    page.open()  # a reload finds the edited list again
    expect(boxes.nth(1)).not_to_be_checked()
    expect(boxes.nth(2)).to_be_checked()
    page.translate()
    expect(page.page.get_by_text("Done in").last).to_be_visible()
    assert stand_in.translated[-1].prompts == ("Ann rowed home.\nmood of Ann: More?",)
    assert not stand_in.translated[-1].expand
    # The slider stands where the steps are left to the target.
    assert stand_in.translated[-1].steps is None
    page.command("cast translate", "--as-they-stand")
    page.choose("Adapter of the source", "pocket:llama/pirate")
    expect(page.page.get_by_text("This text excites the adapter")).to_be_hidden()
    assert page.errors == []
