"""Open a stage: submit its keeper's and its guard's jobs, and wait until it is ready."""

from __future__ import annotations

import logging
import shutil
import sys
import time as clock
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from qrmi_workflows.config.emulated import refuse_emulated_stage
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.qpus import find_config
from qrmi_workflows.config.site import SitePolicy, load_site_policy
from qrmi_workflows.config.variables import QPU_CONFIG, QPU_SITE, QPU_STATE
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError, RequestError, SchedulerError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.stage import (
    IDLE_SECONDS,
    Stage,
    StageState,
    find_stage,
)
from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.schedulers import scheduler_of
from qrmi_workflows.schedulers.base import JobLimits, QPURequest, Scheduler
from qrmi_workflows.schedulers.request import compile_request
from qrmi_workflows.schedulers.submission import find_job, submit_job
from qrmi_workflows.stages.guard import ensure_guard, settle_stages, submission_environment
from qrmi_workflows.stages.pruning import prune_stages
from qrmi_workflows.stages.scripts import render_guard_script, render_keeper_script
from qrmi_workflows.stages.waiting_jobs import ScheduledJobs, own_mark
from qrmi_workflows.state.files import write_atomically

__all__ = ["MODES", "Mode", "check_lanes", "open_stage", "wait_until_ready", "waits_for"]

logger = logging.getLogger(__name__)

Mode = Literal["auto", "dedicated", "batch"]
"""The kind of a stage's session; `auto` leaves the choice to the keeper."""

MODES: tuple[Mode, ...] = get_args(Mode)

_BY_HAND = "user"
"""The opener of a stage that no workflow has opened: it stays open until it is closed by hand."""

