"""What the page draws: escaped, in words, and true to its facts."""

import dataclasses
import time
import xml.etree.ElementTree as ET

import pytest
from fake_backend import DEPTHS, FakeBackend, joint_map, layer_facts

from app import picture, plots, views
from app.facts import MapRequest, Room, SiteFacts, TokenMark
from app.jobs import Job, JobState
from app.showcase import Showcase
from app.tabs.generate import adopted
from app.tabs.mode import MODE_WORDS
from app.tabs.pick import keep_adapter
from app.views import Pane
from app.workspace import MODES, Attached, Selection
from cast.errors import RequestError
from cast.progress import Progress

BACKEND = FakeBackend()
EVIL = "<script>alert('x')</script>"


def facts(source="pocket:llama", target="pocket:mistral", skill="mood"):
    adapter = BACKEND.inspect(f"{source}/{skill}", source)
    return BACKEND.describe(source), BACKEND.describe(target), adapter


def svg_of(html):
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + len("</svg>")])


@pytest.mark.parametrize("source", list(DEPTHS))
@pytest.mark.parametrize("target", list(DEPTHS))
def test_the_picture_has_a_block_for_each_block_and_a_line_for_each_hosted_one(source, target):
    first, second, adapter = facts(source, target)
    table = picture.relative_layer_map(first.depth, second.depth)
    root = svg_of(picture.stacks(first, second, adapter, table))
    classes = [element.get("class", "") for element in root.iter()]
    assert classes.count("block block-source") == first.depth
    assert classes.count("block block-target") == second.depth
    assert sum("map-line" in name for name in classes) == first.depth
    assert classes.count("adapter-mark") == first.depth


def test_words_cross_once_behind_the_last_blocks():
    first, second, adapter = facts()
    table = picture.relative_layer_map(first.depth, second.depth)
    drawn = picture.stacks(first, second, adapter, table, by_words=True)
    classes = [element.get("class", "") for element in svg_of(drawn).iter()]
    assert classes.count("map-line lit") == 1
    assert classes.count("glow") == first.depth  # none at the target's blocks
    assert "Words cross" in drawn
    assert "through the heads" in picture.stacks(first, second, adapter, table)
    assert "Fitted to the words" in picture.stacks(first, second, adapter, table, fitted=True)
    assert "cross" not in picture.stacks(first, second, None, table, by_words=True)


def test_only_adapted_blocks_are_lit():
    first, second, adapter = facts()
    adapter = dataclasses.replace(adapter, sites=(SiteFacts(2, ("q",), 1.0),))
    root = svg_of(picture.stacks(first, second, adapter, picture.relative_layer_map(4, 6)))
    assert [e.get("class") for e in root.iter()].count("adapter-mark") == 1
    titles = [e.text for e in root.iter() if e.tag.endswith("title")]
    assert titles[:2] == ["Source block 1: not adapted", "Source block 2: adapted at q"]


def test_everything_from_outside_is_escaped():
    first, second, adapter = facts()
    first = dataclasses.replace(first, name=EVIL, family=EVIL, tokenizer=EVIL)
    adapter = dataclasses.replace(adapter, name=EVIL, licence=EVIL, targets=(EVIL,))
    shown = [
        views.panes(
            EVIL, [Pane("source", EVIL, EVIL, state) for state in ("idle", "running", "done", "note")], EVIL
        ),
        views.sentence(EVIL),
        views.compatibility(first, second, adapter),
        views.job(Job("0" * 32, "a", EVIL, JobState.RUNNING, Progress(EVIL, 1, 2, {EVIL: 1.0}))),
        views.job(Job("0" * 32, "a", EVIL, JobState.FAILED, message=EVIL)),
        picture.stacks(first, second, adapter, picture.relative_layer_map(4, 6)),
    ]
    assert all("<script" not in html for html in shown)
    assert all("&lt;script" in html for html in shown)


def test_differences_are_said():
    first, second, _ = facts()
    assert "differ in family, width, depth and tokenizer" in views.verdict(first, second)
    assert "same model" in views.verdict(first, first)
    assert "same shape" in views.verdict(first, dataclasses.replace(first, name="other"))


def test_an_adapter_of_another_model_is_said():
    first, second, adapter = facts()
    for base, warned in (("", False), (first.name, False), (second.name, True)):
        shown = views.compatibility(first, second, dataclasses.replace(adapter, base_model=base))
        assert (f"was trained on {base}, not on {first.name}" in shown) is warned


def test_a_long_prompt_shows_its_end():
    prompt = "word " * 100 + "[mood] ->"
    assert views.shortened(prompt).startswith("… word")
    assert views.shortened(prompt).endswith("[mood] ->")
    assert len(views.shortened(prompt)) <= 92
    assert views.shortened("short") == "short"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3700, "1 h 01 min")]
)
def test_durations(seconds, words):
    assert views.duration(seconds) == words


@pytest.mark.parametrize(("number", "words"), [(0, "–"), (950, "950"), (906_368, "906 k"), (1.5e9, "1.5 B")])
def test_counts(number, words):
    assert views.count(int(number)) == words


