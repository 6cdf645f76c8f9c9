"""What a provider makes of a scheduler that is slow, silent, wrong or does not know a job yet.

Slurm is real; a command that stands before Slurm's own on PATH makes it misbehave.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import pytest
from parsl.jobs.states import JobState
from parsl.launchers import SimpleLauncher
from parsl.providers.errors import SubmitException
from parsl_runs import Site, wait_until

from parsl_ext import QPUSlurmProvider
from parsl_ext.providers import base

pytestmark = [pytest.mark.slurm, pytest.mark.engines]

Misbehave = Callable[[str, str], None]


@pytest.fixture
def provider(parsl_site: Site, monkeypatch: pytest.MonkeyPatch) -> QPUSlurmProvider:
    """A provider whose blocks are plain commands, and hold the QPU without a lease."""
    provider = QPUSlurmProvider(qpu="ibm_quick", launcher=SimpleLauncher(), cmd_timeout=2)
    provider.script_dir = str(parsl_site.folder)
    return provider


@pytest.fixture
def misbehave(parsl_site: Site, monkeypatch: pytest.MonkeyPatch) -> Misbehave:
    """Put a script before one of Slurm's commands, which it finds as $REAL."""
    folder = parsl_site.folder / "bin"
    folder.mkdir()

    def write(name: str, script: str) -> None:
        real = shutil.which(name)
        (folder / name).write_text(f"#!/bin/sh\nexport REAL={real}\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return write


@pytest.fixture(autouse=True)
def nothing_left(parsl_site: Site, monkeypatch: pytest.MonkeyPatch):
    """No test leaves a job."""
    path = os.environ["PATH"]
    yield
    monkeypatch.setenv("PATH", path)

    def ended() -> bool:
        jobs = parsl_site.jobs("%A")
        for job in jobs:
            parsl_site.slurm("scancel", "--state=PENDING", job)
            parsl_site.slurm("scancel", "--signal=KILL", job)  # a job may start deaf to SIGTERM
        return not jobs

    wait_until(ended, "jobs to end")


def state(provider: QPUSlurmProvider, job: str) -> JobState:
    (status,) = provider.status([job])
    return status.state


@pytest.mark.parametrize(
    ("command", "ends"), [("exit 3", JobState.FAILED), ("true", JobState.COMPLETED)]
)
def test_how_a_block_ended_is_kept(provider, parsl_site: Site, command, ends):
    job = provider.submit(command, 1)
    assert state(provider, job) in (JobState.PENDING, JobState.RUNNING)

    wait_until(lambda: state(provider, job) == ends, f"{ends}")
    other = provider.submit("sleep 60", 1)
    wait_until(lambda: state(provider, other) == JobState.RUNNING, "the other block")

    assert state(provider, job) == ends
    assert provider.cancel([job, other]) == [True, True]
    assert [status.state for status in provider.status([job, other])] == [ends, JobState.CANCELLED]


def test_a_block_that_was_cancelled_in_slurm_is_told_apart(provider, parsl_site: Site):
    job = provider.submit("sleep 60", 1)

    parsl_site.slurm("scancel", job)

    wait_until(lambda: state(provider, job) == JobState.CANCELLED, "the cancelled block")


def test_unknown_ids_and_arrays_in_the_queue_disturb_no_other_block(provider, parsl_site: Site):
    parsl_site.slurm("sbatch", "--array=1-2", "--output=/dev/null", "--wrap=sleep 60")
    known, unknown = provider.submit("sleep 60", 1), "987654"
    provider.resources[unknown] = dict(provider.resources[known])
    provider._seen[unknown] = time.monotonic()

    wait_until(lambda: state(provider, known) == JobState.RUNNING, "the known block")

    assert state(provider, unknown) == JobState.PENDING


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("COMPLETING", JobState.RUNNING),
        ("CONFIGURING", JobState.PENDING),
        ("SUSPENDED", JobState.HELD),
        ("TIMEOUT", JobState.TIMEOUT),
        ("NODE_FAIL", JobState.FAILED),
        ("NEWLY_INVENTED", JobState.PENDING),
    ],
)
def test_what_slurm_says_becomes_a_state_of_parsls(provider, misbehave, written, means):
    job = provider.submit("sleep 60", 1)

    misbehave("squeue", f"echo '{job}|{written}|name'; echo '{job}_7|FAILED|an array'")

    assert state(provider, job) == means


