"""A scheduler's job queue, as a provider uses it; each command has a timeout."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.config.job import without_leases
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobStatus, Scheduler
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.submission import JobMark, list_jobs, submit_job

__all__ = ["JobQueue"]


class JobQueue:
    """Runs a scheduler's commands.

    Args:
        scheduler: The scheduler's hooks.
        timeout: Seconds that each command may take.
    """

    def __init__(self, scheduler: Scheduler, timeout: float) -> None:
        self._scheduler = scheduler
        self._timeout = timeout

    def list_jobs(self, job_ids: Iterable[str] = ()) -> dict[str, JobStatus]:
        """Return this user's queued, running and recently ended jobs, by id.

        Args:
            job_ids: Jobs to look up in the accounting if the queue no longer lists them. A job that
                is too new or too old for either is not returned.

        Raises:
            SchedulerError: The scheduler did not answer.
        """
        listed = list_jobs(self._scheduler, self._scheduler.status_argv(), timeout=self._timeout)
        unlisted = [job_id for job_id in job_ids if job_id not in listed]
        argv = self._scheduler.history_argv(unlisted) if unlisted else None
        if argv is not None:
            with suppress(SchedulerError):  # the site may have no accounting
                listed |= list_jobs(self._scheduler, argv, timeout=self._timeout)
        return listed

    def submit(self, script: Path) -> str:
        """Submit a script whose name is also its job's name; return the job's id.

        Raises:
            SchedulerError: The scheduler rejected the job, or did not answer. In the latter case
                the job may still appear.
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
            SchedulerError: The scheduler rejected the request, or did not answer.
        """
        argv = self._scheduler.cancel_argv(job_ids)
        require_success(run_command(argv, timeout=self._timeout))
