"""What Slurm's commands print, recorded from the oldest supported Slurm and from a recent one.

Recorded in a sandbox, with names of users and folders replaced. Slurm 26.05 was built without
`--enable-multiple-slurmd`, as SchedMD's packages are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qrmi_workflows.schedulers.base import JobState, RunningJob
from qrmi_workflows.schedulers.gres import gres_of_job, offered_gres
from qrmi_workflows.schedulers.slurm import Slurm, parse_running_job
from qrmi_workflows.schedulers.slurm_config import (
    cluster_of,
    has_accounting,
    has_multiple_slurmd,
    kill_wait_of,
)
from qrmi_workflows.schedulers.slurm_grants import JobRow, resolve

VERSIONS = sorted(path.name for path in (Path(__file__).parent / "recorded").iterdir())

Recorded = Callable[[str], str]


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """The output of a command, under its name."""
    folder = Path(__file__).parent / "recorded" / request.param
    return lambda name: (folder / name).read_text(encoding="utf-8")


def test_two_versions_are_recorded():
    assert VERSIONS == ["22.05.8", "26.05.3"]


def test_squeue(recorded):
    listed = {job.name: job for job in Slurm().parse_status(recorded("squeue")).values()}

    states = {name: (job.state, job.exit_code) for name, job in listed.items()}
    assert states | {"array": None, "het": None} == {
        "na|me,x": (JobState.RUNNING, 0),
        "quantum": (JobState.RUNNING, 0),
        "plain": (JobState.RUNNING, 0),
        "suspended": (JobState.SUSPENDED, 0),
        "pending": (JobState.PENDING, 0),
        "held": (JobState.PENDING, 0),
        "failed": (JobState.PENDING, 3),  # requeued; the exit code is that of its first run
        "killed": (JobState.FAILED, 137),
        "cancelled": (JobState.CANCELLED, 143),
        "untyped": (JobState.CANCELLED, 143),
        "array": None,
        "het": None,
    }
    assert listed["na|me,x"].comment == "ticket|42\nowner me"
    assert listed["pending"].reason == "Licenses"


def test_squeue_lists_a_running_task_of_an_array_under_the_id_that_it_sees(recorded):
    listed = Slurm().parse_status(recorded("squeue"))
    array = next(
        job.job_id for job in listed.values() if job.word == "PENDING" and job.name == "array"
    )

    (task,) = (job for id_, job in listed.items() if id_ == f"{array}_1")

    assert task.state is JobState.RUNNING
    assert task.job_id != array


def test_squeue_of_a_running_job(recorded):
    output = recorded("squeue-running")

    job = parse_running_job(output, output.partition("|")[0])

    assert isinstance(job, RunningJob)
    assert not job.is_ending
    assert job.used + (job.left or 0) == 60


def test_scontrol_show_job(recorded):
    assert gres_of_job(recorded("job-quantum")) == {
        "state": "RUNNING",
        "gres": "qpu:ibm_fez:1",
        "licences": "qpu_ibm_fez:1",
    }
    assert gres_of_job(recorded("job-plain")) == {"state": "RUNNING", "gres": "", "licences": ""}


@pytest.mark.parametrize(
    ("job", "gres"), [("quantum", {"qpu:ibm_fez"}), ("untyped", {"qpu:ibm_fez"}), ("plain", set())]
)
def test_the_gres_that_slurm_has_chosen(recorded, job, gres):
    shown = recorded(f"job-{job}")
    asked = tuple(filter(None, [gres_of_job(shown)["gres"]]))
    row = JobRow(
        id="5", components=(), is_batch=True, limit=None, account=None, gres=asked, licences=""
    )

    assert resolve([row], shown, is_certain=True).gres == gres


def test_scontrol_show_config(recorded):
    config = recorded("config")

    assert cluster_of(config) == "sandbox"
    assert kill_wait_of(config) == 30
    assert not has_accounting(config)
    assert has_multiple_slurmd(config) == ("22.05" in config)


def test_sinfo(recorded):
    assert offered_gres(recorded("sinfo")) == {"qpu": 2, "qpu:ibm_fez": 1, "qpu:FRESNEL": 1}
