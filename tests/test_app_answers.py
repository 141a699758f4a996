"""Several prompts at once: answered row by row, kept when cancelled, and written as CSV."""

import csv
import io
import time

import pytest
from fake_backend import ended

from app import answer_table
from app.answers import MAX_ROWS, Answers, AnswerTables, as_csv
from app.engine import Engine, GenerateRequest
from app.facts import SamplingChoice
from app.jobs import JobState
from app.tabs.several import _job_id
from app.workspace import Beside, Selection
from cast.errors import RequestError

CHOICE = Selection("pocket:llama", "pocket:mistral", "pocket:llama/mood", "compiled")
ASKED = GenerateRequest(
    CHOICE, 1.0, "", SamplingChoice(8, 0.0, 0), beside=Beside(retrained="pocket:mistral/mood")
)


@pytest.fixture
def tables(backend, jobs, tmp_path):
    return AnswerTables(Engine(backend, jobs, tmp_path, None), jobs)


def test_every_prompt_is_answered_in_every_pane_and_written_as_csv(tables):
    job_id = tables.start(ASKED, ["Who?", 'A "b",\nc'])
    assert ended(lambda: tables.job(job_id)).state is JobState.DONE
    told = tables.answers(job_id)
    assert [prompt for prompt, _ in told.finished] == ["Who?", 'A "b",\nc']
    head, *rows = csv.reader(io.StringIO(as_csv(told)))
    assert head[0] == "prompt"
    assert head[-1] == "Target, retrained: pocket:mistral/mood"
    assert [row[0] for row in rows] == ["Who?", 'A "b",\nc']
    assert rows[0][2].startswith(" pocket:llama says mood")
    # What is not translated yet has no answer, and says so in the table alone.
    assert rows[0][4] == ""
    html = answer_table.table(told)
    assert html.count("press Translate") == 2
    assert html.count("<tr>") == 3
    assert "<b>" not in html
    assert '<mark class="cast-moved"' in html


def test_a_cancelled_table_keeps_what_is_written(tables, backend):
    backend.pace = 0.01
    job_id = tables.start(ASKED, ["Who?"] * 50)
    while not tables.answers(job_id).finished:
        time.sleep(0.01)
    tables.cancel(job_id)
    assert ended(lambda: tables.job(job_id), 2).state is JobState.CANCELLED
    assert 0 < len(tables.answers(job_id).finished) < 50
    assert backend.open_streams == 0


def test_an_error_ends_the_table_with_a_sentence_and_keeps_what_is_written(tables):
    job_id = tables.start(ASKED, ["Who?", "x" * 5000])
    job = ended(lambda: tables.job(job_id))
    assert (job.state, len(tables.answers(job_id).finished)) == (JobState.FAILED, 1)
    assert "5,000 characters" in job.message


@pytest.mark.parametrize(
    ("prompts", "words"), [([], "Write some prompts"), (["a"] * (MAX_ROWS + 1), "at most")]
)
def test_wrong_requests_are_sentences(tables, prompts, words):
    with pytest.raises(RequestError, match=words):
        tables.start(ASKED, prompts)


def test_what_a_browser_kept_finds_its_own_table_only(tables):
    assert tables.answers("0" * 32) == Answers(())
    assert _job_id({"job": "0" * 32}) == "0" * 32
    assert _job_id({"job": "../x"}) == _job_id(None) == _job_id({"job": 7}) == ""
