"""A QPU that Slurm has reserved for somebody: whose jobs start, from whichever tool they come."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import blocks
from snakemake_runs import PAYLOAD, Project
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

PAGE = Path(__file__).parents[2] / "docs/reservations.md"


@pytest.fixture
def project(sandbox: Sandbox, tmp_path: Path) -> Iterator[Project]:
    """A workflow's folder; ibm_fez is reserved as the page says."""
    (commands,) = (each for each in blocks(PAGE, "sh") if "create reservation" in each)
    command = commands.splitlines()[0].replace("Users=ada", "Users=root")
    project = Project(tmp_path, sandbox)
    (tmp_path / "bell.json").write_text(json.dumps(PAYLOAD))
    now = {"2027-03-01T14:00:00": "now"}
    for written, instead in now.items():
        command = command.replace(written, instead)
    project.slurm(*command.split())
    try:
        yield project
    finally:
        project.slurm("scancel", "--quiet", "--state=PENDING", "--partition=main")
        # The keeper of a stage ends after Snakemake, and Slurm deletes no reservation in use.
        wait_until(lambda: not project.jobs(), "the end of the reservation's jobs")
        project.slurm("scontrol", "delete", "ReservationName=qday")


def state_of(project: Project, job: str) -> str:
    """Return a job's state and the reason for it."""
    argv = ("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r")
    return project.slurm(*argv).strip()


def test_a_jobs_own_option_is_added_to_those_of_its_request(project):
    """With sbatch, and `qpu run` in the job."""
    asked = subprocess.run(
        [sys.executable, "-m", "qrmi_workflows", "request", "ibm_fez"],
        env=project.environ, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    run = f"cd {project.folder} && qpu run bell.json -o result.json --qpu ibm_fez"
    sbatch = ("sbatch", "--parsable", f"--output={project.folder}/%j.out", *asked)
    waiting = project.slurm(*sbatch, "--wrap=true").strip()

    project.slurm(*sbatch, "--wait", "--reservation=qday", f"--wrap={run}")

    assert json.loads(project.read("result.json"))["qpu"] == "ibm_fez"
    assert state_of(project, waiting) == "PENDING Licenses"


def test_the_jobs_and_the_stages_of_a_workflow_run_in_a_reservation(project):
    project.write(
        """
        rule all:
            input: "own.result.json", "staged.result.json"
        rule own:
            input: "bell.json"
            output: "own.result.json"
            resources: qpu=1, qpu_name="ibm_fez", slurm_extra="--reservation=qday"
            shell: "qpu run {input} -o {output}"
        rule staged:
            input: "own.result.json"
            output: "staged.result.json"
            resources: qpu=1, qpu_name="ibm_fez", qpu_stage="s", slurm_extra="--reservation=qday"
            shell: "qpu run bell.json -o {output}"
        """
    )

    project.run("--slurm-qpu-stage-no-warm-up")

    assert json.loads(project.read("staged.result.json"))["qpu"] == "ibm_fez"


@pytest.mark.timeout(200)
def test_the_blocks_of_a_program_run_in_a_reservation(project):
    program = """
import parsl
from parsl_ext import qpu_config, run_payload

options = {"scheduler_options": "#SBATCH --reservation=qday", "status_polling_interval": 1}
with parsl.load(qpu_config("ibm_fez", walltime="00:05:00", **options)):
    run_payload("bell.json", outputs=["parsl.result.json"]).result()
"""
    (project.folder / "program.py").write_text(program)

    subprocess.run(
        [sys.executable, "program.py"],
        cwd=project.folder, env=project.environ, check=True, timeout=150,
    )  # fmt: skip

    assert json.loads(project.read("parsl.result.json"))["qpu"] == "ibm_fez"