@pytest.mark.parametrize(("value", "words"), [(0.913, "0.91"), (-0.001, "0.00"), (-0.72, "−0.72")])
def test_figures(value, words):
    assert views.figure(value) == words


def test_every_mode_is_explained():
    assert set(MODE_WORDS) == set(MODES)


def test_a_finished_translation_is_adopted_once():
    from app.engine import TranslateResult

    result = TranslateResult(Selection("a", "b", "c", "compiled"), None, None, None, ())
    done = Job("0" * 32, "translate", "x", JobState.DONE, result=result)
    mode, jobs = adopted(done, Attached("0" * 32, adopt=True), "hosted")
    assert (mode, jobs.adopt) == ("compiled", False)
    assert adopted(done, jobs, "hosted") == ("hosted", jobs)
    running = Job("0" * 32, "translate", "x", JobState.RUNNING)
    assert adopted(running, Attached("0" * 32, adopt=True), "hosted")[1].adopt


def test_a_new_source_keeps_the_skill_or_what_was_typed():
    options = BACKEND.adapters("pocket:qwen")
    assert keep_adapter(options, "pocket:llama/pirate", True) == "pocket:qwen/pirate"
    assert keep_adapter(options, "/my/adapter", False) == "/my/adapter"
    assert keep_adapter(options, "", False) == "pocket:qwen/mood"
    assert keep_adapter((), "/my/adapter", False) == "/my/adapter"
    assert keep_adapter((), "pocket:llama/mood", True) == ""


def test_the_heads_plot_shows_each_measure_with_its_control():
    figure = plots.heads_quality(BACKEND.heads_facts(("pocket:llama", "pocket:mistral")))
    assert [trace.name for trace in figure.data] == [
        "R²", "R², pairs shuffled", "k-NN overlap", "k-NN overlap, pairs shuffled",
    ]  # fmt: skip
    assert list(figure.data[0].x) == list(range(7))


def test_a_recording_is_read_back_as_it_was_written(tmp_path):
    first, second, adapter = facts()
    heads = BACKEND.heads_facts((first.name, second.name))
    choice = Selection(first.name, second.name, adapter.name)
    drawn = joint_map(2, MapRequest(choice, 2, points=5), "umap", heads, True, False)
    recorded = Showcase(
        choice, 1.0, "Who?", {"source": "x"}, first, second, adapter, heads, drawn, "made",
        layers=layer_facts(first.name, second.name),
    )  # fmt: skip
    recorded.save(tmp_path / "a" / "showcase.json")
    assert Showcase.load(tmp_path / "a" / "showcase.json") == recorded


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"selection": 3}'])
def test_a_damaged_recording_is_a_sentence(tmp_path, text):
    path = tmp_path / "showcase.json"
    path.write_text(text)
    with pytest.raises(RequestError, match="make it again"):
        Showcase.load(path)


def test_what_the_adapter_moved_is_marked_and_escaped():
    marks = (TokenMark(" <b>", 3.0, '"x" <i>'), TokenMark(" at", 0.5, "y"), TokenMark(" new", 40.0, "z"))
    html = views.panes("Who?", [Pane("target_adapter", "q", " <b> at new", "done", marks)])
    assert html.count("<mark") == 2
    assert "20 times as likely\n&quot;x&quot; &lt;i&gt;" in html
    assert "over 1,000 times as likely\nz" in html
    assert "> &lt;b&gt;</mark> at<mark" in html
    other = views.panes("Who?", [Pane("target_adapter", "q", " another text", "done", marks)])
    assert "<mark" not in other


def test_memory_needed_stands_beside_memory_free():
    source, target = (FakeBackend().describe(name) for name in ("pocket:llama", "pocket:qwen"))
    adapter = FakeBackend().inspect("pocket:llama/mood", source.name)
    needed = (3 << 20, 5 << 20)
    html = views.compatibility(source, target, adapter, Room("cpu", *needed, 1 + sum(needed)))
    assert "take 8 MB of the 8 MB that are free (cpu)" in html
    assert "choose smaller models" in views.compatibility(
        source, target, adapter, Room("cuda", *needed, sum(needed))
    )
    assert "Memory" not in views.compatibility(source, target, adapter)


def test_a_later_round_of_a_stage_is_told_and_an_unknown_stage_is_shown_as_it_is():
    def shown(stage):
        return views.job(Job("0" * 32, "a", "x", JobState.RUNNING, Progress(stage, 1, 2)))

    assert "Fitting the LoRA</p>" in shown("compile")
    assert "Fitting the LoRA, round 2</p>" in shown("compile 2")
    assert "fitting the adapter</p>" in shown("fitting the adapter")


def test_time_left_is_said_to_be_of_the_step():
    began = time.monotonic() - 10
    half = Progress("forms", 500, 1000)
    job = Job("0" * 32, "a", "x", JobState.RUNNING, half, stage_started=began, started=began - 60)
    assert "500 of 1,000 · 1 min 10 s gone, about 10 s left of this step" in views.job(job)
