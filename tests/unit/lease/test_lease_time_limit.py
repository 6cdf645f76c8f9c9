"""The time limit of the job, which a lease gives to its tasks."""

from __future__ import annotations

import pytest

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.lease.time_limit import ask_time_limit
from qrmi_workflows.schedulers.base import RunningJob
from qrmi_workflows.schedulers.slurm import Slurm


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch):
    """Return a function that says what Slurm knows of this process's job."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    def knows(running: RunningJob | Exception | None) -> None:
        def running_job(_slurm: Slurm, job_id: str) -> RunningJob | None:
            assert job_id == "17"
            if isinstance(running, Exception):
                raise running
            return running

        monkeypatch.setattr(Slurm, "running_job", running_job)

    return knows


def test_the_limit_is_the_jobs_and_not_what_is_left_of_it(in_job):
    in_job(RunningJob(is_ending=False, used=60, left=240))

    assert ask_time_limit().result(5) == {"QRMI_JOB_TIMEOUT_SECONDS": "300"}


def test_the_limit_of_a_long_job_is_the_longest_that_qrmi_accepts(in_job):
    in_job(RunningJob(is_ending=False, used=60, left=14 * 86400))

    assert ask_time_limit().result(5) == {"QRMI_JOB_TIMEOUT_SECONDS": "604800"}


@pytest.mark.parametrize(
    "running",
    [None, RunningJob(is_ending=False, used=60, left=None), SchedulerError("no answer")],
)
def test_a_job_without_a_known_limit_sets_none(in_job, running):
    in_job(running)

    assert ask_time_limit().result(5) == {}


def test_there_is_no_limit_outside_a_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    assert ask_time_limit().result(5) == {}
