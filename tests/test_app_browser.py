"""The page in a real headless Chromium, on a stand-in for the library: what a visitor does, and reads."""

import json
import re
import threading
import zipfile

import pytest
from playwright.sync_api import expect

from app.facts import Opened
from app.workspace import Selection

pytestmark = pytest.mark.unrecorded


def test_choose_generate_translate_and_read_the_target(visit, stand_in):
    page = visit()
    expect(page.facts).to_contain_text("Mistral")
    page.choose("Target model", "pocket:qwen")
    expect(page.facts).to_contain_text("Qwen")
    expect(page.picture).to_have_attribute("aria-label", re.compile("5 blocks of pocket:qwen"))

    page.write("Who <b>sang</b>?")
    page.generate()
    expect(page.answer("target")).to_contain_text("pocket:qwen says nothing <b> more")
    expect(page.answer("target_adapter")).to_contain_text("pocket:qwen says hosted mood whole x1")
    expect(page.pane("source").locator(".cast-prompt")).to_have_text("Who <b>sang</b>?")

    stand_in.steps = 200
    page.translate()
    expect(page.job).to_contain_text("fitting the adapter")
    page.open()  # a reload in the middle of the job
    expect(page.chosen("Target model")).to_have_value("pocket:qwen")
    expect(page.job).to_contain_text("Done in")
    expected = page.page.get_by_text("Likely to carry over: compiled mood. By <b>prompts</b>.")
    expect(expected).to_be_visible()
    expect(page.mode("compiled")).to_be_checked()
    page.generate()
    expect(page.answer("target_adapter")).to_contain_text("pocket:qwen says compiled mood")
    assert page.errors == []


def test_a_cancelled_translation_says_so(visit, stand_in):
    stand_in.steps = 2000
    page = visit()
    page.translate()
    expect(page.job).to_contain_text("fitting the adapter")
    page.cancel()
    expect(page.job).to_contain_text("Cancelled")


def test_how_long_translate_takes_is_told_of_the_prompts_it_would_read(visit, stand_in):
    page = visit()
    told = page.page.locator(".block.cast-expected")
    expect(told).to_contain_text("mode hosted runs at once, a plain LoRA with 1 prompt takes")
    prompts = page.page.get_by_label("Up to five example prompts")
    prompts.fill("Ann rowed home.\\nmood of Ann:\nTom slept.\\nmood of Tom:")
    prompts.blur()
    expect(told).to_contain_text("a plain LoRA with 2 prompts takes")
    assert stand_in.reckoned[-1].prompts == ("Ann rowed home.\nmood of Ann:", "Tom slept.\nmood of Tom:")

    page.page.get_by_role("button", name="Show what is made of them").click()
    expect(told).to_contain_text("a plain LoRA with 4 prompts takes")
    assert not stand_in.reckoned[-1].expand
    list_said = page.page.locator(".cast-prompts")
    expect(list_said).not_to_contain_text("It was made for")
    page.choose("Target model", "pocket:qwen")
    expect(told).to_contain_text("a plain LoRA with 4 prompts takes")
    expect(list_said).to_contain_text("It was made for pocket:mistral")

    page.open_fold("Effort")
    page.set_slider("Steps of a compiled fit", "40")
    page.settle()
    assert stand_in.reckoned[-1].steps == 40
    page.translate()
    expect(page.job).to_contain_text("Done in")
    expect(told).to_contain_text("mode compiled with 4 prompts takes")
    assert page.errors == []


def test_a_change_of_source_keeps_the_skill(visit):
    page = visit()
    page.choose("Adapter of the source", "pocket:llama/pirate")
    expect(page.facts).to_contain_text("pocket:llama/pirate")
    page.choose("Source model", "pocket:mistral")
    expect(page.facts).to_contain_text("pocket:mistral/pirate")
    expect(page.facts).to_contain_text("the same model")


def test_a_name_that_the_hub_does_not_answer_for_holds_up_no_other_choice(visit, stand_in):
    answers = stand_in.hanging["me/slow"] = threading.Event()
    try:
        page = visit()
        page.choose("Target model", "me/slow")
        expect(page.reading).to_be_visible()
        page.choose("Target model", "pocket:qwen")
        expect(page.facts).to_contain_text("Qwen")
        page.pick_mode("instant")
        expect(page.page.get_by_text("A plain LoRA without training")).to_be_visible()
        page.pick_mode("hosted")
    finally:
        answers.set()
    page.settle()  # what is said of it at last comes too late to be shown
    expect(page.facts).to_contain_text("Qwen")
    expect(page.errors_shown).to_have_count(0)
    page.choose("Target model", "me/slow")
    expect(page.errors_shown).to_contain_text("The Hub did not answer within 20 seconds")
    assert page.errors == []


