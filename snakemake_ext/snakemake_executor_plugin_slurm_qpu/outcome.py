"""Decide how a job with a completion marker ended.

A marker only shows that the job's command has ended. Slurm knows how the job ended: it may have
been cancelled, or its node may have failed. Where Slurm has forgotten the job, its marker decides.
"""

from __future__ import annotations

from enum import Enum

from qrmi_workflows.schedulers.base import JobState, JobStatus

__all__ = ["Outcome", "decide_outcome"]


class Outcome(Enum):
    """How a job ended, as far as known."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDECIDED = "undecided"


# The states of a job that has not ended. UNKNOWN, for the states that a later Slurm may add, is not
# among them: such a job counts as failed, or Snakemake might wait for it forever.
_NOT_ENDED = frozenset(
    {JobState.PENDING, JobState.HELD, JobState.RUNNING, JobState.SUSPENDED},
)


def decide_outcome(listed: JobStatus | None, exit_status: str) -> Outcome:
    """Decide how a job with a marker ended.

    Args:
        listed: The job as Slurm lists it; `None` if Slurm has answered but does not list the job,
            because it forgets jobs `MinJobAge` seconds after their end (slurm.conf(5)).
        exit_status: The content of the job's marker; empty for a job without a QPU.
    """
    has_good_marker = exit_status in {"0", ""}
    if listed is None:
        return Outcome.SUCCEEDED if has_good_marker else Outcome.FAILED
    if listed.is_completing:
        # The exit code is final, and only the site's epilog still runs, which may take minutes. But
        # Slurm has not yet decided whether a failed job is FAILED or CANCELLED.
        has_succeeded = listed.exit_code == 0 and has_good_marker
        return Outcome.SUCCEEDED if has_succeeded else Outcome.UNDECIDED
    if listed.state in _NOT_ENDED:
        # RUNNING: slurmctld has not yet noticed the end. PENDING: Slurm has requeued the job.
        return Outcome.UNDECIDED
    has_succeeded = listed.state is JobState.COMPLETED and listed.exit_code == 0
    return Outcome.SUCCEEDED if has_succeeded and has_good_marker else Outcome.FAILED
