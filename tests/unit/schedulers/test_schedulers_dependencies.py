"""Jobs that wait for another job: their options, and the commands that release them."""

from __future__ import annotations

import pytest

from qrmi_workflows.schedulers.base import JobLimits, JobState, JobStatus
from qrmi_workflows.schedulers.slurm import Slurm

WAITS = "afterok:20(unfulfilled)"
SQUEUE = [
    ("21", "21", "PENDING", "Dependency", "a", WAITS),
    ("22", "22", "PENDING", "Dependency", "b", f"{WAITS},afterany:24(unfulfilled)"),
    ("23_[1,3]", "23", "PENDING", "Dependency", "c", WAITS),
    ("25", "25", "PENDING", "JobHeldAdmin", "h", WAITS),
    ("26", "26", "CANCELLED", "DependencyNeverSatisfied", "d", "afterok:20(failed)"),
    ("27", "27", "PENDING", "Dependency", "e", "afterok:200(unfulfilled)"),
    ("24", "24", "RUNNING", "None", "r", "(null)"),
]
"""Id, state, reason, name and dependencies, as recorded from Slurm 22.05.8."""


@pytest.fixture(name="listed")
def fixture_listed() -> dict[str, JobStatus]:
    return Slurm().parse_status(
        "".join(
            "\x1f".join([id_, raw, state, "0", reason, "(null)", name, waits, "\n"])
            for id_, raw, state, reason, name, waits in SQUEUE
        )
    )


def test_a_waiting_job_depends_on_the_success_of_the_job_that_releases_it():
    assert Slurm().waiting_options("20") == [
        "--dependency=afterok:20",
        "--kill-on-invalid-dep=yes",
    ]
    assert Slurm().waiting_options("20", ["24", "21"])[0] == (
        "--dependency=afterok:20,afterany:24:21"
    )


def test_a_job_may_start_after_others_whatever_their_end():
    assert Slurm().after_options(["20", "21"]) == [
        "--dependency=afterany:20:21",
        "--kill-on-invalid-dep=no",
    ]


def test_only_jobs_that_wait_for_the_job_itself_count(listed):
    waiting = [id_ for id_, status in listed.items() if Slurm().is_waiting(status, "20")]

    assert waiting == ["21", "22", "23_[1,3]", "25"]
    assert listed["24"].dependency == ""


def test_a_release_takes_one_command_for_each_set_of_a_users_own_dependencies(listed):
    assert Slurm().release_argvs(listed, "20") == [
        ["scontrol", "update", "JobId=21,23,25", "Dependency="],
        ["scontrol", "update", "JobId=22", "Dependency=afterany:24"],
    ]
    assert Slurm().release_argvs(listed, "2") == []


def test_a_release_of_many_jobs_takes_few_commands():
    waiting = JobStatus(state=JobState.PENDING, dependency="afterok:20(unfulfilled)")
    argvs = Slurm(clusters="beta").release_argvs({str(n): waiting for n in range(1000)}, "20")

    assert len(argvs) == 5
    assert argvs[0][:3] == ["scontrol", "--clusters=beta", "update"]


def test_limits_of_a_small_job_become_options():
    limits = JobLimits(memory=500, time="8:00:00", partition="q", account="a", requeue=True)

    assert Slurm().limit_options(limits) == [
        "--ntasks=1", "--cpus-per-task=1", "--mem=500M", "--time=8:00:00", "--partition=q",
        "--account=a", "--requeue",
    ]  # fmt: skip
    assert Slurm().limit_options(JobLimits(memory=100))[2:] == ["--mem=100M", "--no-requeue"]
    assert Slurm().comment_options("a b") == ["--comment=a b"]