def test_nothing_can_be_chosen_before_the_kept_choice_is_put_back(visit):
    page = visit()
    page.choose("Target model", "pocket:qwen")
    expect(page.facts).to_contain_text("Qwen")
    with page.unanswered():
        page.page.reload()
        page.type_at_once("Target model", "pocket:llama")
        expect(page.chosen("Target model")).to_have_value("pocket:mistral")
    page.restored()
    expect(page.chosen("Target model")).to_have_value("pocket:qwen")
    page.choose("Target model", "pocket:llama")
    expect(page.facts).to_contain_text("the same model")
    page.open()
    expect(page.chosen("Target model")).to_have_value("pocket:llama")


@pytest.mark.parametrize(("mode", "segment"), [("hosted", 2), ("kernel", None), ("compiled", None)])
def test_a_translated_folder_opens_as_it_was_made(visit, stand_in, mode, segment):
    made = Selection("pocket:mistral", "pocket:qwen", "/my/lora", mode, segment)
    stand_in.folders["/my/out"] = Opened("/my/out", made, 0.75, 1)
    stand_in.own_adapters = {"/my/lora": "pocket:mistral"}
    page = visit()
    page.choose("Adapter of the source", "/my/out")
    expect(page.notice).to_contain_text("Opened /my/out: /my/lora carried from pocket:mistral to pocket:qwen")
    for label, name in (("Source", made.source), ("Target", made.target)):
        expect(page.chosen(f"{label} model")).to_have_value(name)
    expect(page.chosen("Adapter of the source")).to_have_value(made.adapter)
    expect(page.facts).to_contain_text("Qwen")
    expect(page.mode(mode)).to_be_checked()
    expect(page.strength).to_have_value("0.75")
    if segment:
        expect(page.segment).to_have_value(str(segment))
    else:
        expect(page.segment).to_be_hidden()
    page.settle()
    page.generate()
    expect(page.answer("target_adapter")).to_contain_text(f"pocket:qwen says reopened {made.way} x0.75")
    expect(page.answer("source_adapter")).to_contain_text("pocket:mistral says lora")

    page.settle()
    page.open()
    expect(page.notice).to_contain_text("Opened /my/out")
    expect(page.chosen("Adapter of the source")).to_have_value(made.adapter)
    expect(page.mode(mode)).to_be_checked()
    expect(page.strength).to_have_value("0.75")
    assert page.comes_to_rest()
    page.choose("Target model", "pocket:llama")
    expect(page.notice).to_have_count(0)
    assert page.errors == []


def test_a_folder_that_cannot_be_opened_is_a_sentence(visit, stand_in):
    stand_in.damaged.add("/broken")
    page = visit()
    page.choose("Adapter of the source", "/broken")
    expect(page.errors_shown.first).to_contain_text("/broken/cast.json cannot be read as JSON")
    page.choose("Adapter of the source", "/neither")
    expect(page.errors_shown.first).to_contain_text("was trained on another model")
    expect(page.chosen("Source model")).to_have_value("pocket:llama")


def test_hosted_may_go_block_by_block(visit, stand_in):
    stand_in.steps = 20
    page = visit()
    expect(page.segment).to_have_value("0")
    page.segment.fill("3")
    page.segment.press("Enter")
    page.generate()
    expect(page.answer("target_adapter")).to_contain_text("hosted mood 3 x1")
    expect(page.pane("target_adapter")).to_contain_text("hosted, 3 blocks a segment")
    page.press("Write a recipe")
    expect(page.job).to_contain_text("Done in")
    expect(page.mode("hosted")).to_be_checked()
    page.generate()
    expect(page.answer("target_adapter")).to_contain_text("hosted, 3 blocks a segment mood x1")
    page.settle()
    page.open()
    expect(page.segment).to_have_value("3")
    page.choose("Target model", "pocket:qwen")
    expect(page.segment).to_have_attribute("max", "5")
    expect(page.picture).to_have_attribute("aria-label", re.compile("through the heads"))
    page.segment.fill("0")
    page.segment.press("Enter")
    expect(page.picture).to_have_attribute("aria-label", re.compile("Words cross"))
    page.pick_mode("instant")
    expect(page.segment).to_be_hidden()
    assert page.errors == []


