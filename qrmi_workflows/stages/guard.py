"""The guard: a small job that cleans up if a keeper's job has ended without doing so.

The scheduler starts it once the keeper's job has ended, however it ended. It marks the stage as
ended, reaps the lease, and cancels jobs that still wait. If the guard is lost too, whoever next
looks at the stages does the same (`settle_stages`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from qrmi_workflows.config.job import without_leases
from qrmi_workflows.config.variables import STAGE_VARIABLES
from qrmi_workflows.errors import ConfigError, QPUError, RequestError, SchedulerError
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.stage import Stage, StageState, find_stage, list_stages, update_stage
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.schedulers.base import JobStatus, Scheduler
from qrmi_workflows.schedulers.submission import list_jobs, submit_job
from qrmi_workflows.stages.waiting_jobs import ScheduledJobs, leases_left, own_mark
from qrmi_workflows.stages.warm_up import forget_warm_ups
from qrmi_workflows.state.files import append_line, write_atomically

__all__ = [
    "Settled",
    "ensure_guard",
    "guard_stage",
    "settle_stages",
    "submission_environment",
    "take_job",
]

logger = logging.getLogger(__name__)

_END_SECONDS = 60.0  # how long the keeper's job may take to complete after its processes have ended
_LOOK_SECONDS = 1.0
_TASKS_SECONDS = 480.0  # how long to wait for tasks in flight; its job may run for ten minutes
_REAP_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A stage that had to be ended for its keeper.

    Attributes:
        stage: The stage's name.
        reason: How its keeper's job ended.
    """

    stage: str
    reason: str


def submission_environment() -> dict[str, str]:
    """Return the environment with which a stage's own jobs are submitted: without any lease."""
    return {k: v for k, v in without_leases().items() if k not in STAGE_VARIABLES}


def guard_stage(name: str, stage_id: str) -> None:
    """Do the guard's work, in its job.

    Args:
        name: The stage's name.
        stage_id: The id of the opening of the stage that it guards.

    Raises:
        RequestError, ConfigError: The stage's folder was deleted or damaged; its lease is reaped
            all the same.
    """
    try:
        _guard(name, stage_id)
    except (ConfigError, RequestError):
        reap()
        raise


def _guard(name: str, stage_id: str) -> None:
    scheduler = this_scheduler()
    limit = time.monotonic() + _END_SECONDS
    while (stage := find_stage(name)).id == stage_id and not stage.is_ended:
        listed = list_jobs(scheduler, scheduler.status_argv())
        if (reason := _how_keeper_ended(stage, listed, scheduler)) is not None:
            _settle(stage, reason, listed, scheduler)
            _await_tasks(stage)
            return
        if time.monotonic() > limit:
            # The keeper's job is in the queue again: somebody has requeued it.
            ensure_guard(stage, {}, scheduler)
            return
        time.sleep(_LOOK_SECONDS)
    if stage.id == stage_id:  # its keeper has ended it, or left its lease to tasks in flight
        _await_tasks(stage)


def _await_tasks(stage: Stage) -> None:
    """Release the stage's lease as soon as tasks that a rerun would wait for have ended.

    Releasing it earlier could cancel them. The guard waits for as long as its job may, since
    nobody else might come by, and some vendors bill until the session is closed.
    """
    limit = time.monotonic() + _TASKS_SECONDS
    while time.monotonic() < limit:
        open_now = leases_left(stage)
        if not open_now:
            return
        time.sleep(_REAP_SECONDS)
        for each in reap():
            if each.lease in open_now and not each.kept:
                _log(stage, f"{each.lease} of {each.qpu}: {each.error or 'released'}")


def take_job(name: str, stage_id: str) -> ScheduledJobs:
    """Return the jobs of a stage to its keeper, which calls this in its job.

    Whoever opened the stage may have died before it could record the job, or submit the guard.
    """
    job = this_job()

    def take(now: Stage) -> Stage:
        if job is None or now.is_ended or now.id != stage_id:
            return now
        return replace(now, keeper_job=job.id, cluster=job.cluster)

    stage = update_stage(name, take)
    if stage.guard_job is None:
        try:
            ensure_guard(stage, {})
        except SchedulerError as error:
            logger.warning("the guard will be submitted later: %s", error)
    return ScheduledJobs(stage, ensure_guard=lambda listed: ensure_guard(find_stage(name), listed))


def settle_stages(name: str | None = None) -> list[Settled]:
    """End the stages of this user whose keeper's job has ended without doing so.

    The scheduler is queried only if a stage has not ended. If it does not answer, nothing is done,
    and a warning says so. Stages of another cluster are left alone.

    Args:
        name: Look only at this stage.
    """
    stages = [
        stage
        for stage in list_stages()
        if not stage.is_ended and _is_in_a_job(stage) and name in (None, stage.name)
    ]
    if not stages:
        return []
    scheduler = this_scheduler()
    try:
        cluster = scheduler.this_cluster()
        listed = list_jobs(scheduler, scheduler.status_argv())
    except SchedulerError as error:
        logger.warning("cannot tell whether the keepers of open stages are alive: %s", error)
        return []
    settled = []
    for found in stages:
        if found.cluster not in (None, cluster):
            continue
        try:
            stage = found if found.keeper_job is not None else _find_keeper(found, listed)
        except (OSError, QPUError) as error:
            logger.warning("stage %r: its keeper's job cannot be recorded: %s", found.name, error)
            continue
        if found.keeper_job is None and stage.keeper_job not in (None, *listed):
            continue  # it has been submitted since the jobs were listed
        reason = _how_keeper_ended(stage, listed, scheduler)
        if reason is not None and _settle(stage, reason, listed, scheduler):
            settled.append(Settled(stage=stage.name, reason=reason))
    return settled


