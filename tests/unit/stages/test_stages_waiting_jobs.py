"""The jobs of a stage: which wait, who releases and who cancels them."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest

from qrmi_workflows.errors import LeaseError, SchedulerError
from qrmi_workflows.lease.stage import Stage, StageState
from qrmi_workflows.stages.waiting_jobs import ScheduledJobs, announce_jobs, submission_options
from qrmi_workflows.state.locks import lock_file

STAGE = Stage(name="vqe", qpu="ibm_fez", type="", id="0", keeper_job="1", guard_job="2")
WAITS = "afterok:1(unfulfilled)"


@pytest.fixture
def keeper(site):
    """The keeper of a stage that is ready."""
    STAGE.folder.create()
    with lock_file(STAGE.folder.alive) as lock:
        yield lock


def test_a_job_waits_until_the_stage_is_ready(keeper):
    assert submission_options(STAGE) == [
        "--comment=qpu_stage=vqe:0",
        "--dependency=afterok:1",
        "--kill-on-invalid-dep=yes",
    ]
    assert submission_options(replace(STAGE, state=StageState.READY)) == [
        "--comment=qpu_stage=vqe:0"
    ]


def test_a_job_waits_while_the_keeper_of_a_ready_stage_is_dead(site):
    """Its job may be in the queue again, after its node has failed."""
    assert "--dependency=afterok:1" in submission_options(replace(STAGE, state=StageState.READY))


def test_new_jobs_are_announced_to_the_keeper(keeper):
    announce_jobs(replace(STAGE, state=StageState.READY))
    assert list(STAGE.folder.wishes.iterdir()) == []

    announce_jobs(STAGE)

    (wish,) = STAGE.folder.wishes.iterdir()
    assert wish.name.startswith("jobs-")


def test_a_jobs_own_comment_and_dependencies_are_kept(keeper):
    assert submission_options(STAGE, comment="mine", after=["7", "8"])[:2] == [
        "--comment=mine qpu_stage=vqe:0",
        "--dependency=afterok:1,afterany:7:8",
    ]
    ready = replace(STAGE, state=StageState.READY)
    assert submission_options(ready, after=["7"])[1] == "--dependency=afterany:7"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"closing": True}, "stage 'vqe' is being closed; a job needs an open stage"),
        ({"state": StageState.ENDED, "reason": "r"}, "stage 'vqe' has ended: r; a job needs"),
    ],
)
def test_a_job_of_a_stage_that_takes_no_more_jobs_is_refused(change, message):
    with pytest.raises(LeaseError, match=message) as error:
        submission_options(replace(STAGE, **change))
    assert error.value.retryable


def test_jobs_that_wait_are_released_with_one_query_and_one_command(site):
    site.queue(*[(str(n), "PENDING", WAITS) for n in range(5, 105)], ("200", "RUNNING", "(null)"))

    ScheduledJobs(STAGE).release_waiting()

    assert len(site.commands.calls("squeue")) == 1
    (call,) = site.commands.calls("scontrol")
    assert call.startswith("update JobId=5,6,7,")


def test_a_job_that_ended_meanwhile_does_not_keep_others_from_their_release(site, caplog):
    site.queue(("5", "PENDING", WAITS), ("6", "PENDING", f"{WAITS},afterany:3(unfulfilled)"))
    site.commands.write("scontrol", "echo 'Job is no longer pending' >&2; exit 1")

    ScheduledJobs(STAGE).release_waiting()

    assert len(site.commands.calls("scontrol")) == 2
    assert "not all jobs were released: Job is no longer pending" in caplog.text


def test_jobs_that_wait_and_a_guard_that_has_not_started_are_cancelled(site, caplog):
    site.queue(
        ("2", "PENDING", "afterany:1(unfulfilled)"),
        ("5_[1-3]", "PENDING", WAITS),
        ("6", "RUNNING", "(null)"),
    )

    ScheduledJobs(STAGE).cancel_waiting("closed")

    assert site.commands.calls("scancel") == ["5", "2"]
    assert "cancelling 1 job of the stage: 5_[1-3]: the stage has ended: closed" in caplog.text


def test_the_guard_stays_if_the_keeper_has_left_its_lease_open(site, monkeypatch):
    """Tasks are in flight; whoever waits for them may be killed."""
    left = Mock(lease="l", owner=Mock(job="1"))
    monkeypatch.setattr("qrmi_workflows.stages.waiting_jobs.open_leases", lambda: [left])
    site.queue(("2", "PENDING", "afterany:1(unfulfilled)"), ("5", "PENDING", WAITS))

    ScheduledJobs(STAGE).cancel_waiting("closed")

    assert site.commands.calls("scancel") == ["5"]


def test_the_guard_that_ends_the_stage_does_not_cancel_itself(site):
    site.queue(("2", "RUNNING", "(null)"))

    ScheduledJobs(STAGE).cancel_waiting("closed")

    assert site.commands.calls("scancel") == []


def test_a_job_of_the_stage_is_left_while_it_waits_or_runs(site):
    site.queue(("2", "PENDING", "(null)"), ("7", "RUNNING", "(null)"))
    assert not ScheduledJobs(STAGE).are_left()
    site.queue(("5", "PENDING", WAITS))
    assert ScheduledJobs(STAGE).are_left()
    site.queue(("8", "RUNNING", "(null)", "mine qpu_stage=vqe:0"))
    assert ScheduledJobs(STAGE).are_left()
    assert not ScheduledJobs(replace(STAGE, id="00")).are_left()


def test_a_silent_scheduler_is_an_error(site):
    site.commands.write("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")

    with pytest.raises(SchedulerError, match="Unable to contact"):
        ScheduledJobs(STAGE).are_left()


def test_jobs_that_are_left_for_long_are_queried_ever_less_often(site, monkeypatch):
    site.queue(("5", "PENDING", WAITS))
    jobs, clock = ScheduledJobs(STAGE), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    for second in range(600):
        clock[0] = second
        assert jobs.are_left()

    assert len(site.commands.calls("squeue")) < 30
    site.queue()
    clock[0] += 60
    assert not jobs.are_left()


def test_the_end_of_a_running_job_is_noticed_soon(site, monkeypatch):
    """A closed stage keeps its session, which is billed, until it knows that its last job ended."""
    jobs, clock = ScheduledJobs(STAGE), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    site.queue(("5", "PENDING", WAITS))
    while clock[0] < 300:
        assert jobs.are_left()
        clock[0] += 1

    site.queue(("5", "RUNNING", "(null)", "qpu_stage=vqe:0"))
    while clock[0] < 400:
        assert jobs.are_left()
        clock[0] += 1
    site.queue()
    clock[0] += 5
    assert not jobs.are_left()


def test_the_scheduler_is_asked_again_when_a_process_of_the_stage_has_ended(site):
    jobs = ScheduledJobs(STAGE)
    site.queue(("5", "PENDING", WAITS))
    assert jobs.are_left()
    site.queue()
    assert jobs.are_left(), "it is not asked again at once"

    jobs.expect_change()

    assert not jobs.are_left()
