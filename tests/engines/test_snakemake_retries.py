"""Retries and reruns pay for nothing twice; QPUs and folders may have unusual names."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from snakemake_runs import PAYLOAD, Project, acquired_by_the_site, submitted
from waiting import wait_until

from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

SNAKEFILE = """
rule quantum:
    input: "payload.json"
    output: "result.json"
    resources: qpu=1, qpu_name="{qpu}"
    shell: "qpu run {{input}} -o {{output}}"
"""


def processes_of(result: Path) -> list[psutil.Process]:
    """Return the processes of `qpu run` that will write a result."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if words[-2:] == ["-o", result.name] and process.info["cwd"] == str(result.parent):
            found.append(process)
    # The lease's supervisor forks itself for it, so both have the same command line.
    supervisors = {process.ppid() for process in found}
    return [process for process in found if process.pid not in supervisors]


def one_rule(folder: Path, sandbox: Sandbox) -> tuple[Project, Callable[..., list[int]]]:
    """Write a workflow of one task; also return what says by how much the vendor's counts grew."""
    project = Project.on_idle_slurm(folder, sandbox)
    project.write(SNAKEFILE.format(qpu="ibm_fez"))
    (folder / "payload.json").write_text(json.dumps(PAYLOAD))
    before = project.control.counters()["tasks"]

    def changes(*names: str) -> list[int]:
        after = project.control.counters()["tasks"]
        return [after[name] - before[name] for name in names]

    return project, changes


def states_of_tasks(project: Project) -> list[str]:
    """Return the states of the project's tasks in the journal."""
    journal = Journal(Path(project.environ["QPU_STATE"]) / "journal")
    return [record.state for record in journal.records() if str(project.folder) in record.step]


@contextmanager
def paused(project: Project, qpu: str) -> Iterator[None]:
    """Keep the QPU from starting tasks."""
    project.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "paused"})
    try:
        yield
    finally:
        project.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "online"})


def test_a_retry_attaches_to_the_task_that_a_killed_attempt_has_submitted(
    tmp_path: Path, sandbox: Sandbox
):
    project, changes = one_rule(tmp_path, sandbox)
    with paused(project, "ibm_fez"):
        process = project.start("--retries", "2")
        wait_until(lambda: states_of_tasks(project) == ["submitted"], "the task's id")
        for runner in processes_of(tmp_path / "result.json"):
            os.kill(runner.pid, signal.SIGKILL)
    output = project.wait(process)

    assert len(submitted(output)) == 2
    assert changes("accepted", "running") == [1, 0]
    assert '"1": 100' in project.read("result.json")
    assert project.sessions()[1] == 0


@pytest.mark.parametrize("how", [[], ["--full", "--signal=KILL"]], ids=["scancel", "kill"])
def test_a_retry_waits_for_the_task_of_a_cancelled_attempt(
    tmp_path: Path, sandbox: Sandbox, how: list[str]
):
    project, changes = one_rule(tmp_path, sandbox)
    with paused(project, "ibm_fez"):
        process = project.start("--retries", "1")
        wait_until(lambda: states_of_tasks(project) == ["submitted"], "the task's id")
        (job,) = project.slurm("squeue", "--noheader", "--format=%i").split()
        project.slurm("scancel", *how, job)
        wait_until(
            lambda: project.slurm("squeue", "--noheader", "--format=%i").split() != [job],
            "the end of the attempt",
        )
    output = project.wait(process)

    assert changes("accepted", "cancelled", "completed") == [1, 0, 1]
    assert len(submitted(output)) == 2
    assert project.sessions()[1] == 0


def test_an_interrupted_run_leaves_no_task_for_a_retry(tmp_path: Path, sandbox: Sandbox):
    project, changes = one_rule(tmp_path, sandbox)
    with paused(project, "ibm_fez"):
        process = project.start("--retries", "1")
        wait_until(lambda: states_of_tasks(project) == ["submitted"], "the task's id")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        wait_until(lambda: not project.slurm("squeue", "--noheader"), "the end of the job")

    assert changes("accepted", "cancelled", "queued") == [1, 1, 0]
    assert project.sessions()[1] == 0


HYBRID = """
import json, sys
from qrmi_workflows import open_lease

with open_lease() as lease, open("payload.json") as payload:
    result = lease.run(json.load(payload))
if sys.argv[1] == "1":
    sys.exit("an error after the QPU's work is done")
print(dict(result.counts()))
"""


@pytest.mark.slow
def test_a_retry_of_a_hybrid_program_reuses_the_results_of_the_failed_attempt(tmp_path, sandbox):
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule quantum:
            output: "result.txt"
            resources: qpu=1, qpu_name="ibm_fez", attempt=lambda wildcards, attempt: attempt
            shell: "PYTHON hybrid.py {resources.attempt} > {output}"
        """.replace("PYTHON", sys.executable),
        hybrid=HYBRID,
    )
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))

    def accepted() -> int:
        return project.control.counters()["tasks"]["accepted"]

    before = accepted()
    output = project.run("--retries", "1")
    assert "an error after the QPU's work is done" in output
    assert project.read("result.txt") == "{'1': 100}\n"
    assert accepted() == before + 1

    # The step has succeeded, so running it again means a new task.
    project.run("--forceall", "--retries", "1")
    assert accepted() == before + 2


REPLICA = """
import json
from qrmi_workflows import open_lease

