"""How long work may take: reckoned from sizes, put right by what earlier jobs took."""

from dataclasses import replace

import pytest
from fake_backend import FakeBackend, ended

from app.engine import Engine
from app.expecting import Expectations, Expected, about, in_words
from app.facts import FitRequest, TranslateRequest
from app.paces import Pace, Paces
from app.tabs.pick import expected
from app.workspace import Pair, Selection
from cast.errors import Cancelled
from cast.estimates import Shape, fit_seconds, translate_seconds
from cast.fitting import FitConfig
from cast.progress import Progress, ignore
from cast.recipes import TranslationConfig

PAIR = Pair("pocket:llama", "pocket:mistral")
SMALL, LARGE = Shape(64, 2, 800, 10**5), Shape(256, 8, 800, 10**7)


def test_more_to_do_takes_longer():
    quick, best = (FitConfig(tokens=tokens) for tokens in (40_000, 400_000))
    assert 5 < fit_seconds(SMALL, SMALL, best) / fit_seconds(SMALL, SMALL, quick) < 11
    assert fit_seconds(LARGE, LARGE, quick) > fit_seconds(SMALL, LARGE, quick)
    assert fit_seconds(LARGE, LARGE, quick) > fit_seconds(LARGE, LARGE, FitConfig("affine", tokens=40_000))
    assert fit_seconds(LARGE, LARGE, FitConfig(encode_reads=3)) > fit_seconds(LARGE, LARGE, FitConfig())
    modes = [
        translate_seconds(SMALL, SMALL, TranslationConfig(mode), prompts=0)
        for mode in ("hosted", "instant", "compiled")
    ]
    assert modes[0] == 0 < modes[1] < modes[2]


def test_what_a_compiled_fit_reads_beside_general_text_is_counted():
    def seconds(prompts=0, source=SMALL, target=SMALL, expand=True, **settings):
        config = TranslationConfig(**settings)
        return translate_seconds(source, target, config, prompts=prompts, expand=expand)

    plain = seconds(moments=0, forms=0)
    assert seconds(prompts=5) > plain
    # All of a long list are answered, and none of one that is read as it stands are written.
    assert seconds(prompts=5, steps=20) < seconds(prompts=2000, steps=20) < seconds(prompts=4000, steps=20)
    assert seconds(prompts=400, expand=False) < seconds(prompts=5, prompts_wanted=400)
    # There are at most as many places and forms as suit what a fit reads.
    assert plain < seconds(moments=100, forms=0) < seconds(forms=0) < seconds(forms=1000) < seconds()
    assert seconds(moments=1000, forms=3000) == seconds(moments=10_000, forms=10_000)
    # A target of a few million parameters reads fewer batches more often.
    assert seconds() == seconds(passes=6) < seconds(passes=4)
    large = replace(LARGE, parameters=10**8)
    assert seconds(target=large) == seconds(target=large, steps=240, passes=3)
    assert seconds() == seconds(steps=150) < seconds(steps=240)
    # A short fit asks for few.
    assert seconds(steps=20) == seconds(steps=20, forms=2000)
    assert seconds(steps=20, forms=0) - seconds(steps=20, moments=0, forms=0) < seconds(forms=0) - plain
    # Prompts take the place of what is asked, and instant asks nothing.
    assert seconds(prompts=5) == seconds(prompts=5, moments=0, forms=0)
    assert seconds(mode="instant") == seconds(mode="instant", moments=0, forms=0)
    # It is the source that reads, writes and judges.
    big = seconds(source=LARGE) - seconds(source=LARGE, moments=0, forms=0)
    assert big > seconds() - plain


