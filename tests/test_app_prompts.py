"""Example prompts: made more in the background, edited as a list, and read by *Translate* as they stand."""

from dataclasses import replace

import pytest
from fake_backend import ended
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine import Engine
from app.expansions import MAX_PROMPTS, Expansions, KeptList, Line, Made, lines_of
from app.facts import AnsweredPrompt, Expansion, TranslateRequest
from app.jobs import JobState
from app.tabs.prompts import prompts_of, told
from app.workspace import Selection
from cast.errors import RequestError
from cast.recipes import TranslationConfig

CHOICE = Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood", "compiled")
ASKED = TranslateRequest(CHOICE, 10, ("Who?", "A\nB"))


@pytest.fixture
def expansions(backend, jobs, tmp_path):
    return Expansions(backend, Engine(backend, jobs, tmp_path, None), jobs)


def made(expansions, request=ASKED):
    kept = KeptList(pending=expansions.start(request))
    ended(lambda: expansions.pending(kept))
    return expansions.settled(kept)


def test_what_is_made_of_the_examples_is_what_translate_reads(expansions):
    kept = made(expansions)
    assert (kept.pending, kept.lines) == ("", None)
    found = expansions.made(kept, CHOICE)
    assert [line.prompt for line in found.lines] == ["Who?", "A\nB", "Who? More?", "A\nB More?"]
    assert expansions.asked(ASKED, kept) == replace(
        ASKED, prompts=tuple(line.prompt for line in found.lines), expand=False
    )
    edited = replace(kept, lines=(Line(True, "Mine", ""), Line(False, "Who?", " yes")))
    assert expansions.asked(ASKED, edited).prompts == ("Mine",)
    assert KeptList.from_json(edited.to_json()) == edited


def test_a_list_serves_its_own_adapter_only(expansions):
    kept = made(expansions)
    assert expansions.made(kept, replace(CHOICE, target="pocket:qwen")) is not None
    other = replace(ASKED, selection=replace(CHOICE, adapter="pocket:llama/pirate"))
    assert expansions.asked(other, kept) == other
    assert expansions.asked(ASKED, KeptList()) == ASKED
    assert expansions.asked(ASKED, KeptList("0" * 32)) == ASKED


def test_without_examples_general_text_is_measured_alone(expansions):
    asked = replace(ASKED, prompts=())
    kept = made(expansions, asked)
    found = expansions.made(kept, CHOICE).expansion
    assert (found.rows, found.excites) == ((), False)
    assert expansions.asked(asked, kept) == asked


def test_what_the_adapter_said_by_itself_is_read_anew_unless_it_is_edited(expansions, backend, monkeypatch):
    said = Expansion((AnsweredPrompt("Once", " upon"), AnsweredPrompt("Then", " he")), 0.3, True, "yes")
    monkeypatch.setattr(backend, "expand", lambda *_: said)
    asked = replace(ASKED, prompts=())
    kept = made(expansions, asked)
    assert expansions.asked(asked, kept) == asked
    lines = expansions.made(kept, CHOICE).lines
    edited = replace(kept, lines=(replace(lines[0], use=False), lines[1]))
    assert expansions.asked(asked, edited) == replace(asked, prompts=("Then",), expand=False)


def test_what_the_adapter_wrote_unasked_is_no_list_of_prompts(expansions, backend, monkeypatch):
    drawn = Expansion((AnsweredPrompt("", "And it came"), AnsweredPrompt("", "So he went")), 0.3, True, "yes")
    monkeypatch.setattr(backend, "expand", lambda *_: drawn)
    asked = replace(ASKED, prompts=())
    kept = made(expansions, asked)
    written = expansions.made(kept, CHOICE)
    assert written.is_unasked
    words = told(written, written.lines, CHOICE.target)
    assert "2 passages that the adapter writes by itself" in words
    assert "ticked" not in words
    assert expansions.asked(asked, replace(kept, lines=())) == asked


