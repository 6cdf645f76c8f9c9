"""A Snakemake workflow on emulated QPUs, on classical nodes and a laptop; then on the real QPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake_runs import PAYLOAD, Project, submitted

from qrmi_workflows import QuantumResult
from qrmi_workflows.sandbox import Sandbox

pytestmark = pytest.mark.timeout(400)

REHEARSE = ("--set-resources", "sample:qpu_name=emulated:fez", "vqe:qpu_name=emulated:fez:noisy")
NOWHERE = {"QPU_CONFIG": "", "QPU_SITE": ""}
SNAKEFILE = """
rule all:
    input: "one.result.json", "energy.txt"
rule sample:
    input: "one.json"
    output: "one.result.json"
    resources: qpu=1, qpu_name="ibm_fez", qpu_stage="s"
    shell: "qpu run {input} -o {output}"
rule vqe:
    input: "one.json"
    output: "energy.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    script: "vqe.py"
"""
VQE = """
from qrmi_workflows import open_lease

with open_lease(snakemake.resources.qpu_name) as lease:
    result = lease.run(snakemake.input[0])
with open(snakemake.output[0], "w") as file:
    print(result.qpu, file=file)
"""


def project_in(folder: Path, sandbox: Sandbox) -> Project:
    project = Project(folder, sandbox)
    (folder / "one.json").write_text(json.dumps(PAYLOAD))
    project.write(SNAKEFILE, vqe=VQE)
    return project


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.engines
def test_a_rehearsal_on_classical_nodes_is_not_taken_for_the_real_run(
    sandbox: Sandbox, tmp_path: Path
):
    """The jobs hold nothing of Slurm's, and nobody has told them of a site."""
    project = project_in(tmp_path, sandbox)
    before = project.accepted_tasks()

    output = project.run(*REHEARSE, **NOWHERE)

    jobs = submitted(output)
    shown = project.slurm("scontrol", "show", "job")
    blocks = [each for each in shown.split("\n\n") if any(f"JobId={job} " in each for job in jobs)]
    assert len(blocks) == 2
    assert all("gres/qpu" not in each and "Licenses=(null)" in each for each in blocks)
    assert QuantumResult.load(tmp_path / "one.result.json").qpu == "emulated:fez"
    assert project.read("energy.txt") == "emulated:fez:noisy\n"
    assert project.accepted_tasks() == before

    refused = project.run(fails=True)
    assert "asks for ibm_fez, but its output one.result.json is of an earlier run" in refused
    (tmp_path / "one.result.json").unlink()
    (tmp_path / "one.json").touch()
    project.run("--set-resources", "sample:qpu_stage=''", "--forcerun", "sample", "vqe")
    assert QuantumResult.load(tmp_path / "one.result.json").qpu == "ibm_fez"
    assert project.read("energy.txt") == "ibm_fez\n"
    assert project.accepted_tasks() == before + 2


@pytest.mark.engines
@pytest.mark.parametrize("command", ["--qpu {resources.qpu_name}", ""])
def test_the_same_workflow_runs_on_a_laptop(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Either the rule's command names the QPU, or `$QPU_NAME` does."""
    for name in NOWHERE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not command:
        monkeypatch.setenv("QPU_NAME", "emulated:fez")
    (tmp_path / "one.json").write_text(json.dumps(PAYLOAD))
    text = SNAKEFILE.replace("-o {output}", f"-o {{output}} {command}")
    (tmp_path / "Snakefile").write_text(text)
    (tmp_path / "vqe.py").write_text(VQE)

    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *REHEARSE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert QuantumResult.load(tmp_path / "one.result.json").qpu == "emulated:fez"
    assert (tmp_path / "energy.txt").read_text() == "emulated:fez:noisy\n"
