"""The jobs of a stage, under the scheduler that runs them: which wait, and who lets them go.

A job of the stage has the stage's mark in its comment. If it is submitted before the stage is
ready, it waits for the keeper's job to release it, and the scheduler cancels it if that job ends
without success. Every function queries the scheduler once, however many jobs there are.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from qrmi_workflows.errors import LeaseError
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.lease.stage import Stage, StageState
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.schedulers.base import JobState, JobStatus, Scheduler
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.submission import JobMark, list_jobs
from qrmi_workflows.state.locks import is_locked

__all__ = [
    "ScheduledJobs",
    "announce_jobs",
    "leases_left",
    "mark_of",
    "own_mark",
    "submission_options",
]

logger = logging.getLogger(__name__)

# Seconds between two questions for jobs that are left: doubled each time, up to the second value
# while a job runs, which may end at any time, and up to the third while all are pending.
_SHORTEST_PAUSE, _RUNNING_PAUSE, _LONGEST_PAUSE = 1.0, 5.0, 30.0


def mark_of(stage: Stage) -> str:
    """Return the word that each job of a stage has in its comment."""
    return f"qpu_stage={stage.name}:{stage.id}"


def own_mark(stage: Stage, role: str) -> JobMark:
    """Return what distinguishes one of the stage's own jobs, `keeper` or `guard`."""
    return JobMark(name=f"qpu-{role}-{stage.name}", comment=f"qpu_{role}={stage.name}:{stage.id}")


def submission_options(
    stage: Stage,
    *,
    comment: str = "",
    after: Iterable[str] = (),
    scheduler: Scheduler | None = None,
) -> list[str]:
    """Render the options with which a job of a stage is submitted.

    As long as the stage is not ready, or its keeper does not live, such a job waits in the queue
    until the keeper releases it. Call `announce_jobs` after submitting it.

    Args:
        stage: The stage.
        comment: The job's own comment, if any: the scheduler takes only one.
        after: The ids of jobs for whose end it waits too: the scheduler takes only one dependency.
        scheduler: The scheduler; this site's if `None`.

    Raises:
        LeaseError: The stage has ended, or takes no more jobs.
    """
    scheduler = scheduler or this_scheduler()
    require_open(stage)
    options = scheduler.comment_options(f"{comment} {mark_of(stage)}".strip())
    after = list(after)
    is_ready = stage.state is StageState.READY and is_locked(stage.folder.alive)
    if not is_ready and stage.keeper_job is not None:
        return [*options, *scheduler.waiting_options(stage.keeper_job, after)]
    return [*options, *(scheduler.after_options(after) if after else [])]


def announce_jobs(stage: Stage) -> None:
    """Have the keeper look for new jobs that wait for it; it also does so from time to time.

    Args:
        stage: The stage as it was when `submission_options` was called: if it was ready, the jobs
            do not wait, and the keeper is spared a query.
    """
    if stage.state is StageState.READY:
        return
    with suppress(OSError):
        (stage.folder.wishes / f"jobs-{uuid.uuid4().hex}").touch()


def require_open(stage: Stage) -> None:
    """Refuse a stage that takes no more jobs.

    Raises:
        LeaseError: It has ended, or is being closed.
    """
    if stage.is_ended or stage.closing:
        why = f"has ended: {stage.reason}" if stage.is_ended else "is being closed"
        # As for a process that joins it: the request is valid, and succeeds once it is open again.
        raise LeaseError(
            f"stage {stage.name!r} {why}; a job needs an open stage. Open it again: `qpu stage "
            f"open {stage.name} --qpu {stage.qpu}`.",
            stage.qpu,
            retryable=True,
        )


def leases_left(stage: Stage) -> set[str]:
    """Return the leases that a stage's keeper has, or has left open because tasks are running."""
    if stage.keeper_job is None:
        return set()
    return {opened.lease for opened in open_leases() if opened.owner.job == stage.keeper_job}


