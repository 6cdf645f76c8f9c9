"""Decide how a job ended, and describe it.

Slurm knows how a job ended: it may have been cancelled, or its node may have failed. A completion
marker only shows that the job's command has ended; where Slurm has forgotten the job, it decides.
"""

from __future__ import annotations

import signal
from enum import Enum

from qrmi_workflows.schedulers.base import JobState, JobStatus

__all__ = ["Outcome", "decide_outcome", "describe_end", "describe_forgotten", "is_held"]


class Outcome(Enum):
    """How a job ended, as far as known."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDECIDED = "undecided"


_PHRASES = {
    "BOOT_FAIL": "failed, because its node did not boot",
    "CANCELLED": "was cancelled",
    "DEADLINE": "was ended at its deadline",
    "NODE_FAIL": "failed, because its node failed",
    "OUT_OF_MEMORY": "ran out of memory; raise its `mem_mb`",
    "PREEMPTED": "was preempted, and Slurm does not run it again",
    "TIMEOUT": "was ended at its time limit; raise its `runtime`",
}
"""What happened to a job, by Slurm's word for its final state."""

_NOT_WORTH_SAYING = frozenset({"NonZeroExitCode", "None", ""})


def decide_outcome(listed: JobStatus | None, exit_status: str | None) -> Outcome:
    """Decide how a job ended.

    Args:
        listed: The job as Slurm lists it; `None` if Slurm has answered but no longer knows the job,
            because it forgets jobs `MinJobAge` seconds after their end (slurm.conf(5)).
        exit_status: The content of the job's marker; `None` if it has left none.
    """
    if listed is None or listed.word == "REVOKED":  # another cluster of the federation runs it
        return _decide_from_marker(exit_status)
    has_good_marker = exit_status in {"0", "", None}
    if listed.is_completing:
        # The exit code is final, and only the site's epilog still runs, which may take minutes. But
        # Slurm has not yet decided whether a failed job is FAILED, CANCELLED or to be requeued.
        has_succeeded = listed.exit_code == 0 and exit_status == "0"
        return Outcome.SUCCEEDED if has_succeeded else Outcome.UNDECIDED
    if listed.state is JobState.UNKNOWN:
        # A state of a later Slurm. Without a marker, the job may not have ended.
        return Outcome.UNDECIDED if exit_status is None else Outcome.FAILED
    if not listed.state.is_final:
        # RUNNING: slurmctld has not yet noticed the end. PENDING: Slurm has requeued the job.
        return Outcome.UNDECIDED
    has_succeeded = listed.state is JobState.COMPLETED and listed.exit_code == 0
    return Outcome.SUCCEEDED if has_succeeded and has_good_marker else Outcome.FAILED


def _decide_from_marker(exit_status: str | None) -> Outcome:
    if not exit_status:  # no marker, or one that could not be read
        return Outcome.UNDECIDED
    return Outcome.SUCCEEDED if exit_status == "0" else Outcome.FAILED


def is_held(listed: JobStatus) -> bool:
    """Return whether a job does not start until somebody releases it."""
    is_pending = listed.state is JobState.PENDING
    return listed.state is JobState.HELD or (is_pending and listed.reason.startswith("JobHeld"))


def describe_end(job_id: str, listed: JobStatus | None, exit_status: str | None) -> str:
    """Say in a sentence how a job has failed.

    Args:
        job_id: The Slurm job's id.
        listed: The job as Slurm lists it; `None` if Slurm no longer knows it.
        exit_status: The content of the job's marker; `None` if it has left none.
    """
    happened, facts = "failed", []
    if listed is not None:
        happened = _PHRASES.get(listed.word, "failed")
        facts.append(f"SLURM status is: '{listed.word}'")
    facts += _exit_facts(listed, exit_status)
    if listed is not None and listed.reason not in _NOT_WORTH_SAYING:
        facts.append(f"reason: {listed.reason}")
    return f"SLURM-job '{job_id}' {happened} ({', '.join(facts)})."


def describe_forgotten(job_id: str, *, min_job_age: float | None, has_accounting: bool) -> str:
    """Say that Slurm no longer knows a job, which has left no marker.

    Args:
        job_id: The Slurm job's id.
        min_job_age: Slurm's MinJobAge in seconds, if known.
        has_accounting: Whether the accounting has been asked too.
    """
    if has_accounting:
        forgotten = "neither squeue nor sacct knows it any more"
    else:
        age = f" (it forgets jobs {min_job_age:g} s after their end)" if min_job_age else ""
        forgotten = f"Slurm no longer knows it{age}"
    return (
        f"SLURM-job '{job_id}' counts as failed: {forgotten}, and it has left no completion "
        "marker, so nothing tells how it ended. It may have been killed, or its node has failed."
    )


def _exit_facts(listed: JobStatus | None, exit_status: str | None) -> list[str]:
    """Name the exit code; above 128 it is the number of a signal, in Slurm as in a shell."""
    code = listed.exit_code if listed is not None else None
    if exit_status and exit_status.isdecimal():
        code = int(exit_status) or code  # of the command itself
    if not code:
        return []
    try:
        return [f"signal {code - 128} ({signal.Signals(code - 128).name})"]
    except ValueError:
        return [f"exit code {code}"]
