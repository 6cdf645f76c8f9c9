"""Submit a job, and find it again if the scheduler's answer was lost.

A scheduler may have accepted a job although its command failed or timed out (the controller is
busy, the answer was lost). Such a job would hold a QPU that nobody uses, so the queue is searched
for it by a mark that no other job has.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.retry import retry
from qrmi_workflows.schedulers.base import JobStatus, Scheduler
from qrmi_workflows.schedulers.command import (
    COMMAND_TIMEOUT,
    Completed,
    require_success,
    run_command,
)

__all__ = ["JobMark", "find_job", "list_jobs", "submit_job"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMark:
    """The name and comment that distinguish a job from the user's other jobs.

    Attributes:
        name: The job's name.
        comment: The job's comment, if several jobs share the name.
    """

    name: str
    comment: str | None = None

    def matches(self, status: JobStatus) -> bool:
        """Return whether a listed job has this mark."""
        return status.name == self.name and self.comment in (None, status.comment)


def submit_job(
    scheduler: Scheduler,
    argv: Sequence[str],
    mark: JobMark,
    *,
    stdin: str | None = None,
    environ: Mapping[str, str] | None = None,
    timeout: float = COMMAND_TIMEOUT,
    search_seconds: float = 0.0,
) -> str:
    """Submit a job and return its id, even if the scheduler's answer was lost.

    Args:
        scheduler: The scheduler.
        argv: The submission command.
        mark: The mark that this command gives the job.
        stdin: The command's input; for some schedulers, the job script.
        environ: The command's environment; this process's if `None`.
        timeout: Seconds that each command may take.
        search_seconds: How long to keep querying a queue that does not answer.

    Raises:
        SchedulerError: The scheduler rejected the job, or did not answer and does not list the job.
    """
    try:
        done = run_command(argv, stdin=stdin, timeout=timeout, environ=environ)
        return _parse_job_id(scheduler, require_success(done))
    except SchedulerError as error:
        found = find_job(scheduler, mark, timeout=timeout, search_seconds=search_seconds)
        if found is None:
            raise
        logger.warning("job %s was accepted despite this error: %s", found, error)
        return found


def _parse_job_id(scheduler: Scheduler, done: Completed) -> str:
    job_id = scheduler.parse_job_id(done.stdout)
    if job_id is None:
        raise SchedulerError(
            f"`{done.argv[0]}` printed no job id: {done.stdout.strip()!r}. Check which "
            f"`{done.argv[0]}` is on PATH.",
            done.argv,
            done.returncode,
            done.stderr,
        )
    return job_id


def find_job(
    scheduler: Scheduler,
    mark: JobMark,
    *,
    timeout: float = COMMAND_TIMEOUT,
    search_seconds: float = 0.0,
) -> str | None:
    """Return the id of the job with a mark; `None` if it is not listed or nothing answers."""

    def look() -> str | None:
        listed = list_jobs(scheduler, scheduler.status_argv(name=mark.name), timeout=timeout)
        return next((job_id for job_id, status in listed.items() if mark.matches(status)), None)

    with suppress(SchedulerError):
        return retry(look, lambda error: isinstance(error, SchedulerError), seconds=search_seconds)
    return None


def list_jobs(
    scheduler: Scheduler, argv: Sequence[str], *, timeout: float = COMMAND_TIMEOUT
) -> dict[str, JobStatus]:
    """Run a command that lists jobs, and parse its output.

    Raises:
        SchedulerError: The scheduler did not answer.
    """
    return scheduler.parse_status(require_success(run_command(argv, timeout=timeout)).stdout)
