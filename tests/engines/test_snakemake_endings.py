"""Every end of a job ends the wait for it, at a site that forgets jobs and preempts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from job_times import start_again
from snakemake_runs import Project, submitted
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox, render

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

FORGETFUL = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
HASTY = (
    "-c",
    """
import sys
from snakemake.cli import main
from snakemake_executor_plugin_slurm_qpu import status_checks
status_checks.FORGOTTEN_SECONDS = 2.0
sys.argv[0] = "snakemake"
main()
""",
)
"""A Snakemake that does not wait a minute for what NFS may hide."""


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A Slurm that forgets jobs 5 s after their end, and has a partition that preempts."""
    original = render.render_slurm_conf

    def render_forgetful(cluster: render.Cluster) -> str:
        lines = original(cluster).replace("MinJobAge=300", "MinJobAge=5").splitlines()
        kept = [line for line in lines if not line.startswith("PartitionName")]
        return "\n".join(kept) + FORGETFUL

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "render_slurm_conf", render_forgetful)
        box = Sandbox(tmp_path_factory.mktemp("forgetful") / "box")
        box.up(nodes=1)
        try:
            yield box
        finally:
            box.down(grace=0)


@pytest.fixture
def project(tmp_path: Path, forgetful: Sandbox) -> Project:
    """A workflow's folder."""
    return Project.on_idle_slurm(tmp_path, forgetful)


@pytest.mark.slow
def test_all_jobs_leave_markers_where_slurm_would_forget_them_between_two_checks(project):
    project.write(
        """
        rule all:
            input: "quantum.txt", "classical.txt", "failing.txt"
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "touch {output}"
        rule classical:
            output: "classical.txt"
            shell: "touch {output}"
        rule failing:
            output: "failing.txt"
            shell: "echo THE REASON >&2; exit 3"
        """
    )

    output = project.run("--keep-going", fails=True)  # the first scheduled check is after 40 s

    assert "forgets jobs 5 s after their end" in output
    assert "2 of 4 steps" in output
    assert "THE REASON" in output


@pytest.fixture
def remembering(project: Project, forgetful: Sandbox) -> Iterator[None]:
    """Let Slurm remember the state of a job until a loaded machine has asked for it."""
    config = forgetful.directory / "etc" / "slurm.conf"
    text = config.read_text()
    config.write_text(text.replace("MinJobAge=5\n", "MinJobAge=60\n"))
    project.slurm("scontrol", "reconfigure")
    yield
    config.write_text(text)
    project.slurm("scontrol", "reconfigure")


PREEMPTED = """
rule all:
    input: "quantum.txt"
rule quantum:
    output: "quantum.txt"
    resources:
        qpu=1, qpu_name="ibm_fez", slurm_partition="low",
        attempt=lambda wildcards, attempt: attempt
    shell: "touch started; test {resources.attempt} = 2 || sleep 60; touch {output}"
"""


def test_a_preempted_job_fails_at_once_and_is_retried(project, remembering):
    project.write(PREEMPTED)
    # Without a scheduled check within the run's limit, only a marker can tell of the end.
    seldom = "--slurm-qpu-init-seconds-before-status-checks=600"
    process = project.start("--retries", "1", seldom)
    wait_until((project.folder / "started").exists, "the rule's start")

    project.slurm("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    output = project.wait(process)

    assert "was preempted, and Slurm does not run it again (SLURM status is: 'PREEMPTED'" in output
    assert "We leave it to SLURM" not in output
    assert len(submitted(output)) == 2
    assert project.sessions()[1] == 0


def test_a_preempted_job_that_slurm_requeues_has_not_ended(project):
    again = "[[ ${{SLURM_RESTART_COUNT-}} ]]"
    project.write(PREEMPTED.replace("test {resources.attempt} = 2", again))
    process = project.start("--slurm-qpu-requeue")
    wait_until((project.folder / "started").exists, "the rule's start")
    (job,) = project.jobs()

    project.slurm("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    state = ("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    wait_until(lambda: project.slurm(*state).strip() == "PENDING", "the preemption")
    start_again(job, project.environ)
    output = project.wait(process)

    assert len(submitted(output)) == 1
    assert "was preempted" not in output


@pytest.mark.slow
def test_a_job_that_loses_its_node_fails_and_a_held_one_is_named(project):
    project.write(
        """
        rule all:
            input: "quantum.txt", "held.txt"
        rule quantum:
            output: "quantum.txt"
            resources: qpu=1, qpu_name="ibm_fez"
            shell: "touch started; sleep 60"
        rule held:
            output: "held.txt"
            resources: qpu=1, qpu_name="ibm_fez", slurm_extra="--hold"
            shell: "touch {output}"
        """
    )
    process = project.start("--slurm-qpu-init-seconds-before-status-checks=2", "--keep-going")
    wait_until((project.folder / "started").exists, "the rule's start")
    (log,) = (project.folder / ".snakemake/log").iterdir()

    project.slurm("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=a test")
    wait_until(lambda: "its node failed" in log.read_text(), "the failure")
    # It may be back already: slurmd registers again.
    project.slurm("sh", "-c", "scontrol update NodeName=n1 State=RESUME || true")
    named = re.compile(r"'(\d+)' is held .*JobHeldUser")
    held = wait_until(lambda: named.search(log.read_text()), "the warning")
    project.slurm("scontrol", "release", held[1])
    project.wait(process, fails=True)

    assert (project.folder / "held.txt").exists()
    assert "SLURM status is: 'NODE_FAIL'" in log.read_text()


@contextmanager
def without_controller(sandbox: Sandbox) -> Iterator[None]:
    """End slurmctld, and start it again."""
    (controller,) = (d for d in sandbox.status().daemons if d.name == "slurmctld")
    os.kill(controller.pid, signal.SIGTERM)
    wait_until(lambda: "slurmctld" in sandbox.status().dead, "the end of slurmctld")
    try:
        yield
    finally:
        sandbox.up()


WAITING = """
rule all:
    input: "quantum.txt", "classical.txt"
rule quantum:
    output: "quantum.txt"
    resources: qpu=1, qpu_name="ibm_fez"
    shell: "touch q.started; until test -e go; do sleep 0.05; done; touch {output}"
rule classical:
    output: "classical.txt"
    shell: "touch c.started; until test -e go; do sleep 0.05; done; touch {output}"
"""


@pytest.fixture
def running(project: Project) -> subprocess.Popen[str]:
    """A Snakemake whose two jobs run."""
    project.write(WAITING)
    options = ("--keep-going", "--slurm-qpu-init-seconds-before-status-checks=2")
    process = project.start(*options, program=HASTY)
    wait_until(lambda: len(list(project.folder.glob("?.started"))) == 2, "the jobs' start")
    return process


@pytest.mark.slow
def test_while_slurm_does_not_answer_snakemake_waits_and_says_so(project, forgetful, running):
    (log,) = (project.folder / ".snakemake/log").iterdir()

    with without_controller(forgetful):
        wait_until(lambda: "Snakemake keeps waiting, and asks" in log.read_text(), "the warning")
        (project.folder / "go").touch()
    project.wait(running)

    assert (project.folder / "quantum.txt").exists()
    assert (project.folder / "classical.txt").exists()


def test_jobs_that_slurm_has_lost_count_as_failed(project, forgetful, running):
    with without_controller(forgetful):
        for saved in (forgetful.directory / "slurmctld").glob("job_state*"):
            saved.unlink()
    output = project.wait(running, fails=True)

    # Once in the error of each rule.
    assert output.count("Slurm no longer knows it (it forgets jobs 5 s after their end)") == 2
