"""Have Slurm end and start jobs now, not when their time limits and their delays are over."""

from __future__ import annotations

from collections.abc import Mapping

from waiting import wait_until

from qrmi_workflows.schedulers.command import run_command

__all__ = ["expire", "start_again"]


def expire(job: str | int, environ: Mapping[str, str] | None = None) -> None:
    """Move a running job's time limit to now; Slurm acts on it within 30 seconds.

    Slurm refuses it in the second of the job's start, and when a second begins between
    `scontrol`'s look at the clock and its own (`Invalid time specified`).
    """
    _update(job, "EndTime=now", environ)


def start_again(job: str | int, environ: Mapping[str, str] | None = None) -> None:
    """Have a requeued job start in 3 seconds.

    By itself, Slurm waits for two minutes, and the job's credential has expired by then. A start in
    the second of the first run's end fails: a node tells the runs of a job apart by the second, and
    has revoked the credential of that one. Slurm refuses the update while the first run still ends.
    """
    _update(job, "StartTime=now+3", environ)


def _update(job: str | int, change: str, environ: Mapping[str, str] | None) -> None:
    argv = ["scontrol", "update", f"JobId={job}", change]
    wait_until(
        lambda: run_command(argv, environ=environ).returncode == 0,
        f"Slurm to accept {change} of job {job}",
    )