def test_a_pace_is_learnt_by_kind_and_size_and_kept(tmp_path):
    paces = Paces(tmp_path)
    assert paces.of("compiled", 10**6) == Pace(1.0, 0)
    for taken in (20.0, 80.0):
        paces.learn("compiled", 10**6, 10.0, taken)
    paces.learn("compiled", 10**6, 10.0, 0.01)  # nothing was done
    found = Paces(tmp_path).of("compiled", 2 * 10**6)
    assert (found.factor, found.jobs) == (pytest.approx(4.0), 2)
    assert Paces(tmp_path).of("compiled", 10**9).jobs == 2
    assert Paces(tmp_path).of("instant", 10**6).jobs == 0


@pytest.mark.parametrize("text", ["", "[]", '{"compiled/7": "x"}', '{"compiled/7": [0, -1, null, 1e9]}'])
def test_a_damaged_file_of_paces_is_as_good_as_none(tmp_path, text):
    (tmp_path / "paces.json").write_text(text)
    assert Paces(tmp_path).of("compiled", 10**6) == Pace(1.0, 0)


def test_only_what_came_to_its_end_and_fitted_no_heads_first_teaches(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr("app.expecting.time.monotonic", lambda: next(clock))
    backend = FakeBackend()
    facts = backend.describe(PAIR.source), backend.describe(PAIR.target)
    asked = TranslateRequest(Selection(*vars(PAIR).values(), "pocket:llama/mood", "compiled"))
    expectations = Expectations(backend, Paces(tmp_path))

    def doing(*stages):
        def work(told):
            for stage in stages:
                told(Progress(stage, 1, 1))

        expectations.timed(asked, lambda: facts, work, ignore)
        return expectations.of(asked, *facts)

    assert doing("load") == Expected(60.0, 0)
    assert doing("activations", "compile") == Expected(60.0, 0)
    assert doing("load", "compile") == Expected(pytest.approx(30.0), 1)

    def stopped(told):
        raise Cancelled("The job was cancelled.")

    with pytest.raises(Cancelled):
        expectations.timed(asked, lambda: facts, stopped, ignore)
    assert expectations.of(asked, *facts).jobs == 1


def test_the_engine_learns_from_its_own_jobs(jobs, tmp_path):
    engine = Engine(FakeBackend(pace=0.03), jobs, tmp_path, None, kept=tmp_path / "kept")
    asked = FitRequest(PAIR, tokens=10_000)
    before = engine.expected(asked)
    job_id = engine.own.start(asked)
    ended(lambda: engine.job(job_id))
    after = engine.expected(asked)
    assert (before.jobs, after.jobs) == (0, 1)
    assert after.seconds < before.seconds


def test_times_are_said_with_their_ground():
    assert [about(seconds) for seconds in (3, 33, 200, 7000)] == [
        "a few seconds", "about 30 s", "about 3 min", "about 1.9 h",
    ]  # fmt: skip
    words = in_words("hosted", Expected(33, 0), Expected(200, 0), hosted=True, prompts=5)
    assert "mode hosted runs at once, a plain LoRA with 5 prompts takes about 30 s" in words
    assert "about 3 min. Reckoned from" in words
    assert "no such job has run here yet" in words
    words = in_words("compiled", Expected(60, 3), Expected(200, 0), prompts=1)
    assert "mode compiled with 1 prompt takes about 60 s" in words
    assert "the last 3 such jobs took" in words


def test_how_long_translate_takes_is_told_of_the_prompts_and_the_list_that_it_would_read(jobs, tmp_path):
    backend = FakeBackend()
    engine = Engine(backend, jobs, tmp_path, None, kept=tmp_path / "kept")
    asked = TranslateRequest(Selection(PAIR.source, PAIR.target, "pocket:llama/mood"), 120, ("one", "two"))
    assert expected(engine, asked) == ""
    engine.facts(asked.selection)
    assert "mode hosted runs at once, a plain LoRA with 2 prompts takes" in expected(engine, asked)
    assert backend.reckoned[-1] == replace(asked, selection=replace(asked.selection, mode="compiled"))
    compiled = replace(asked, selection=replace(asked.selection, mode="compiled"), prompts=())
    assert "mode compiled takes" in expected(engine, compiled)