class ScheduledJobs:
    """The jobs of one stage (see `StageJobs`).

    Args:
        stage: The stage.
        ensure_guard: Submits the guard again if it is not among the listed jobs.
        scheduler: The scheduler; this site's if `None`.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        ensure_guard: Callable[[Mapping[str, JobStatus]], object] = lambda _listed: None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._stage = stage
        self._keeper_job = stage.keeper_job or ""
        self._ensure_guard = ensure_guard
        self._scheduler = scheduler or this_scheduler()
        self._next_query, self._pause = float("-inf"), _SHORTEST_PAUSE

    def listed(self) -> dict[str, JobStatus]:
        """Return all of this user's jobs that the scheduler lists, by id.

        Raises:
            SchedulerError: The scheduler did not answer.
        """
        return list_jobs(self._scheduler, self._scheduler.status_argv())

    def of_stage(self, listed: Mapping[str, JobStatus]) -> dict[str, JobStatus]:
        """Return the jobs of the stage that have not ended, without its keeper and guard."""
        return {
            job_id: status
            for job_id, status in listed.items()
            if not status.state.is_final and (self._is_marked(status) or self._waits(status))
        }

    def waiting(self, listed: Mapping[str, JobStatus]) -> dict[str, JobStatus]:
        """Return the jobs that wait for the keeper to release them."""
        return {job_id: status for job_id, status in listed.items() if self._waits(status)}

    def given_up(self, listed: Mapping[str, JobStatus]) -> dict[str, JobStatus]:
        """Return the jobs that waited for the keeper when it died, cancelled by now or not."""
        return {
            job_id: status
            for job_id, status in listed.items()
            if self._waits(status)
            or (
                status.state is JobState.CANCELLED
                and self._keeper_job in re.findall(r"\w+", status.dependency)
                and self._is_marked(status)
            )
        }

    def _is_marked(self, status: JobStatus) -> bool:
        return mark_of(self._stage) in status.comment.split()

    def _waits(self, status: JobStatus) -> bool:
        return not status.state.is_final and self._scheduler.is_waiting(status, self._keeper_job)

    def release_waiting(self) -> None:
        """Release the jobs that wait for the keeper, and see to it that there is a guard.

        Raises:
            SchedulerError: The scheduler did not answer, or refused.
        """
        listed = self.listed()
        waiting = self.waiting(listed)
        errors = []
        for argv in self._scheduler.release_argvs(waiting, self._keeper_job):
            done = run_command(argv)
            # Of several jobs, some may have ended since they were listed; the others are released.
            if done.returncode != 0:
                errors.append(done.stderr.strip() or done.stdout.strip())
        if waiting:
            logger.warning("released %s", _count(waiting))
        for error in errors:
            logger.warning("not all jobs were released: %s", error)
        self._ensure_guard(listed)

    def cancel_waiting(self, reason: str) -> None:
        """Cancel the jobs that wait for the keeper, and the guard if it has nothing to do.

        Raises:
            SchedulerError: The scheduler did not answer, or refused.
        """
        listed = self.listed()
        if waiting := self.waiting(listed):
            logger.warning("cancelling %s: the stage has ended: %s", _count(waiting), reason)
            job_ids = [job_id.partition("_[")[0] for job_id in waiting]
            require_success(run_command(self._scheduler.cancel_argv(job_ids)))
        if leases_left(self._stage):
            return  # the guard releases them
        guard = listed.get(self._stage.guard_job or "")
        if guard is not None and not guard.state.may_have_processes and not guard.state.is_final:
            require_success(run_command(self._scheduler.cancel_argv([guard.job_id])))

    def are_left(self) -> bool:
        """Return whether a job of the stage waits or runs; may be called as often as you like.

        While the answer is yes, it is asked for ever less often: a job may be pending for hours.

        Raises:
            SchedulerError: The scheduler did not answer.
        """
        now = time.monotonic()
        if now < self._next_query:
            return True
        if now - self._next_query > self._pause:  # the first question in a while
            self._pause = _SHORTEST_PAUSE
        if not (left := self.of_stage(self.listed())):
            return False
        runs = any(status.state.may_have_processes for status in left.values())
        longest = _RUNNING_PAUSE if runs else _LONGEST_PAUSE
        self._next_query = time.monotonic() + min(self._pause, longest)
        self._pause = min(2 * self._pause, longest)
        return True

    def expect_change(self) -> None:
        """Have the next `are_left` query the scheduler, and the ones after it soon."""
        self._next_query, self._pause = float("-inf"), _SHORTEST_PAUSE


def _count(jobs: Mapping[str, JobStatus]) -> str:
    shown = ", ".join(sorted(jobs)[:10]) + (", …" if len(jobs) > 10 else "")
    return f"{len(jobs)} job{'' if len(jobs) == 1 else 's'} of the stage: {shown}"