def test_a_list_that_is_only_visited_changes_nothing(visit):
    page = visit()
    page.write("My own words")
    page.generate()
    expect(page.answer("target")).to_contain_text("pocket:mistral says nothing")
    page.settle()
    for label in ("Source model", "Target model", "Adapter of the source", "Examples of this adapter's task"):
        page.chosen(label).focus()
        page.chosen(label).blur()
    page.settle()
    expect(page.answer("target")).to_contain_text("pocket:mistral says nothing")
    expect(page.page.get_by_label("Prompt", exact=True)).to_have_value("My own words")


def test_an_entry_of_a_list_is_chosen_by_mouse_and_by_keys(visit):
    page = visit()
    page.chosen("Target model").click()
    page.page.get_by_role("option", name="pocket:qwen").click()
    expect(page.facts).to_contain_text("Qwen")
    page.chosen("Adapter of the source").focus()
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    expect(page.facts).to_contain_text("pocket:llama/pirate")
    page.chosen("Examples of this adapter's task").click()
    page.page.get_by_role("option", name="Tom lost").click()
    expect(page.page.get_by_label("Prompt", exact=True)).to_have_value(re.compile("pirate of Tom"))
    assert page.errors == []


def test_errors_are_sentences(visit):
    page = visit()
    page.choose("Source model", "/no/such/folder")
    expect(page.errors_shown.first).to_contain_text("There is no model /no/such/folder")
    page.generate()
    expect(page.errors_shown.last).to_contain_text("Choose an adapter of the source model first")
    expect(page.page.get_by_text("Traceback")).to_have_count(0)


def test_typing_searches_the_hub_once_the_keys_rest(visit, stand_in):
    stand_in.searched.clear()
    stand_in.hub = {"story": ["me/story-model", "me/other-story"]}
    page = visit()
    page.type_into("Target model", "story")
    expect(page.found).to_contain_text("The Hub lists 2 × model called “story”")
    expect(page.page.get_by_role("option", name="me/other-story · 7 downloads · mit")).to_be_visible()
    assert stand_in.searched == ["story"]
    page.page.get_by_role("option", name="me/story-model").click()
    expect(page.chosen("Target model")).to_have_value("me/story-model")

    page.type_into("Source model", "nowhere")  # as without a connection
    expect(page.found).to_contain_text("The Hub cannot be reached")
    page.choose("Source model", "pocket:qwen")
    expect(page.facts.or_(page.errors_shown).first).to_contain_text("no model me/story-model")
    expect(page.chosen("Source model")).to_have_value("pocket:qwen")
    assert page.errors == []


def test_two_visitors_never_see_each_others_choice(visit):
    first, second = visit(), visit()
    first.choose("Target model", "pocket:qwen")
    expect(first.facts).to_contain_text("Qwen")
    second.generate()
    expect(second.answer("target")).to_contain_text("pocket:mistral says")
    first.generate()
    expect(first.answer("target")).to_contain_text("pocket:qwen says")
    second.open()
    expect(second.chosen("Target model")).to_have_value("pocket:mistral")


def test_methods_are_measured_sorted_kept_and_compared(visit, stand_in, tmp_path):
    stand_in.steps, stand_in.endless = 5, set()
    page = visit()
    page.tab("Evaluate")
    page.tick("Hosted by words", "Kernel, the paper's form", "Proxy tuning", "Naive copy")
    page.command("cast compare", "--methods hosted,kernel,proxy-tuning,naive-copy", "--data pocket:mood")
    page.run()
    expect(page.job).to_contain_text("Done: 3 of 4 methods measured")
    expect(page.measured).to_have_count(3)
    expect(page.measured.first).to_contain_text("1.00 [0.90, 1.05]")
    expect(page.page.get_by_text("Naive copy was not measured. No kernel")).to_be_visible()
    expect(page.plot).to_be_visible()
    assert page.methods_in_order() == ["Hosted by words", "Kernel, the paper's form", "Proxy tuning"]
    page.sort_by("Seconds")
    assert page.methods_in_order() == ["Hosted by words", "Kernel, the paper's form", "Proxy tuning"]
    page.sort_by("Seconds")
    assert page.methods_in_order() == ["Proxy tuning", "Kernel, the paper's form", "Hosted by words"]
    table = page.download("Download CSV").read_text()
    assert [line.split(",")[2] for line in table.splitlines()] == [
        "method",
        "hosted",
        "kernel",
        "proxy-tuning",
    ]
    assert json.loads(page.download("Download JSON").read_text())[0]["state"] == "done"

    page.tick("Instant LoRA")
    page.run()
    expect(page.job).to_contain_text("Done: 1 of 1 methods measured")
    expect(page.measured).to_have_count(1)
    page.show_run_as_well(1)
    expect(page.measured).to_have_count(4)
    page.settle()
    page.open()  # a reload finds the newest run, and the earlier one again
    page.tab("Evaluate")
    expect(page.measured).to_have_count(1)
    page.show_run_as_well(1)
    expect(page.measured).to_have_count(4)
    other = visit()
    other.tab("Evaluate")
    expect(other.page.get_by_label("Runs shown")).to_be_hidden()
    page.press("Forget the runs shown")
    expect(page.measured).to_have_count(0)
    expect(page.page.get_by_label("Runs shown")).to_be_hidden()
    assert page.errors == []