def test_what_speaks_against_a_fit_stands_behind_what_the_text_excites():
    found = Expansion((AnsweredPrompt("Once", " upon"),), 0.3, True, "It excites the adapter")
    good, warned = (
        told(Made(ASKED, replace(found, warning=each)), (), CHOICE.target) for each in ("", "Host it.")
    )
    assert "It excites the adapter.</p>" in good
    assert "It excites the adapter. Host it.</p>" in warned
    assert ("cast-good" in good, "cast-good" in warned) == (True, False)


def test_a_list_that_was_made_for_another_target_says_so(expansions):
    made_for = expansions.made(made(expansions), CHOICE)
    assert "It was made for" not in told(made_for, made_for.lines, CHOICE.target)
    assert f"It was made for {CHOICE.target}" in told(made_for, made_for.lines, "pocket:neox")


def test_a_list_that_a_fit_makes_anew_for_any_target_does_not_say_so_until_it_is_edited(
    expansions, backend, monkeypatch
):
    without = replace(ASKED, prompts=())

    def written(*rows):
        monkeypatch.setattr(backend, "expand", lambda *_: Expansion(rows, 0.3, True, "yes"))
        return expansions.made(made(expansions, without), CHOICE)

    by_itself = written(AnsweredPrompt("Once", " upon"))
    edited = (replace(by_itself.lines[0], use=False), *by_itself.lines[1:])
    assert "It was made for" not in told(by_itself, by_itself.lines, "pocket:neox")
    assert "Unless you edit this list" in told(by_itself, by_itself.lines, "pocket:neox")
    assert f"It was made for {CHOICE.target}" in told(by_itself, edited, "pocket:neox")
    for unasked in (written(AnsweredPrompt("", "And it came")), written()):
        assert "It was made for" not in told(unasked, unasked.lines, "pocket:neox")


def test_a_later_job_that_is_cancelled_leaves_the_list(expansions, backend):
    kept = made(expansions)
    backend.pace, backend.steps = 0.01, 1000
    later = replace(kept, pending=expansions.start(ASKED))
    assert expansions.made(later, CHOICE) is not None
    assert expansions.cancel(later)
    assert ended(lambda: expansions.pending(later)).state is JobState.CANCELLED
    assert expansions.settled(later) == later


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (replace(ASKED, selection=replace(CHOICE, adapter="")), "Choose a source model"),
        (replace(ASKED, prompts=("a",) * (MAX_PROMPTS + 1)), "five are enough"),
        (replace(ASKED, prompts=("a" * 5000,)), "shorten the longest"),
    ],
)
def test_wrong_requests_are_sentences(expansions, asked, words):
    with pytest.raises(RequestError, match=words):
        expansions.start(asked)


def test_as_many_lines_are_kept_as_are_made_for_any_target() -> None:
    made = TranslationConfig().suited(small=False, prompts=True).prompts_for(5)
    cells = [[True, f"Prompt {number}", ""] for number in range(made)]
    assert len(lines_of(cells)) == made == 2000
    assert len(lines_of(cells * 5)) == MAX_PROMPTS


def test_a_box_and_a_table_write_line_breaks_alike():
    assert prompts_of("Who?\n\nA\\nB\n") == ASKED.prompts
    cells = [[True, "A\\nB", " yes"], ["false", "Who?", None], [True, "  ", ""], [True], "abc"]
    assert lines_of(cells) == (Line(True, "A\nB", " yes"), Line(False, "Who?", ""))


values = st.none() | st.booleans() | st.floats() | st.text()


@settings(max_examples=40)
@given(st.recursive(values, lambda v: st.lists(v) | st.dictionaries(st.sampled_from(("job", "lines")), v)))
def test_anything_else_from_a_browser_becomes_a_valid_list(value):
    kept = KeptList.from_json(value)
    assert kept.job == ""
    assert all(line.prompt.strip() for line in kept.lines or ())
