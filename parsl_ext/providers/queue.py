"""A scheduler's queue as a provider uses it: no command of it may take longer than a time-out."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.environment import without_leases
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobState, Scheduler, require_success, run_command

__all__ = ["Listed", "Queue"]

Listed = dict[str, tuple[JobState, str]]
"""State and name of jobs, by their ids."""


class Queue:
    """Runs a scheduler's commands.

    Args:
        scheduler: The scheduler's hooks.
        timeout: Seconds that each command may take.
    """

    def __init__(self, scheduler: Scheduler, timeout: float) -> None:
        self._scheduler = scheduler
        self._timeout = timeout

    def look(self, job_ids: Iterable[str] = ()) -> Listed:
        """Return all of this user's jobs that are queued or have just ended, and those asked for.

        A job that is neither queued nor in the accounting is absent: it may be too new for both,
        or too old.

        Raises:
            SchedulerError: The scheduler does not answer.
        """
        listed = self._ask(self._scheduler.status_argv())
        gone = [job_id for job_id in job_ids if job_id not in listed]
        argv = self._scheduler.history_argv(gone) if gone else None
        if argv is not None:
            with suppress(SchedulerError):  # a site without accounting
                listed |= self._ask(argv)
        return listed

    def submit(self, script: Path) -> str:
        """Submit a script and return its job's id.

        Raises:
            SchedulerError: The scheduler refused it, or did not answer; then the job may exist.
        """
        argv = self._scheduler.submit_argv(script)
        done = run_command(argv, timeout=self._timeout, environ=without_leases())
        job_id = self._scheduler.parse_job_id(require_success(done).stdout)
        if job_id is None:
            raise SchedulerError(
                f"`{argv[0]}` printed no job id: {done.stdout.strip()!r}. Look at what it is on "
                "PATH.",
                done.argv,
                done.returncode,
                done.stderr,
            )
        return job_id

    def find(self, name: str) -> str | None:
        """Return the id of the job of a name; `None` when there is none, or no answer."""
        with suppress(SchedulerError):
            return next((id_ for id_, (_, named) in self.look().items() if named == name), None)
        return None

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs.

        Raises:
            SchedulerError: The scheduler refused, or did not answer.
        """
        argv = self._scheduler.cancel_argv(job_ids)
        require_success(run_command(argv, timeout=self._timeout))

    def _ask(self, argv: list[str]) -> Listed:
        done = require_success(run_command(argv, timeout=self._timeout))
        return self._scheduler.parse_status(done.stdout)
