"""Rules that leave a choice of QPUs, on a real Slurm with several emulated ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parsl_runs import bell
from snakemake_runs import Project

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]


@pytest.fixture
def project(parsl_box: Sandbox, tmp_path: Path) -> Project:
    """A workflow's folder, at a site with several QPUs of one kind."""
    (tmp_path / "bell.json").write_text(json.dumps(bell()))
    found = Project.on_idle_slurm(tmp_path, parsl_box)
    own = {"QPU_STATE": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    found.environ |= own
    return found


def test_a_retry_goes_to_the_qpu_that_was_chosen_before_and_pays_once(project: Project):
    """The other QPU is the less busy one then: the last choice counts as a task."""
    project.write(
        """
        rule all:
            input: "result.json", "script.txt"
        rule chosen:
            output: "result.json"
            retries: 1
            resources: qpu=1, qpu_name="ibm_quick|ibm_other"
            shell:
                '''
                echo {resources.qpu_name} $QRMI_JOB_QPU_RESOURCES >> seen.txt
                qpu run bell.json -o {output} --qpu {resources.qpu_name}
                test -e again || (touch again; exit 1)
                '''
        rule script:
            input: "result.json"
            output: "script.txt"
            resources: qpu=1, qpu_min_qubits=100, qpu_where='name == "ibm_other"'
            script: "script.py"
        """,
        script="""
        from qrmi_workflows import open_lease

        name = snakemake.resources.qpu_name
        with open_lease(name) as lease, open(snakemake.output[0], "w") as file:
            file.write(f"{name} {lease.qpu}")
        """,
    )
    before = project.accepted_tasks()

    output = project.run()

    seen = project.read("seen.txt").split()
    assert len(seen) == 4
    assert set(seen) == {seen[0]} <= {"ibm_quick", "ibm_other"}
    assert project.accepted_tasks() == before + 1
    assert json.loads(project.read("result.json"))["qpu"] == seen[0]
    assert f"chose QPU '{seen[0]}' for ibm_quick|ibm_other: least busy of 2" in output
    assert f"chose QPU '{seen[0]}' for ibm_quick|ibm_other: it has 1 task(s)" in output
    assert project.read("script.txt") == "ibm_other ibm_other"
    records = [
        json.loads(line)
        for line in Path(project.folder, ".snakemake/slurm_qpu/leases.jsonl")
        .read_text()
        .splitlines()
    ]
    assert [record["chosen"].split(": ")[0] for record in records] == [
        *["ibm_quick|ibm_other"] * 2,
        "min_qubits=100, where='name == \"ibm_other\"'",
    ]


def test_what_no_qpu_can_ever_satisfy_is_refused_before_any_job(project: Project):
    project.write(
        """
        rule all:
            input: "large.txt"
        rule large:
            input: "classical.txt"
            output: "large.txt"
            resources: qpu=1, qpu_name="ibm_*", qpu_min_qubits=1000
            shell: "touch {output}"
        rule classical:
            output: "classical.txt"
            shell: "touch {output}"
        """
    )

    output = project.run(fails=True)

    assert "rule 'large': no QPU can satisfy ibm_* with min_qubits=1000. The nearest: " in output
    assert "it has 156 qubits, not 1000" in output
    assert not (project.folder / "classical.txt").exists()


@pytest.mark.slow
def test_a_job_waits_while_no_qpu_fits_and_says_why(project: Project):
    project.write(
        """
        rule idle:
            output: "idle.txt"
            resources: qpu=1, qpu_name="ibm_quick", qpu_where='state == "online"'
            shell: "echo $QRMI_JOB_QPU_RESOURCES > {output}"
        """
    )
    project.control.ask("PATCH", "/qpus/ibm_quick", {"availability": "offline"})
    try:
        process = project.start()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "waits for a QPU" in line:
                break
        assert 'state == "online"' in lines[-1]
        assert not project.jobs()
    finally:
        project.control.ask("PATCH", "/qpus/ibm_quick", {"availability": "online"})
    project.wait(process)
    assert project.read("idle.txt") == "ibm_quick\n"
