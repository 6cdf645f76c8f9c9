"""Close a stage: it takes no more jobs, and ends when its present ones have ended."""

from __future__ import annotations

from dataclasses import replace

from qrmi_workflows.lease.stage import Stage, StageState, update_stage
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.schedulers.base import JobState
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.stages.guard import settle_stages
from qrmi_workflows.stages.waiting_jobs import ScheduledJobs

__all__ = ["close_stage"]


def close_stage(name: str, *, opener: str | None = None, now: bool = False) -> Stage:
    """Close a stage: it takes no more jobs, and ends when its present ones have ended.

    Args:
        name: The stage's name.
        opener: The workflow that closes it; if other workflows need it, it stays open. If `None`,
            it is closed in any case.
        now: Whether to end it at once: jobs that wait for it are cancelled, and running ones can
            use the QPU no more.

    Returns:
        The stage as it was when it was closed. It has ended if it had before, or if its QPU was
        not granted yet and nothing waits for it. Otherwise its keeper ends it.

    Raises:
        RequestError: There is no such stage, or it is not this user's.
        SchedulerError: The scheduler did not answer.
    """

    def close(stage: Stage) -> Stage:
        if stage.is_ended:
            return stage
        others = () if opener is None else tuple(o for o in stage.openers if o != opener)
        return replace(stage, openers=others, closing=not others)

    settle_stages(name)
    stage = update_stage(name, close)
    if stage.closing and not stage.is_ended and stage.keeper_job is not None:
        return _end_keeper(stage, now=now)
    return stage


def _end_keeper(stage: Stage, *, now: bool) -> Stage:
    """Cancel the keeper's job if it has not started and nobody waits for it, or to end it now."""
    scheduler = this_scheduler()
    jobs = ScheduledJobs(stage, scheduler=scheduler)
    listed = jobs.listed()
    keeper = listed.get(str(stage.keeper_job))
    # A keeper that has started ends the stage itself; for one that was lost, the guard does.
    has_lease = stage.keeper is not None
    is_pending = keeper is not None and keeper.state in (JobState.PENDING, JobState.HELD)
    if not now and (has_lease or not is_pending or jobs.of_stage(listed)):
        return stage
    closed = stage if has_lease or not is_pending else _mark_closed(stage)
    # Not that of `closed`: the name may have been used again in the meantime.
    require_success(run_command(scheduler.cancel_argv([str(stage.keeper_job)])))
    if closed.is_ended:
        jobs.cancel_waiting("closed")
    return closed


def _mark_closed(stage: Stage) -> Stage:
    """End a stage unless its keeper has started in the meantime."""

    def end(now: Stage) -> Stage:
        if now.id != stage.id or now.is_ended or now.keeper is not None:
            return now
        return replace(now, state=StageState.ENDED, reason="closed before its QPU was granted")

    return update_stage(stage.name, end)
