"""The Heads tab in a real headless Chromium, on a stand-in for the library."""

import zipfile

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.unrecorded


def test_heads_are_shown_and_trained(visit, stand_in):
    stand_in.steps = 300
    page = visit()
    page.tab("Heads")
    page.press("Show heads")
    expect(page.page.get_by_text("Heads are ready")).to_be_visible()
    expect(page.plot).to_be_visible()
    page.press("Train heads")
    expect(page.job).to_contain_text("fitting heads")
    expect(page.job).to_contain_text("Held-out R² at target depths 0 to 6")
    page.cancel()
    expect(page.job).to_contain_text("Cancelled")
    expect(page.page.get_by_text("Its newest checkpoint is kept")).to_be_visible()
    page.settle()
    page.open()  # the unfinished fit is found again
    page.tab("Heads")
    page.press("Go on with the unfinished fit")
    expect(page.job).to_contain_text("Done in")
    page.unfold()
    page.press("Pack the heads")
    with zipfile.ZipFile(page.download("Download heads-llama-to-mistral.zip")) as packed:
        assert "heads-llama-to-mistral/heads.safetensors" in packed.namelist()
    page.load_heads("/nowhere")
    expect(page.job).to_contain_text("/nowhere holds no heads.json")
    assert page.errors == []


def test_heads_are_loaded_from_the_hub_and_published_with_the_visitors_token(visit, stand_in):
    stand_in.heads_at = {"me/heads"}
    page = visit()
    page.tab("Heads")
    page.unfold()
    page.load_heads("me/none")
    expect(page.job).to_contain_text("me/none holds no heads.json")
    page.load_heads("me/heads")
    expect(page.job).to_contain_text("Load heads from me/heads for pocket:llama to pocket:mistral.")
    expect(page.job).to_contain_text("Done in")

    page.publish("nobody/mine", "hf_secret", button="Publish the heads")
    expect(page.errors_shown).to_contain_text("The Hub refuses this token … for nobody/mine")
    expect(page.token).to_have_value("")
    page.press("Publish the heads")
    expect(page.errors_shown).to_contain_text("Give your own Hub token")
    page.publish("mine", "hf_secret", button="Publish the heads")
    expect(page.errors_shown).to_contain_text("owner/name, such as me/heads-llama-to-mistral")
    page.publish("me/mine", "hf_secret", button="Publish the heads")
    expect(page.page.get_by_text("Published: https://hub/me/mine")).to_be_visible()
    files = ["README.md", "heads.json", "heads.safetensors"]
    assert stand_in.published == [("me/mine", files, False)]
    assert "hf_secret" not in page.page.evaluate("JSON.stringify(localStorage)")

    stand_in.without_heads = {("pocket:qwen", "pocket:mistral")}
    page.choose("Source model", "pocket:qwen")
    expect(page.facts).to_contain_text("Qwen")
    page.publish("me/none", "hf_secret", button="Publish the heads")
    expect(page.errors_shown).to_contain_text("This pair has no heads that could leave yet")
    assert page.errors == []
