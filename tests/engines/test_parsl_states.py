"""How a provider copes with a scheduler that is slow, silent, wrong, or does not list a job yet.

Slurm is real. To make it misbehave, a script comes before one of Slurm's commands on PATH.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SimpleLauncher
from parsl.providers.errors import SubmitException
from parsl_runs import Site
from waiting import wait_until

from parsl_ext import QPUSlurmProvider
from parsl_ext.providers import base, stray_jobs
from qrmi_workflows.schedulers.command import run_command

pytestmark = [pytest.mark.slurm, pytest.mark.engines]

Misbehave = Callable[[str, str], None]


@pytest.fixture
def provider(parsl_site: Site, monkeypatch: pytest.MonkeyPatch) -> QPUSlurmProvider:
    """Return a provider whose blocks are plain commands under a lease."""
    provider = QPUSlurmProvider(qpu="ibm_quick", launcher=SimpleLauncher())
    provider.script_dir = str(parsl_site.folder)
    return provider


@pytest.fixture
def misbehave(parsl_site: Site, monkeypatch: pytest.MonkeyPatch) -> Misbehave:
    """Put a script before one of Slurm's commands; it can call that command as $REAL."""
    folder = parsl_site.folder / "bin"
    folder.mkdir()

    def write(name: str, script: str) -> None:
        real = shutil.which(name)
        (folder / name).write_text(f"#!/bin/sh\nexport REAL={real}\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return write


@pytest.fixture(autouse=True)
def end_all_jobs(parsl_site: Site, monkeypatch: pytest.MonkeyPatch):
    """End all jobs after each test."""
    path = os.environ["PATH"]
    yield
    monkeypatch.setenv("PATH", path)

    def ended() -> bool:
        jobs = parsl_site.jobs("%A")
        for job in jobs:
            # Both fail if the job has ended by now.
            run_command(["scancel", "--state=PENDING", job])
            run_command(["scancel", "--signal=KILL", job])  # it may ignore SIGTERM
        return not jobs

    wait_until(ended, "jobs to end")


def state(provider: QPUSlurmProvider, job: str) -> JobState:
    return status(provider, job).state


def status(provider: QPUSlurmProvider, job: str) -> JobStatus:
    (found,) = provider.status([job])
    return found


@pytest.mark.parametrize(
    ("command", "ends", "exit_code"),
    [("exit 3", JobState.FAILED, 3), ("true", JobState.COMPLETED, 0)],
)
def test_a_block_keeps_its_final_state_and_exit_code(
    provider, parsl_site: Site, command, ends, exit_code
):
    go = parsl_site.folder / "go"
    job = provider.submit(f"until [ -e {go} ]; do sleep 0.1; done; {command}", 1)
    assert state(provider, job) in (JobState.PENDING, JobState.RUNNING)

    go.touch()
    wait_until(lambda: state(provider, job) == ends, f"{ends}")
    assert status(provider, job).exit_code == exit_code
    other = provider.submit("sleep 60", 1)
    wait_until(lambda: state(provider, other) == JobState.RUNNING, "the other block to run")

    assert state(provider, job) == ends
    assert provider.cancel([job, other]) == [True, True]
    assert [each.state for each in provider.status([job, other])] == [ends, JobState.CANCELLED]


def test_a_pending_block_shows_slurms_reason(provider, parsl_site: Site):
    running, pending = provider.submit("sleep 60", 1), provider.submit("sleep 60", 1)

    wait_until(lambda: status(provider, pending).message == "Licenses", "Slurm's reason")
    assert state(provider, pending) == JobState.PENDING
    assert str(status(provider, pending)) == "JobState.PENDING (Licenses)"
    wait_until(lambda: state(provider, running) == JobState.RUNNING, "the other block to run")
    assert status(provider, running).message is None


def test_a_block_that_was_cancelled_in_slurm_is_cancelled(provider, parsl_site: Site):
    job = provider.submit("sleep 60", 1)

    parsl_site.slurm("scancel", job)

    wait_until(lambda: state(provider, job) == JobState.CANCELLED, "the block to be cancelled")


def test_unknown_ids_and_job_arrays_do_not_affect_other_blocks(provider, parsl_site: Site):
    parsl_site.slurm("sbatch", "--array=1-2", "--output=/dev/null", "--wrap=sleep 60")
    known, unknown = provider.submit("sleep 60", 1), "987654"
    provider.resources[unknown] = dict(provider.resources[known])
    provider._last_listed[unknown] = time.monotonic()

    wait_until(lambda: state(provider, known) == JobState.RUNNING, "the known block to run")

    assert state(provider, unknown) == JobState.PENDING


@pytest.mark.parametrize(
    ("slurm_state", "expected"),
    [
        ("COMPLETING", JobState.RUNNING),
        ("CONFIGURING", JobState.PENDING),
        ("SUSPENDED", JobState.HELD),
        ("TIMEOUT", JobState.TIMEOUT),
        ("NODE_FAIL", JobState.FAILED),
        ("NEWLY_INVENTED", JobState.PENDING),
    ],
)
def test_slurms_states_are_translated_into_parsls(provider, misbehave, slurm_state, expected):
    job = provider.submit("sleep 60", 1)

    rows = f"echo '{job}|{job}|{slurm_state}|0|None||name|'; echo '{job}_7|9|FAILED|0|None||array|'"
    misbehave("squeue", rows.replace("|", "\x1f"))

    assert state(provider, job) == expected


def test_a_block_that_slurm_does_not_list_is_pending_at_first_and_completed_later(
    provider, misbehave, monkeypatch
):
    job = provider.submit("sleep 60", 1)
    misbehave("squeue", "exit 0")
    misbehave("sacct", "exit 0")

    assert state(provider, job) == JobState.PENDING

    monkeypatch.setattr(base, "_UNLISTED_SECONDS", 0.0)
    assert state(provider, job) == JobState.COMPLETED


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60"], ids=["fails", "hangs"])
def test_a_block_keeps_its_state_if_squeue_does_not_answer(provider, misbehave, script):
    job = provider.submit("sleep 60", 1)
    wait_until(lambda: state(provider, job) == JobState.RUNNING, "the block to run")
    provider._queue._timeout = 2
    misbehave("squeue", script)

    assert state(provider, job) == JobState.RUNNING


@pytest.mark.parametrize(
    "end", ["exec sleep 60", "echo 'Socket timed out' >&2; exit 1"], ids=["hangs", "fails"]
)
def test_the_job_of_an_unanswered_submission_is_adopted(provider, parsl_site: Site, misbehave, end):
    provider._queue._timeout = 10  # enough for the real sbatch
    misbehave("sbatch", f'"$REAL" "$@" >/dev/null; {end}')

    job = provider.submit("sleep 60", 1)

    assert parsl_site.jobs("%A") == [job]
    wait_until(lambda: state(provider, job) == JobState.RUNNING, "the block to run")


def test_the_job_of_a_submission_that_is_accepted_late_is_cancelled(
    provider, parsl_site: Site, misbehave, monkeypatch: pytest.MonkeyPatch
):
    go = parsl_site.folder / "go"
    os.mkfifo(go)
    misbehave("sbatch", f'setsid sh -c \'read _ <{go}; "$REAL" "$0"\' "$2" & exec sleep 60')
    with monkeypatch.context() as patch:
        patch.setattr(provider._queue, "_timeout", 2)
        with pytest.raises(SubmitException, match=r"did not end within 2 s"):
            provider.submit("sleep 60", 1)
    provider.status([])
    assert parsl_site.jobs() == []

    go.write_text("now\n")
    wait_until(lambda: bool(parsl_site.jobs()), "the late job to appear")
    wait_until(lambda: not (provider.status([]) or parsl_site.jobs()), "it to end")


def test_a_rejected_submission_shows_slurms_message(provider, parsl_site: Site):
    provider.partition = "nowhere"

    with pytest.raises(SubmitException, match="invalid partition"):
        provider.submit("sleep 60", 1)

    assert parsl_site.jobs() == []


def test_a_site_with_qrmis_plugin_is_asked_for_the_qpu_by_its_option(parsl_site: Site):
    policy = parsl_site.folder / "site.toml"
    policy.write_text("[qpus.ibm_quick]\nqpu_option = true\n")
    provider = QPUSlurmProvider(qpu="ibm_quick", site=str(policy))
    provider.script_dir = str(parsl_site.folder)

    # The sandbox's Slurm does not have the plugin, so its error shows the option.
    with pytest.raises(SubmitException, match="unrecognized option '--qpu=ibm_quick'"):
        provider.submit("true", 1)


def test_a_slow_scancel_does_not_block_parsl(
    provider, parsl_site: Site, misbehave, monkeypatch: pytest.MonkeyPatch
):
    job = provider.submit("sleep 60", 1)
    monkeypatch.setattr(base, "is_run_over", lambda _: False)  # else the block ends on its own
    go = parsl_site.folder / "go"
    os.mkfifo(go)
    misbehave("scancel", f'read _ <{go}; "$REAL" "$@"')
    before = time.monotonic()

    assert provider.cancel([job]) == [True]
    assert time.monotonic() - before < base._CANCEL_SECONDS + 10
    assert parsl_site.jobs("%A") == [job]

    go.write_text("now\n")
    wait_until(lambda: not parsl_site.jobs(), "the block to end")


def test_a_block_that_slurm_does_not_cancel_keeps_its_state(
    provider, misbehave, monkeypatch: pytest.MonkeyPatch
):
    job = provider.submit("sleep 60", 1)
    monkeypatch.setattr(base, "is_run_over", lambda _: False)  # else the block ends on its own
    monkeypatch.setattr(base, "_CANCEL_SECONDS", 60.0)  # scancel fails earlier
    misbehave("scancel", "echo denied >&2; exit 1")

    assert provider.cancel([job]) == [False]
    assert state(provider, job) in (JobState.PENDING, JobState.RUNNING)


def test_a_scancel_without_effect_is_repeated(provider, parsl_site: Site, misbehave, monkeypatch):
    job = provider.submit("sleep 60", 1)
    monkeypatch.setattr(base, "is_run_over", lambda _: False)  # else the block ends on its own
    once = parsl_site.folder / "once"
    misbehave("scancel", f'mkdir {once} 2>/dev/null || exec "$REAL" "$@"')
    monkeypatch.setattr(stray_jobs, "_CANCEL_AGAIN_SECONDS", 0.0)

    assert provider.cancel([job]) == [True]

    wait_until(lambda: not (provider.status([]) or parsl_site.jobs()), "the block to end")
    assert state(provider, job) == JobState.CANCELLED
