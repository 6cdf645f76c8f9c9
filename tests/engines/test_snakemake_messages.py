"""What the user of a failed workflow sees: the program's own error, and how the job ended."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from snakemake_runs import Project

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox) -> Project:
    """A workflow's folder."""
    return Project(tmp_path, sandbox)


def test_with_verbose_the_sbatch_call_and_script_are_shown_without_secrets(project):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "echo $ibm_fez_QRMI_JOB_ACQUISITION_TOKEN > {output}"
        """
    )

    output = project.run("--verbose")

    (call,) = re.findall(r"^sbatch call: (.*)", output, re.MULTILINE)
    assert call.startswith("sbatch --parsable ")
    assert "--gres=qpu:ibm_fez:1" in call
    assert re.search(
        r"^sbatch script:\n#!/bin/bash\n(.+\n)*.* lease exec --qpu ibm_fez", output, re.M
    )
    qpus = json.loads(Path(project.environ["QPU_CONFIG"]).read_text())["resources"]
    secrets = {value for qpu in qpus for value in qpu["environment"].values()}
    assert not [
        secret for secret in {*secrets, project.read("quantum.txt").strip()} if secret in output
    ]


@pytest.mark.slow
def test_the_errors_of_script_run_and_group_rules_are_shown(project):
    project.write(
        """
        rule all:
            input: "script.txt", "run.txt", "group.txt"
        rule script:
            output: "script.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            script: "script.py"
        rule run:
            output: "run.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            run:
                raise ValueError("the error in run")
        rule first:
            output: "first.txt"
            group: "g"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "echo 'the error in group' >&2; exit 3"
        rule second:
            input: "first.txt"
            output: "group.txt"
            group: "g"
            shell: "cp {input} {output}"
        """,
        script="raise SystemExit('the error in script')",
    )

    output = project.run("--keep-going", fails=True)

    shown = [line.strip() for line in output.splitlines()]
    assert "the error in script" in shown
    assert "the error in run" in shown
    assert "the error in group" in shown
    assert "Command returned non-zero exit status 3." in shown
    assert shown.count("At least one job did not complete successfully.") == 1


def test_of_a_long_log_only_the_end_is_read_and_shown(project):
    project.write(
        """
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "head -c 3000000 /dev/zero; echo; echo 'the error' >&2; kill -SEGV $$"
        """
    )

    output = project.run("--show-failed-logs", fails=True)

    assert "    the error\n" in output
    assert "SLURM status is: 'FAILED', signal 11 (SIGSEGV))" in output
    assert len(output) < 20_000