def test_a_block_that_slurm_does_not_know_yet_is_pending_and_one_it_forgot_has_ended(
    provider, misbehave, monkeypatch
):
    job = provider.submit("sleep 60", 1)
    misbehave("squeue", "exit 0")
    misbehave("sacct", "exit 0")

    assert state(provider, job) == JobState.PENDING

    monkeypatch.setattr(base, "_FORGOTTEN_SECONDS", 0.0)
    assert state(provider, job) == JobState.COMPLETED


@pytest.mark.parametrize("trouble", ["exit 1", "exec sleep 60"], ids=["fails", "hangs"])
def test_without_an_answer_a_block_stays_as_it_was(provider, misbehave, trouble):
    job = provider.submit("sleep 60", 1)
    wait_until(lambda: state(provider, job) == JobState.RUNNING, "the block")
    misbehave("squeue", trouble)

    assert state(provider, job) == JobState.RUNNING


@pytest.mark.parametrize(
    "end", ["exec sleep 60", "echo 'Socket timed out' >&2; exit 1"], ids=["hangs", "fails"]
)
def test_a_submission_that_was_accepted_without_an_answer_is_adopted(
    provider, parsl_site: Site, misbehave, end
):
    misbehave("sbatch", f'"$REAL" "$@" >/dev/null; {end}')

    job = provider.submit("sleep 60", 1)

    assert parsl_site.jobs("%A") == [job]
    wait_until(lambda: state(provider, job) == JobState.RUNNING, "the block")


def test_a_submission_that_is_accepted_after_all_is_cancelled(
    provider, parsl_site: Site, misbehave
):
    go = parsl_site.folder / "go"
    os.mkfifo(go)
    misbehave("sbatch", f'setsid sh -c \'read _ <{go}; "$REAL" "$0"\' "$2" & exec sleep 60')
    with pytest.raises(SubmitException, match=r"did not end within 2 s"):
        provider.submit("sleep 60", 1)
    provider.status([])
    assert parsl_site.jobs() == []

    go.write_text("now\n")
    wait_until(lambda: bool(parsl_site.jobs()), "the late job")
    wait_until(lambda: not (provider.status([]) or parsl_site.jobs()), "its end")


def test_a_refused_submission_says_why(provider, parsl_site: Site):
    provider.partition = "nowhere"

    with pytest.raises(SubmitException, match="invalid partition"):
        provider.submit("sleep 60", 1)

    assert parsl_site.jobs() == []


def test_where_qrmis_plugin_acquires_it_is_asked_for_the_qpu(parsl_site: Site):
    policy = parsl_site.folder / "site.toml"
    policy.write_text("[qpus.ibm_quick]\nqpu_option = true\n")
    provider = QPUSlurmProvider(qpu="ibm_quick", site=str(policy))
    provider.script_dir = str(parsl_site.folder)

    # The sandbox's Slurm has no such plugin, and so shows what it is asked.
    with pytest.raises(SubmitException, match="unrecognized option '--qpu=ibm_quick'"):
        provider.submit("true", 1)


def test_a_slow_scancel_is_waited_for_elsewhere(provider, parsl_site: Site, misbehave):
    job = provider.submit("sleep 60", 1)
    go = parsl_site.folder / "go"
    os.mkfifo(go)
    provider._queue._timeout = 30
    misbehave("scancel", f'read _ <{go}; "$REAL" "$@"')
    before = time.monotonic()

    assert provider.cancel([job]) == [True]
    assert time.monotonic() - before < base._PATIENCE_SECONDS + 1
    assert parsl_site.jobs("%A") == [job]

    go.write_text("now\n")
    wait_until(lambda: not parsl_site.jobs(), "the block's end")


def test_a_refused_scancel_leaves_the_block_as_it_was(provider, misbehave):
    job = provider.submit("sleep 60", 1)
    misbehave("scancel", "echo denied >&2; exit 1")

    assert provider.cancel([job]) == [False]
    assert state(provider, job) in (JobState.PENDING, JobState.RUNNING)


def test_a_cancel_that_had_no_effect_is_repeated(
    provider, parsl_site: Site, misbehave, monkeypatch
):
    job = provider.submit("sleep 60", 1)
    once = parsl_site.folder / "once"
    misbehave("scancel", f'mkdir {once} 2>/dev/null || exec "$REAL" "$@"')
    monkeypatch.setattr(base, "_FORGOTTEN_SECONDS", 0.0)

    assert provider.cancel([job]) == [True]

    wait_until(lambda: not (provider.status([]) or parsl_site.jobs()), "the block's end")
    assert state(provider, job) == JobState.CANCELLED
