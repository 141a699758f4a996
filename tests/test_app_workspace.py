"""What comes back from a visitor's browser is checked before it is used."""

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import app.workspace
from app.workspace import MAX_SEGMENT, MAX_STRENGTH, MODES, Attached, Selection, Workspace, clamp_strength

names = st.text(max_size=50)


@given(
    names,
    names,
    names,
    st.sampled_from(MODES),
    st.integers(0, MAX_SEGMENT),
    st.floats(0, MAX_STRENGTH),
    names,
)
def test_a_workspace_survives_the_browser(source, target, adapter, mode, segment, strength, prompt):
    space = Workspace(source, target, adapter, mode, segment, strength, prompt)
    assert Workspace.from_json(space.choice(), space.settings()) == space
    blocks = segment if mode == "hosted" and segment else None
    assert space.selection == Selection(source, target, adapter, mode, blocks)


KEYS = (
    "source",
    "mode",
    "segment",
    "strength",
    "prompt",
    "translate_job",
    "retrained_strength",
    "second_mode",
    "x",
)
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(values, lambda inner: st.dictionaries(st.sampled_from(KEYS), inner)))
def test_anything_else_becomes_a_valid_workspace(value):
    space = Workspace.from_json(value)
    assert space.mode in MODES
    assert space.second_mode in (*MODES, "")
    assert 0 <= space.retrained_strength <= MAX_STRENGTH
    assert 0 <= space.strength <= MAX_STRENGTH
    assert 0 <= space.segment <= MAX_SEGMENT
    assert all(isinstance(text, str) for text in (space.source, space.target, space.adapter, space.prompt))
    assert Attached.from_json(value).translate_job == "" or isinstance(value, dict)


@pytest.mark.parametrize("job", ["../../etc/passwd", "A" * 32, "0" * 31, 7, None])
def test_only_job_ids_are_job_ids(job):
    assert Attached.from_json({"translate_job": job}) == Attached()


def test_job_ids_are_kept():
    jobs = Attached(translate_job="0" * 32, heads_job="f" * 32, folder="/out", adopt=True)
    assert Attached.from_json(jobs.to_json()) == jobs


def test_names_of_any_length_are_not():
    assert Workspace.from_json({"source": "x" * 301}).source == ""


@given(st.floats(allow_nan=False))
def test_strength_stays_inside_the_slider(value):
    assert 0 <= clamp_strength(value) <= MAX_STRENGTH
    assert not math.isnan(clamp_strength(value))


def test_the_workspace_knows_no_gradio():
    tree = ast.parse(Path(app.workspace.__file__).read_text())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not any(name and name.startswith("gradio") for name in imported)
