"""Jobs that wait, without a Slurm job, until a QPU can be chosen for them."""

import logging

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from waiting import wait_until

from snakemake_executor_plugin_slurm_qpu import waiting_jobs
from snakemake_executor_plugin_slurm_qpu.waiting_jobs import WaitingJobs


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(waiting_jobs, "_PAUSE", 0.01)


class Job:
    def __init__(self, jobid):
        self.jobid = jobid


def test_a_job_is_submitted_again_until_it_gets_a_qpu(caplog):
    caplog.set_level(logging.INFO)
    tries = []

    def submit(waiting):
        tries.append(waiting.jobid)
        if len(tries) < 4:
            jobs.add(waiting, f"reason {len(tries)}")

    jobs = WaitingJobs(logging.getLogger("run"), submit)
    jobs.add(Job(1), "no QPU fits now: fez: queue is 9")

    wait_until(lambda: tries == [1] * 4, "four attempts")
    assert caplog.messages == ["Job 1 waits for a QPU: no QPU fits now: fez: queue is 9"]

    jobs.add(Job(2), "again")
    wait_until(lambda: tries[4:] == [2], "another job, after a while without any")
    jobs.stop()


def test_after_the_end_of_the_run_no_job_is_submitted():
    tries = []
    jobs = WaitingJobs(logging.getLogger("run"), tries.append)
    jobs.stop()

    jobs.add(Job(1), "late")

    assert jobs._thread is None
    assert tries == []