with open_lease() as lease, open("payload.json") as payload:
    result = lease.run(json.load(payload))
with open(snakemake.output[0], "w") as file:
    file.write(result.task_id)
"""


def test_equal_payloads_in_several_rules_or_commands_are_several_tasks(tmp_path, sandbox):
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule all:
            input: "1.id", "2.json"
        rule first:
            output: "0.id"
            group: "g"
            resources: qpu=1, qpu_name="ibm_fez"
            script: "replica.py"
        rule second:
            input: "0.id"
            output: "1.id"
            group: "g"
            resources: qpu=1, qpu_name="ibm_fez"
            script: "replica.py"
        rule commands:
            output: "1.json", "2.json"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "for i in 1 2; do qpu run payload.json -o $i.json; done"
        """,
        replica=REPLICA,
    )
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))
    before = project.control.counters()["tasks"]["accepted"]

    project.run()

    ids = {project.read("0.id"), project.read("1.id")}
    ids |= {json.loads(project.read(f"{i}.json"))["task_id"] for i in (1, 2)}
    assert len(ids) == 4
    assert project.control.counters()["tasks"]["accepted"] == before + 4


def test_a_retry_after_missing_outputs_pays_for_nothing_again(tmp_path, sandbox):
    project = Project(tmp_path, sandbox)
    project.write(
        """
        rule quantum:
            input: "payload.json"
            output: "result.json"
            resources: qpu=1, qpu_name="ibm_fez", to=lambda wildcards, attempt: f"{attempt}.json"
            shell: "qpu run {input} -o {resources.to}; test ! -e 2.json || mv 2.json {output}"
        """
    )
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))
    before = project.control.counters()["tasks"]["accepted"]

    output = project.run("--retries", "1", "--latency-wait", "1")

    assert "MissingOutputException" in output
    assert len(submitted(output)) == 2
    assert project.control.counters()["tasks"]["accepted"] == before + 1, output


def test_a_job_that_a_killed_snakemake_has_left_running_is_waited_for_and_paid_for_once(
    tmp_path, sandbox
):
    """At this site Slurm would grant the QPU to two jobs at once, one on each node."""
    project = Project.on_idle_slurm(tmp_path, sandbox)
    project.write(
        """
        rule quantum:
            input: "payload.json"
            output: "result.json"
            resources: qpu=1, qpu_name="ibm_fez"
            shell:
                '''
                touch started; until test -e go; do sleep 0.05; done
                qpu run {input} -o {output}
                '''
        """
    )
    (tmp_path / "payload.json").write_text(json.dumps(PAYLOAD))
    (tmp_path / "site.toml").write_text('[defaults]\ngres = "qpu:{qpu}"\n[qpus.ibm_fez]\n')
    project.environ["QPU_SITE"] = str(tmp_path / "site.toml")
    before = project.control.counters()["tasks"]["accepted"]

    killed = project.start()
    wait_until((tmp_path / "started").exists, "the rule's start")
    killed.kill()
    killed.communicate()
    (orphan,) = project.jobs()
    project.run("--unlock")
    again = project.start("--rerun-incomplete")
    wait_until(lambda: len(project.jobs()) == 2, "the job of the second run")
    (other,) = project.jobs() - {orphan}
    waits = project.slurm("squeue", "--noheader", f"--jobs={other}", "--format=%E")
    assert waits == f"afterany:{orphan}(unfulfilled)\n"
    (tmp_path / "go").touch()
    project.wait(again)

    assert '"1": 100' in project.read("result.json")
    assert project.control.counters()["tasks"]["accepted"] == before + 1
    assert project.sessions()[1] == 0


@pytest.mark.slow
def test_a_qpu_may_have_a_hyphen_and_a_dot_in_its_name(tmp_path: Path):
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.up(qpus=["ibm-fez.v2=ibm-quantum-compute-service:fez"])
    try:
        folder = tmp_path / "a folder; it's odd"
        folder.mkdir()
        project = Project(folder, sandbox)
        project.write(SNAKEFILE.format(qpu="ibm-fez.v2"))
        (folder / "payload.json").write_text(json.dumps(PAYLOAD))
        project.run()
        assert '"1": 100' in project.read("result.json")

        # The variables of an adopted lease survive the batch script; Debian's sh would drop them.
        (folder / "result.json").unlink()
        project.write(
            """
            rule quantum:
                output: "token.txt"
                resources: qpu=1, qpu_name="ibm-fez.v2"
                shell: "env | grep ^ibm-fez.v2_QRMI_JOB_ACQUISITION_TOKEN > {output}"
            """
        )
        with acquired_by_the_site(sandbox, "ibm-fez.v2"):
            project.run()
        assert project.read("token.txt").endswith("=of-the-site\n")
    finally:
        sandbox.down()
