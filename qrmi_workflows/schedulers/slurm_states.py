"""Slurm's words for the state of a job (pure functions)."""

from __future__ import annotations

from qrmi_workflows.schedulers.base import JobState

__all__ = ["state_of", "word_of"]

_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "EXPEDITING": JobState.PENDING,  # requeued, and first in the queue (26.05)
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.HELD,
    "RESV_DEL_HOLD": JobState.HELD,
    "SPECIAL_EXIT": JobState.HELD,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,  # its processes may be alive, and hold a lease
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "STOPPED": JobState.SUSPENDED,
    "SUSPENDED": JobState.SUSPENDED,
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,  # another cluster of the federation runs or has run it
    "FAILED": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.TIMEOUT,  # for good: a job to be requeued is COMPLETING, then PENDING
    "TIMEOUT": JobState.TIMEOUT,
}
"""Slurm's words for a job's state (`job_state_string` of 22.05 to 26.05), and what each means.

https://slurm.schedmd.com/job_state_codes.html lists some that squeue and sacct never print.
"""


def state_of(written: str) -> JobState:
    """Translate a state."""
    return _STATES.get(word_of(written), JobState.UNKNOWN)


def word_of(written: str) -> str:
    """Return Slurm's word for a state; sacct writes `CANCELLED by 1000`."""
    return written.partition(" ")[0].rstrip("+")