def test_a_cancelled_evaluation_keeps_what_had_ended(visit, stand_in):
    stand_in.steps, stand_in.endless = 5, {"kernel"}
    page = visit()
    page.tab("Evaluate")
    page.tick("Hosted by words", "Kernel, the paper's form", "Proxy tuning")
    page.run()
    expect(page.measured).to_have_count(1)
    page.open()  # a reload in the middle of the run
    page.tab("Evaluate")
    expect(page.job).to_contain_text("Generating")
    page.cancel()
    expect(page.job).to_contain_text("Cancelled; what had come to its end is kept")
    assert page.methods_in_order() == ["Hosted by words"]


def test_a_task_file_is_uploaded_and_a_wrong_one_is_a_sentence(visit, stand_in, tmp_path):
    stand_in.steps = 2
    good, bad = tmp_path / "mine.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    bad.write_text("not json\n")
    page = visit()
    page.tab("Evaluate")
    page.upload("Upload a task file", bad)
    expect(page.errors_shown).to_contain_text("bad.jsonl, line 1: not JSON; each line must be one object.")
    page.upload("Upload a task file", good)
    expect(page.page.get_by_text("mine.jsonl: 3 examples, scored by exact.")).to_be_visible()
    page.tick()
    page.run()
    expect(page.errors_shown).to_contain_text("Tick at least one method to measure.")
    page.tick("Hosted by words")
    page.run()
    expect(page.job).to_contain_text("Done: 1 of 1 methods measured")
    expect(page.page.get_by_text("There is no LoRA retrained on pocket:mistral")).to_be_visible()
    expect(page.page.get_by_text("Traceback")).to_have_count(0)


def test_a_translation_is_downloaded_and_published_with_the_visitors_token(visit, stand_in):
    stand_in.steps = 2
    page = visit()
    page.tab("Export")
    expect(page.page.get_by_text("Hosted mode runs at once")).to_be_visible()
    page.command("cast translate", "--mode hosted")
    expect(page.page.get_by_role("button", name="Publish to the Hub")).to_be_disabled()
    page.tab("Generate")
    page.pick_mode("instant")
    page.command("cast translate", "--mode instant")
    page.tab("Export")
    expect(page.page.get_by_text("Nothing is written for this choice in mode instant")).to_be_visible()
    page.tab("Generate")
    page.translate()
    expect(page.job).to_contain_text("Done in")
    page.tab("Export")
    expect(page.page.get_by_text("A plain PEFT adapter of pocket:mistral, rank 24")).to_be_visible()
    expect(page.page.get_by_text("PeftModel.from_pretrained")).to_be_visible()
    expect(page.page.get_by_text("--max-lora-rank 32")).to_be_visible()
    with zipfile.ZipFile(page.download("Download mood-for-mistral.zip")) as packed:
        assert "mood-for-mistral/adapter_model.safetensors" in packed.namelist()
    page.page.get_by_role("button", name="Model card").click()
    expect(page.page.get_by_text("# instant mood")).to_be_visible()

    page.publish("nobody/mood", "hf_secret")
    expect(page.errors_shown).to_contain_text("The Hub refuses this token … for nobody/mood")
    expect(page.token).to_have_value("")
    page.press("Publish to the Hub")
    expect(page.errors_shown).to_contain_text("Give your own Hub token")
    page.publish("me/mood", "hf_secret")
    expect(page.page.get_by_text("Published: https://hub/me/mood")).to_be_visible()
    assert [repo for repo, _, _ in stand_in.published] == ["me/mood"]
    assert "hf_secret" not in page.page.evaluate("JSON.stringify(localStorage)")
    page.tab("Explore")
    page.command("cast manifold", "--translated mood-for-mistral")
    assert page.errors == []


@pytest.mark.parametrize("width", [390, 768])
def test_nothing_is_wider_than_a_narrow_window(visit, width):
    page = visit(width)
    page.tab("Heads")
    page.press("Show heads")
    expect(page.plot).to_be_visible()
    assert page.overflow() <= 0
    for tab in ("Explore", "Evaluate", "Export", "Generate"):
        page.tab(tab)
        assert page.overflow() <= 0