def ensure_guard(
    stage: Stage, listed: Mapping[str, JobStatus], scheduler: Scheduler | None = None
) -> Stage:
    """Submit a guard if the stage has none among the listed jobs.

    Returns:
        The stage with its guard's job, if anything has changed.

    Raises:
        SchedulerError: The scheduler did not take the job.
    """
    scheduler = scheduler or this_scheduler()
    guard = listed.get(stage.guard_job or "")
    if stage.keeper_job is None or (guard is not None and not guard.state.is_final):
        return stage

    def submit(now: Stage) -> Stage:
        # Another process may have submitted one since the jobs were listed.
        if (now.id, now.guard_job) != (stage.id, stage.guard_job) or now.is_ended:
            return now
        script = now.folder.path / "guard.sh"
        if not script.exists():
            logger.warning("%s is missing: stage %r has no guard", script, now.name)
            return now
        after = scheduler.after_options([str(now.keeper_job)])
        head, _, rest = script.read_text(encoding="utf-8").partition("\n")
        directives = "\n".join(map(scheduler.directive, after))
        submitted = script.with_name("guard-job.sh")
        write_atomically(submitted, f"{head}\n{directives}\n{rest}", mode=0o600)
        guard_job = submit_job(
            scheduler,
            scheduler.submit_argv(submitted),
            own_mark(now, "guard"),
            environ=submission_environment(),
        )
        return replace(now, guard_job=guard_job)

    return update_stage(stage.name, submit)


def _is_in_a_job(stage: Stage) -> bool:
    """Return whether a stage's keeper runs in a job, or will."""
    return stage.keeper_job is not None or stage.keeper is None


def _find_keeper(stage: Stage, listed: Mapping[str, JobStatus]) -> Stage:
    """Record the keeper's job of a stage if whoever opened the stage died before doing so."""
    mark = own_mark(stage, "keeper")
    found = next((job_id for job_id, status in listed.items() if mark.matches(status)), None)

    def take(now: Stage) -> Stage:
        # Whoever opens a stage holds its lock until the keeper's job is recorded.
        if now.id != stage.id or now.keeper_job is not None:
            return now
        return replace(now, keeper_job=found)

    return update_stage(stage.name, take)


def _how_keeper_ended(
    stage: Stage, listed: Mapping[str, JobStatus], scheduler: Scheduler
) -> str | None:
    """Return how the keeper's job ended, in the scheduler's word; `None` if it has not ended."""
    if stage.keeper_job is None:
        return None if stage.keeper else "whoever opened it died before it had a keeper"
    job_id = stage.keeper_job
    status = listed.get(job_id) or _look_up(job_id, scheduler)
    if status is None:
        return f"its keeper's job {job_id} has ended; the scheduler no longer knows how"
    if not status.state.is_final:
        return None
    code = "" if status.exit_code in (0, None) else f" (exit code {status.exit_code})"
    return f"its keeper's job {job_id} ended: {status.word or status.state}{code}"


def _look_up(job_id: str, scheduler: Scheduler) -> JobStatus | None:
    argv = scheduler.history_argv([job_id])
    if argv is not None:
        with suppress(SchedulerError):  # the site may have no accounting
            return list_jobs(scheduler, argv).get(job_id)
    return None


def _settle(
    stage: Stage, reason: str, listed: Mapping[str, JobStatus], scheduler: Scheduler
) -> bool:
    """End a stage for its keeper; return `False` if somebody else has done so."""
    is_first = False
    jobs = ScheduledJobs(stage, scheduler=scheduler)
    if cancelled := jobs.given_up(listed):
        reason = f"{reason}; cancelled with it: {', '.join(cancelled)}"

    def end(now: Stage) -> Stage:
        nonlocal is_first
        if now.id != stage.id or now.is_ended:
            return now
        is_first = True
        # First of all, so that nobody uses a lease that is about to be released.
        now.folder.environment.unlink(missing_ok=True)
        return replace(now, state=StageState.ENDED, reason=reason)

    try:
        update_stage(stage.name, end)
    except (OSError, QPUError) as error:
        # The disk is full, say. Nobody uses a stage whose keeper is dead, so the rest can be done;
        # it may be done once more.
        logger.warning("stage %r cannot be marked as ended: %s", stage.name, error)
        is_first = True
    if not is_first:
        return False
    _log(stage, f"the stage has ended: {reason}")
    try:
        jobs.cancel_waiting(reason)
    except SchedulerError as error:
        _log(stage, f"not all jobs could be cancelled: {error}")
    forget_warm_ups(stage)
    try:
        for each in reap():
            outcome = "released" if each.released else each.kept or each.error
            _log(stage, f"{each.lease} of {each.qpu}: {outcome}")
    except QPUError as error:
        _log(stage, f"its lease could not be released: {error}")
    return True


def _log(stage: Stage, message: str) -> None:
    with suppress(OSError):
        append_line(stage.folder.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} qpu: {message}")
