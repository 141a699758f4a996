"""Background jobs: progress, cancel, failures in words, and being found again."""

import threading
import time

import pytest

from app.jobs import Job, Jobs, JobState
from cast.errors import ModelError
from cast.progress import Progress


@pytest.fixture
def jobs():
    made = Jobs(workers=1)
    yield made
    made.close()


def over(jobs, job_id, seconds=5.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (job := jobs.get(job_id)) and job.is_over:
            return job
        time.sleep(0.005)
    raise AssertionError(f"job still {jobs.get(job_id)}")


def test_a_job_runs_and_keeps_its_result(jobs):
    def work(on_progress):
        on_progress(Progress("fit", 1, 2, {"loss": 0.5}))
        return 7

    job = over(jobs, jobs.start("heads", "Train heads.", work))
    assert (job.state, job.result, job.progress) == (JobState.DONE, 7, Progress("fit", 1, 2, {"loss": 0.5}))


def test_cancel_acts_at_the_next_report(jobs):
    reported = threading.Event()

    def work(on_progress):
        for step in range(10_000):
            on_progress(Progress("fit", step, 10_000))
            reported.set()
            time.sleep(0.001)

    job_id = jobs.start("heads", "Train heads.", work)
    assert reported.wait(5)
    assert jobs.cancel(job_id)
    assert over(jobs, job_id).state is JobState.CANCELLED
    assert not jobs.cancel(job_id)


def test_a_queued_job_is_cancelled_before_it_begins(jobs):
    gate, ran = threading.Event(), []
    first = jobs.start("a", "first", lambda report: gate.wait(5))
    second = jobs.start("a", "second", lambda report: ran.append(1))
    assert jobs.get(second).state is JobState.QUEUED
    jobs.cancel(second)
    gate.set()
    over(jobs, first)
    assert over(jobs, second).state is JobState.CANCELLED
    assert ran == []


def test_a_failure_is_a_sentence(jobs):
    def known(on_progress):
        raise ModelError("The model is gone; choose another.")

    def unknown(on_progress):
        raise ZeroDivisionError("secret detail")

    assert over(jobs, jobs.start("a", "x", known)).message == "The model is gone; choose another."
    message = over(jobs, jobs.start("a", "x", unknown)).message
    assert "unexpected" in message
    assert "secret detail" not in message


def test_unknown_ids_are_nothing(jobs):
    assert jobs.get("0" * 32) is None
    assert not jobs.cancel("0" * 32)


def test_old_jobs_are_forgotten_and_running_ones_are_not():
    jobs, gate = Jobs(workers=2, keep=3), threading.Event()
    running = jobs.start("a", "running", lambda report: gate.wait(5))
    for _ in range(6):
        over(jobs, jobs.start("a", "short", lambda report: None))
    gate.set()
    assert len(jobs.list()) <= 4
    assert jobs.get(running) is not None
    jobs.close()


def test_time_left_follows_the_pace_of_the_stage():
    job = Job(
        "0" * 32, "a", "x", JobState.RUNNING, Progress("fit", 25, 100), stage_started=100.0, started=90.0
    )
    assert job.seconds_left(now=110.0) == pytest.approx(30.0)
    assert job.seconds(now=110.0) == pytest.approx(20.0)
    assert Job("0" * 32, "a", "x", JobState.RUNNING).seconds_left(now=5.0) is None


def test_the_place_in_the_queue_is_known(jobs):
    gate = threading.Event()
    ids = [jobs.start("a", f"job {number}", lambda report: gate.wait(5)) for number in range(4)]
    until = time.monotonic() + 5
    while jobs.get(ids[0]).state is JobState.QUEUED and time.monotonic() < until:
        time.sleep(0.005)
    assert [jobs.get(job_id).ahead for job_id in ids] == [0, 1, 2, 3]
    jobs.cancel(ids[1])
    assert [jobs.get(job_id).ahead for job_id in ids] == [0, 0, 1, 2]
    gate.set()
    assert over(jobs, ids[3]).ahead == 0


def test_a_stage_that_goes_on_has_the_pace_of_what_it_does_itself(jobs):
    gate = threading.Event()

    def work(on_progress):
        for done in range(500, 1000):
            on_progress(Progress("fit", done, 1000, {"loss": 1.0}))
        gate.wait(5)

    job_id = jobs.start("heads", "Train heads.", work)
    until = time.monotonic() + 5
    while (jobs.get(job_id).progress or Progress("", 0, 1)).done < 999 and time.monotonic() < until:
        time.sleep(0.005)
    job = jobs.get(job_id)
    at = job.stage_started + 10
    assert job.steps_a_second(at) == pytest.approx(49.9)
    assert job.seconds_left(at) == pytest.approx(1 / 49.9)
    assert [report.done for report in job.history] == list(range(500, 1000, 5))
    gate.set()
