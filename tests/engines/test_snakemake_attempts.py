"""An attempt is one Slurm job, with the resources and the QPU that its rule asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from snakemake_runs import PAYLOAD, Project, submitted

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

RETRIED = """
TWO = "FRESNEL", "ibm_fez"
def from_fresnel(wildcards, attempt): return TWO[attempt - 1]
def from_fez(wildcards, attempt): return TWO[attempt % 2]
def memory(wildcards, attempt): return 100 * attempt
NOTE = "echo $SLURM_JOB_ID $QRMI_JOB_QPU_RESOURCES {resources.qpu_name} {resources.mem_mb}"

rule all:
    input: expand("{name}.txt", name=["shell", "run", "group", "local", "classical"])
rule shell:
    output: "shell.txt"
    params: memory=lambda wildcards, resources: resources.mem_mb
    retries: 1
    resources: qpu=1, qpu_name=from_fez, mem_mb=memory
    shell: NOTE + " >> shell.log; test {params.memory} = 200 && touch {output}"
rule run:
    output: "run.txt"
    retries: 1
    resources: qpu=1, qpu_name=from_fresnel, mem_mb=memory
    run:
        shell(NOTE + " >> run.log")
        assert resources.mem_mb == 200
        shell("touch {output}")
rule before:
    output: temp("before.txt")
    group: "g"
    resources: qpu=1, qpu_name=from_fez, mem_mb=memory
    script: "script.py"
rule group:
    input: "before.txt"
    output: "group.txt"
    group: "g"
    retries: 1
    resources: qpu=0, qpu_name="another", mem_mb=memory
    run:
        assert resources.mem_mb == 200
        shell("touch {output}")
rule local:
    output: "local.txt"
    localrule: True
    retries: 1
    resources: mem_mb=memory
    run:
        shell("echo here {resources.mem_mb} >> local.log")
        assert resources.mem_mb == 200
        shell("touch {output}")
rule classical:
    output: "classical.txt"
    retries: 1
    resources: mem_mb=memory
    shell:
        "echo $SLURM_JOB_ID {resources.mem_mb} >> classical.log; "
        "test {resources.mem_mb} = 200 && touch {output}"
"""
SCRIPT = """
import os
job, qpu = os.environ["SLURM_JOB_ID"], os.environ["QRMI_JOB_QPU_RESOURCES"]
with open("group.log", "a") as log:
    print(job, qpu, snakemake.resources.qpu_name, snakemake.resources.mem_mb, file=log)
open(snakemake.output[0], "w").close()
"""


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox) -> Project:
    """A workflow's folder, with a payload."""
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))
    return Project(tmp_path, sandbox)


def noted(project: Project, rule: str) -> tuple[list[str], list[list[str]]]:
    """Return the jobs in which a rule's attempts ran, and what each noted."""
    lines = [line.split() for line in project.read(f"{rule}.log").splitlines()]
    return [line[0] for line in lines], [line[1:] for line in lines]


@pytest.mark.slow
def test_each_attempt_is_a_job_with_its_own_resources_and_qpu(project):
    """A rule's own `retries` must not run again inside the job, whatever kind of rule it is."""
    project.write(RETRIED, script=SCRIPT)

    output = project.run("--slurm-qpu-mark-all")

    for rule, qpus in {
        "shell": ("ibm_fez", "FRESNEL"),
        "run": ("FRESNEL", "ibm_fez"),
        "group": ("ibm_fez", "FRESNEL"),
    }.items():
        ran_in, what = noted(project, rule)
        assert what == [[qpus[0], qpus[0], "100"], [qpus[1], qpus[1], "200"]]
        assert len(set(ran_in)) == 2
    assert len(submitted(output)) == 6
    ran_in, what = noted(project, "classical")
    assert what == [["100"], ["200"]]
    assert len(set(ran_in)) == 2
    assert noted(project, "local")[1] == [["100"], ["200"]]


HYBRID = """
rule quantum:
    output: "result.txt"
    retries: 1
    resources: qpu=1, qpu_name="ibm_fez", attempt=lambda wildcards, attempt: attempt
    run:
        import json
        from qrmi_workflows import open_lease
        with open_lease() as lease, open("payload.json") as payload:
            result = lease.run(json.load(payload))
        with open("tasks.log", "a") as log:
            print(result.task_id, file=log)
        assert resources.attempt == 2, "post-processing fails"
        shell("touch {output}")
"""


def test_the_attempts_of_a_rule_share_one_paid_task(project):
    project.write(HYBRID)
    before = project.control.counters()["tasks"]["accepted"]

    # A variable of a lease that has ended, in the shell that starts Snakemake.
    output = project.run(QPU_ATTEMPT="another")

    tasks = project.read("tasks.log").split()
    assert len(tasks) == 2
    assert len(set(tasks)) == 1
    assert len(submitted(output)) == 2
    assert project.control.counters()["tasks"]["accepted"] == before + 1


@pytest.mark.slow
def test_a_job_under_another_qpu_than_its_rule_asks_for_fails_before_the_rule_runs(project):
    """A function in `resources` may answer differently inside the job, as `least_busy()` does."""
    project.write(
        """
        import os
        is_inside = "SLURM_JOB_ID" in os.environ
        rule all:
            input: "run.txt", "late.txt"
        rule quantum:
            output: "run.txt"
            resources: qpu=1, qpu_name=lambda wildcards: "FRESNEL" if is_inside else "ibm_fez"
            run:
                shell("touch ran {output}")
        rule classical:
            output: "late.txt"
            resources: qpu_name="ibm_fez", qpu=lambda wildcards: int(is_inside)
            shell: "touch ran {output}"
        """
    )

    output = project.run("--slurm-qpu-mark-all", "--keep-going", fails=True)

    logs = project.folder / ".snakemake" / "slurm_logs"
    said = "".join(log.read_text() for log in logs.rglob("*.log"))
    assert "asks for qpu_name='FRESNEL', but its job was granted ibm_fez" in said
    assert "asks for qpu_name='ibm_fez', but its job was granted no QPU" in said
    assert not (project.folder / "ran").exists()
    assert "Error in rule quantum" in output
    assert "Error in rule classical" in output