_KEEPER_MEMORY, _GUARD_MEMORY = 1000, 500  # MB
_GUARD_TIME = "10"  # minutes: a silent vendor may take most of them
_SEARCH_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What `open_stage` was asked for, checked."""

    stage: Stage
    opener: str
    site: SitePolicy
    scheduler: Scheduler
    limits: JobLimits
    options: tuple[str, ...]


def open_stage(
    name: str,
    *,
    qpu: str,
    mode: Mode = "auto",
    warm_up: bool = True,
    lanes: int | None = None,
    idle_limit: float = IDLE_SECONDS,
    time: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    site: Path | str | None = None,
    config: Path | str | None = None,
    opener: str | None = None,
    budget: str | None = None,
    options: Iterable[str] = (),
) -> Stage:
    """Open a stage: submit the job of its keeper, which holds the QPU for the stage's other jobs.

    If the stage is open with the same QPU, it is returned as it is.

    Args:
        name: The stage's name.
        qpu: The QPU's name.
        mode: The kind of session, where the vendor has several.
        warm_up: Whether the keeper runs a minimal task first, where the vendor makes a session
            active only with a task.
        lanes: How many tasks of the stage may run at once; all of the QPU's lanes if `None`.
        idle_limit: The stage ends after so many seconds without a job, a process and a task.
        time: The time limit of the keeper's job, as the scheduler writes it.
        partition: Its partition; that of the QPU, or the default, if `None`.
        account: The account that it is charged to; the default if `None`.
        site: The path of the site policy.
        config: The path of `qrmi_config.json`.
        opener: The workflow that opens the stage: `close_stage` with the same name ends the stage
            if no other workflow needs it. If `None`, it stays open until it is closed by hand.
        budget: What the stage's tasks may take in total (`1000 shots`, `2 h` of QPU time).
        options: More options of the scheduler for the keeper's job.

    Returns:
        The stage as it was opened, or found. Its QPU may be ready by now.

    Raises:
        RequestError: The stage is open with another QPU; the scheduler does not offer the QPU; or
            an argument is wrong.
        UnknownQPUError: The QPU is not defined, or not offered here.
        ConfigError: There is no usable site policy.
        SchedulerError: The scheduler did not answer, or refused the job.
    """
    StageFolder.of(name)  # refuses a bad name first of all
    refuse_emulated_stage(qpu)
    limits = JobLimits(
        memory=_KEEPER_MEMORY, time=time, partition=partition, account=account, requeue=True
    )
    policy = load_site_policy(None if site is None else Path(site).absolute())
    scheduler = scheduler_of(policy)
    request = _Request(
        stage=Stage(
            name=name,
            qpu=qpu,
            type="",
            config=None if config is None else str(Path(config).absolute()),
            mode=mode,
            warm_up=warm_up,
            lanes=lanes,
            idle_limit=idle_limit,
            budget=budget or "",
            openers=(opener or _BY_HAND,),
            cluster=scheduler.this_cluster(),
        ),
        opener=opener or _BY_HAND,
        site=policy,
        scheduler=scheduler,
        limits=limits,
        options=tuple(options),
    )
    _check_arguments(request)
    for each in settle_stages():
        logger.warning("stage %r has ended: %s", each.stage, each.reason)
    with StageFolder.of(name).locked():
        stage = _join(request) or _submit(request)
    if stage.guard_job is None:
        try:
            guard_job = ensure_guard(stage, {}, scheduler).guard_job
            stage = replace(stage, guard_job=guard_job)
        except SchedulerError as error:
            logger.warning("the keeper will submit the guard of stage %r: %s", name, error)
    prune_stages()
    return stage


def _check_arguments(request: _Request) -> None:
    stage = request.stage
    _qpu_options(request)  # refuses a QPU that the site does not offer, or not to this user
    if stage.mode not in MODES:
        raise RequestError(f"mode {stage.mode!r}: must be one of: {', '.join(MODES)}. Correct it.")
    if stage.lanes is not None and (isinstance(stage.lanes, bool) or stage.lanes < 1):
        raise RequestError(f"lanes={stage.lanes!r}: must be a positive integer. Correct it.")
    if not stage.idle_limit > 0:
        raise RequestError(
            f"idle_limit={stage.idle_limit!r}: must be a positive number of seconds. Correct it."
        )
    if stage.budget:
        from qrmi_workflows.budgets.limits import parse_limit

        parse_limit(stage.budget, "budget")
    own = {*request.scheduler.request_options, "job-name", "comment", "output", "error"}
    for option in request.options:
        if (given := option.lstrip("-").partition("=")[0]) in own:
            raise RequestError(
                f"option {option!r}: --{given} is set for the keeper's job by the stage itself. "
                "Remove it."
            )


def _qpu_options(request: _Request, count: int = 1) -> list[str]:
    return compile_request(
        QPURequest(qpu=request.stage.qpu, count=count),
        request.site,
        request.scheduler,
        account=request.limits.account,
        partition=request.limits.partition,
    )


def _join(request: _Request) -> Stage | None:
    """Return the stage if it is open already; the caller holds its lock."""
    try:
        found = Stage.load(request.stage.folder)
    except FileNotFoundError:
        return None
    if found.is_ended:
        return None
    if found.qpu != request.stage.qpu:
        raise RequestError(
            f"stage {found.name!r} is open with QPU {found.qpu!r}, not {request.stage.qpu!r}. "
            f"Choose another name, or close it first: `qpu stage close {found.name}`."
        )
    if found.cluster not in (None, request.stage.cluster):
        raise RequestError(
            f"stage {found.name!r} is open on cluster {found.cluster!r}; this host is of "
            f"{request.stage.cluster!r}. Choose another name, or close it there."
        )
    if found.keeper_job is None:
        # Whoever opened it has died, perhaps after the scheduler had accepted the keeper's job.
        keeper_job = find_job(request.scheduler, own_mark(found, "keeper"))
        if keeper_job is None:
            return None
        found = replace(found, keeper_job=keeper_job)
    if found.lanes is not None and (request.stage.lanes or 0) > found.lanes:
        raise RequestError(
            f"lanes={request.stage.lanes}: stage {found.name!r} is open with {found.lanes}. Ask "
            f"for fewer, or close it first: `qpu stage close {found.name}`."
        )
    openers = tuple(dict.fromkeys((*found.openers, request.opener)))
    joined = replace(found, openers=openers, closing=False)
    joined.save()
    return joined


def _submit(request: _Request) -> Stage:
    """Submit the jobs of a new stage; the caller holds the lock of its folder."""
    scheduler, site = request.scheduler, request.site
    stage = replace(request.stage, type=_check_qpu(request))
    scheduler.check_offered(QPURequest(qpu=stage.qpu), site)
    units = check_lanes(stage.name, stage.qpu, stage.lanes, scheduler=scheduler, site=site)
    count = 1
    if units > 1:  # at this site, each unit is a lane
        count = stage.lanes or units
        stage = replace(stage, lanes=count)
    _clear(stage.folder)
    stage.save()
    _write_scripts(stage, request, count)
    script = stage.folder.path / "keeper.sh"
    try:
        keeper_job = submit_job(
            request.scheduler,
            request.scheduler.submit_argv(script),
            own_mark(stage, "keeper"),
            environ=submission_environment(),
            search_seconds=_SEARCH_SECONDS,
        )
    except SchedulerError as error:
        reason = f"its keeper's job could not be submitted: {error}"
        replace(stage, state=StageState.ENDED, reason=reason).save()
        raise
    stage = replace(stage, keeper_job=keeper_job)
    stage.save()
    return stage


def check_lanes(
    name: str, qpu: str, lanes: int | None, *, scheduler: Scheduler, site: SitePolicy
) -> int:
    """Refuse more lanes than a stage's QPU has; all of them if `None`.

    Returns:
        How many units of the QPU the site counts; if there are several, each is a lane.

    Raises:
        RequestError: The QPU has fewer lanes.
        SchedulerError: The scheduler did not answer.
    """
    units = scheduler.qpu_units(qpu, site) or 1
    most = units if units > 1 else site.qpu(qpu).lanes
    if lanes is not None and lanes > most:
        raise RequestError(
            f"stage {name!r}: lanes={lanes}, but QPU {qpu!r} has {most} here. Ask for fewer, or "
            "leave it out: a stage has all lanes by default."
        )
    return units


def _check_qpu(request: _Request) -> str:
    """Return the QPU's type; empty if only its jobs can read the QPU's definition."""
    stage = request.stage
    config = None if stage.config is None else Path(stage.config)
    try:
        # Not as a member of the stage that this process may belong to.
        return find_qpu(stage.qpu, config=config, environ=submission_environment()).type
    except RequestError:
        raise
    except ConfigError:
        if config is not None:
            raise
        # At some sites, only the scheduler's plugin may read qrmi_config.json.
        return ""


def _clear(folder: StageFolder) -> None:
    """Remove what an earlier stage of the name has left."""
    folder.environment.unlink(missing_ok=True)
    # The lanes stay: processes of the earlier stage may hold some, whose tasks still run.
    for each in (folder.members, folder.wishes):
        shutil.rmtree(each, ignore_errors=True)
    folder.log.unlink(missing_ok=True)
    folder.create()


def _write_scripts(stage: Stage, request: _Request, count: int) -> None:
    scheduler, limits, folder = request.scheduler, request.limits, stage.folder
    python = [sys.executable, "-m", "qrmi_workflows", "stage"]
    exports = {QPU_STATE: str(state_folder().absolute()), QPU_SITE: str(request.site.path)}
    with suppress(QPUError):
        exports[QPU_CONFIG] = stage.config or str(find_config().absolute())

    def names(role: str) -> list[str]:
        mark = own_mark(stage, role)
        named = scheduler.name_options(mark.name, stdout=folder.log, stderr=folder.log)
        return [*named, *scheduler.comment_options(str(mark.comment))]

    keeper = render_keeper_script(
        [*python, "keep", stage.name, "--id", stage.id],
        scheduler=scheduler,
        options=[
            *_qpu_options(request, count),
            *scheduler.limit_options(limits),
            *request.options,
            *names("keeper"),
        ],
        exports=exports,
    )
    guard = render_guard_script(
        [*python, "guard", stage.name, "--id", stage.id],
        scheduler=scheduler,
        options=[
            *request.options,
            *scheduler.limit_options(
                replace(
                    limits,
                    memory=_GUARD_MEMORY,
                    time=_GUARD_TIME,
                    partition=limits.partition
                    or ",".join(request.site.qpu(stage.qpu).all_partitions)
                    or None,
                )
            ),
            *names("guard"),
        ],
        exports=exports,
    )
    write_atomically(folder.path / "keeper.sh", keeper, mode=0o600)
    write_atomically(folder.path / "guard.sh", guard, mode=0o600)


def wait_until_ready(
    name: str,
    *,
    seconds: float | None = None,
    report: Callable[[str], None] = lambda _message: None,
) -> Stage:
    """Wait until a stage is ready.

    Args:
        name: The stage's name.
        seconds: How long to wait; without a limit if `None`.
        report: Called with a message whenever what it waits for has changed.

    Raises:
        LeaseError: The stage has ended, or was not ready in time.
    """
    start, told, next_look = clock.monotonic(), "", 0.0
    while True:
        stage = find_stage(name)
        if stage.state is StageState.READY:
            return stage
        waited = clock.monotonic() - start
        if stage.is_ended:
            raise LeaseError(f"stage {name!r} has ended: {stage.reason}", stage.qpu)
        if seconds is not None and waited >= seconds:
            raise LeaseError(
                f"stage {name!r} was not ready within {seconds:g} s: {told}. It stays open; see "
                f"`qpu stage show {name}`.",
                stage.qpu,
                retryable=True,
            )
        if waited >= next_look:
            next_look = waited + min(max(0.1 * waited, 1.0), 30.0)
            settle_stages(name)
            if (now := waits_for(stage)) not in ("", told):
                report(now)
                told = now
        clock.sleep(min(max(0.02 * waited, 0.05), 1.0))


def waits_for(stage: Stage) -> str:
    """Return what a stage that is opening waits for; empty if that is not known."""
    if stage.reason:
        return stage.reason
    if stage.keeper is not None:
        return f"waiting for QPU {stage.qpu!r}"
    with suppress(SchedulerError):
        keeper = ScheduledJobs(stage).listed().get(str(stage.keeper_job))
        if keeper is not None:
            why = f": {keeper.reason}" if keeper.reason else ""
            return f"the keeper's job {stage.keeper_job} is {keeper.state}{why}"
    return ""
