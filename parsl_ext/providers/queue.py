"""A scheduler's queue as a provider uses it: each of its commands has a time-out."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.config.job import without_leases
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobStatus, Scheduler
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.submission import JobMark, list_jobs, submit_job

__all__ = ["Queue"]


class Queue:
    """Runs a scheduler's commands.

    Args:
        scheduler: The scheduler's hooks.
        timeout: Seconds that each command may take.
    """

    def __init__(self, scheduler: Scheduler, timeout: float) -> None:
        self._scheduler = scheduler
        self._timeout = timeout

    def look(self, job_ids: Iterable[str] = ()) -> dict[str, JobStatus]:
        """Return this user's jobs that are queued or have just ended, and the ones asked for.

        A job that is neither in the queue nor in the accounting is absent: it may be too new for
        both, or too old.

        Raises:
            SchedulerError: The scheduler did not answer.
        """
        listed = list_jobs(self._scheduler, self._scheduler.status_argv(), timeout=self._timeout)
        absent = [job_id for job_id in job_ids if job_id not in listed]
        argv = self._scheduler.history_argv(absent) if absent else None
        if argv is not None:
            with suppress(SchedulerError):  # the site may have no accounting
                listed |= list_jobs(self._scheduler, argv, timeout=self._timeout)
        return listed

    def submit(self, script: Path) -> str:
        """Submit a script, whose name is its job's name, and return the job's id.

        Raises:
            SchedulerError: The scheduler rejected it, or did not answer; then the job may exist.
        """
        return submit_job(
            self._scheduler,
            self._scheduler.submit_argv(script),
            JobMark(name=script.name),
            environ=without_leases(),
            timeout=self._timeout,
        )

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs.

        Raises:
            SchedulerError: The scheduler refused, or did not answer.
        """
        argv = self._scheduler.cancel_argv(job_ids)
        require_success(run_command(argv, timeout=self._timeout))
