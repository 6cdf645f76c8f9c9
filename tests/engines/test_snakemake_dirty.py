"""A job starts on clean outputs, also after a requeue and beside what a killed run has left."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from job_times import start_again
from snakemake_runs import Project, submitted
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(400)]

AGAIN = ("--nolock", "--rerun-incomplete")
SLOW = """
rule all:
    input: "a.txt", "d"
rule a:
    output: "a.txt"
    log: "a.log"
    resources: qpu=1, qpu_name="ibm_fez"
    shell:
        '''
        echo one >> {output}; echo log >> {log}; touch a.started
        until test -e go; do sleep 0.05; done
        echo two >> {output}
        '''
rule d:
    output: directory("d")
    resources: qpu=1, qpu_name="FRESNEL"
    shell: "mkdir d; touch d.started; until test -e go; do sleep 0.05; done; touch d/x"
"""


@pytest.fixture
def project(tmp_path: Path, sandbox: Sandbox) -> Project:
    """A workflow whose rules wait for the file `go`."""
    project = Project.on_idle_slurm(tmp_path, sandbox)
    project.write(SLOW)
    return project


def started(project: Project) -> bool:
    """Return whether both rules have started."""
    return all((project.folder / f"{rule}.started").exists() for rule in "ad")


def killed(project: Project) -> set[str]:
    """Start a run, kill it while its rules run, and return the jobs that it leaves."""
    process = project.start()
    wait_until(lambda: started(project), "the rules' start")
    process.kill()
    process.communicate()
    return project.jobs()


def waits_for(project: Project, job: str) -> str:
    """Return what a job depends on."""
    return project.slurm("squeue", "--noheader", f"--jobs={job}", "--format=%E")


def states(project: Project) -> list[str]:
    """Return the states of all jobs in the queue."""
    return project.slurm("squeue", "--noheader", "--format=%T").split()


def is_clean(project: Project) -> bool:
    """Return whether the outputs are those of one undisturbed attempt."""
    return (
        project.read("a.txt") == "one\ntwo\n"
        and project.read("a.log") == "log\n"
        and (project.folder / "d" / "x").exists()
    )


def test_a_requeued_job_starts_on_clean_outputs(project):
    process = project.start("--slurm-qpu-requeue")
    wait_until(lambda: started(project), "the rules' start")
    for rule in "ad":
        (project.folder / f"{rule}.started").unlink()

    project.slurm("scontrol", "requeue", ",".join(project.jobs()))
    wait_until(lambda: states(project) == ["PENDING", "PENDING"], "the requeue")
    for job in project.jobs():
        start_again(job, project.environ)
    wait_until(lambda: started(project), "the rules' second start")
    (project.folder / "go").touch()
    output = project.wait(process)

    assert len(submitted(output)) == 2
    assert is_clean(project)


@pytest.mark.slow
def test_the_jobs_of_a_killed_run_keep_their_outputs_and_the_next_ones_start_clean(project):
    orphans = killed(project)

    process = project.start(*AGAIN)
    wait_until(lambda: len(project.jobs()) == 4, "the jobs of the second run")
    assert (project.folder / "a.txt").read_text() == "one\n"
    assert (project.folder / "d").is_dir()
    for job in project.jobs() - orphans:
        assert waits_for(project, job).startswith("afterany:")
    (project.folder / "go").touch()
    project.wait(process)

    assert is_clean(project)


@pytest.mark.slow
def test_a_third_run_waits_for_the_first_ones_jobs_too(project):
    """Snakemake keeps only the last id: that of the second run's job, which was cancelled."""
    orphans = killed(project)
    second = project.start(*AGAIN)
    wait_until(lambda: len(project.jobs()) == 4, "the jobs of the second run")
    second.send_signal(signal.SIGINT)
    project.wait(second, fails=True)
    wait_until(lambda: project.jobs() == orphans, "the end of the second run's jobs")

    process = project.start(*AGAIN)
    wait_until(lambda: len(project.jobs()) == 4, "the jobs of the third run")
    dependencies = "".join(waits_for(project, job) for job in project.jobs() - orphans)
    assert all(f"afterany:{orphan}(" in dependencies for orphan in orphans)
    (project.folder / "go").touch()
    project.wait(process)

    assert is_clean(project)


@pytest.mark.slow
def test_a_failed_submission_does_not_make_an_orphans_outputs_pass_for_complete(project):
    orphans = killed(project)
    refuse = project.folder / "bin" / "sbatch"
    refuse.parent.mkdir()
    refuse.write_text("#!/bin/sh\necho 'no more jobs today' >&2; exit 1\n")
    refuse.chmod(0o755)

    path = f"{refuse.parent}:{project.environ['PATH']}"
    output = project.run(*AGAIN, "--keep-going", fails=True, PATH=path)
    assert output.count("no more jobs today") >= 2
    assert project.jobs() == orphans
    assert project.read("a.txt") == "one\n"
    (project.folder / "go").touch()
    wait_until(lambda: not project.jobs(), "the orphans' end")

    assert "IncompleteFilesException" in project.run("--nolock", fails=True)
    project.run(*AGAIN)
    assert is_clean(project)
