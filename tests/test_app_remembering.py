"""What a browser kept of a tab's settings is checked before it is put back."""

import gradio as gr
import pytest

from app.tabs.evaluate import _own_name
from app.tabs.remembering import fits


@pytest.mark.parametrize(
    ("widget", "good", "bad"),
    [
        (gr.Radio([("quick, 40", "quick"), ("good", "good")]), "quick", "quick, 40"),
        (gr.Radio([("2-D", 2), ("3-D", 3)]), 3, "3"),
        (gr.CheckboxGroup([("Hosted", "hosted"), ("Instant", "instant")]), ["instant"], ["gone"]),
        (gr.Slider(20, 500), 40, 1000),
        (gr.Number(1, minimum=0), 0, -1),
        (gr.Number(1), 0.5, float("nan")),
        (gr.Checkbox(), False, 0),
        (gr.Textbox(), "stories.txt", "x" * 301),
    ],
)
def test_what_no_longer_fits_is_left_out(widget, good, bad):
    assert fits(widget, good)
    assert not fits(widget, bad)


def test_an_uploaded_file_is_called_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert _own_name(str(tmp_path / "0a1b" / "mine.jsonl")) == "mine.jsonl"
    assert [_own_name(name) for name in ("pocket:mood", "", "/tasks/mine.jsonl")] == [
        "pocket:mood",
        "",
        "/tasks/mine.jsonl",
    ]
