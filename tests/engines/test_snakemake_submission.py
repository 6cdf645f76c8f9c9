"""How jobs reach Slurm: sbatch that does not answer, odd names, and what the head process holds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from snakemake_runs import Project, submitted

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines]

IMPATIENT = """
import sys
from snakemake.cli import main
from snakemake_executor_plugin_slurm_qpu import submission
submission.SBATCH_SECONDS = 3.0
sys.argv[0] = "snakemake"
main()
"""
QUANTUM = """
rule quantum:
    output: "quantum.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "echo $SLURM_JOB_ID >> {output}"
"""


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox) -> Project:
    """A workflow's folder."""
    return Project(tmp_path, sandbox)


def sbatch(project: Project, does: str) -> str:
    """Put a script before the real sbatch, `$SBATCH`; return the PATH that leads to it."""
    real = shutil.which("sbatch", path=project.environ["PATH"])
    wrapper = project.folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\nSBATCH={real}\n{does}\n")
    wrapper.chmod(0o755)
    return f"{wrapper.parent}:{project.environ['PATH']}"


@pytest.mark.parametrize(
    ("does", "group"),
    [
        ("exec sleep 60", ""),
        ("exec sleep 60", 'group: "g"'),
        ('echo "Socket timed out on send/recv operation" >&2; exit 1', ""),
        ('echo "a word of the site, and no id"', ""),
    ],
    ids=["hangs", "hangs, a group", "fails", "does not say the id"],
)
def test_a_job_that_slurm_accepted_without_an_answer_is_adopted(project, does, group):
    project.write(QUANTUM.replace("    resources", f"    {group}\n    resources"))
    opened, _ = project.sessions()

    output = project.run(
        program=("-c", IMPATIENT), PATH=sbatch(project, f'"$SBATCH" "$@" >/dev/null; {does}')
    )

    assert [project.read("quantum.txt").strip()] == submitted(output)
    assert project.sessions() == (opened + 1, 0)


def test_an_sbatch_that_hangs_before_slurm_has_the_job_fails_the_job(project):
    project.write(QUANTUM)

    output = project.run(
        fails=True, program=("-c", IMPATIENT), PATH=sbatch(project, "exec sleep 60")
    )

    assert "`sbatch` did not end within 3 s" in output
    assert not project.jobs()


SHOWN = "(env; scontrol show job $SLURM_JOB_ID) > {output}"


def test_no_job_inherits_the_lease_that_snakemake_itself_runs_under(project):
    project.write(
        f"""
        rule all:
            input: "classical.txt", "quantum.txt"
        rule classical:
            output: "classical.txt"
            shell: "{SHOWN}"
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "{SHOWN}"
        """
    )
    own = ("-m", "qrmi_workflows", "lease", "exec", "--qpu", "FRESNEL", "--step", "heads", "--")

    opened, _ = project.sessions()
    program = (*own, sys.executable, "-m", "snakemake")
    project.run("--slurm-qpu-mark-all", program=program)

    for name in ("classical", "quantum"):
        inherited = [
            line
            for line in project.read(f"{name}.txt").splitlines()
            if "FRESNEL" in line.partition("=")[0] or "=heads" in line
        ]
        assert inherited == []
    assert "QRMI_JOB_QPU_RESOURCES" not in project.read("classical.txt")
    assert "QRMI_JOB_QPU_RESOURCES=ibm_fez\n" in project.read("quantum.txt")
    assert project.sessions() == (opened + 1, 0)  # FRESNEL has none
