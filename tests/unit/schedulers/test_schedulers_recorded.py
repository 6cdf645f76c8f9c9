"""What Slurm's commands print, recorded from the oldest supported Slurm and from a recent one.

Recorded in a sandbox, with names of users and folders replaced. Slurm 26.05 was built without
`--enable-multiple-slurmd`, as SchedMD's packages are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.base import JobState, RunningJob
from qrmi_workflows.schedulers.gres import grants_of_job, gres_of_job, offered_gres
from qrmi_workflows.schedulers.slurm import (
    Slurm,
    cluster_of,
    has_accounting,
    has_multiple_slurmd,
    kill_wait_of,
    parse_running_job,
)

VERSIONS = sorted(path.name for path in (Path(__file__).parent / "recorded").iterdir())
FEZ = QPUPolicy(name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez")
FRESNEL = QPUPolicy(name="FRESNEL", gres="qpu:FRESNEL", licence="qpu_FRESNEL")

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
    ("job", "gres", "licences"),
    [
        ("quantum", {"qpu:ibm_fez"}, {"qpu_ibm_fez"}),
        ("untyped", {"qpu:ibm_fez"}, set()),  # Slurm has chosen the type
        ("plain", set(), set()),
    ],
)
def test_what_a_job_holds(recorded, job, gres, licences):
    held = grants_of_job(recorded(f"job-{job}"))

    assert held is not None
    assert (held.gres, held.licences) == (gres, licences)
    assert held.hold(FEZ) == (job == "quantum")
    assert not held.hold(FRESNEL)


def test_what_an_unknown_job_holds_is_not_known(recorded):
    assert grants_of_job(recorded("job-unknown")) is None


def test_scontrol_show_config(recorded):
    config = recorded("config")

    assert cluster_of(config) == "sandbox"
    assert kill_wait_of(config) == 30
    assert not has_accounting(config)
    assert has_multiple_slurmd(config) == ("22.05" in config)


def test_sinfo(recorded):
    assert offered_gres(recorded("sinfo")) == {"qpu:ibm_fez": 1, "qpu:FRESNEL": 1}


def test_a_job_is_asked_for_what_it_holds_with_one_command(recorded, commands):
    site = SitePolicy(path=Path("site.toml"), qpus={"ibm_fez": FEZ, "FRESNEL": FRESNEL})
    commands.write("scontrol", f"cat <<'END'\n{recorded('job-quantum')}\nEND")

    assert Slurm().granted_qpus(site, {"SLURM_JOB_ID": "5"}) == {"ibm_fez"}
    assert commands.calls("scontrol") == ["--details show job 5"]
