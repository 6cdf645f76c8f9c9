"""The stages of a run: opened for their first job, closed after their last.

Each is opened at the latest moment, when the first of its jobs is submitted: hours of classical
work may come before. A stage that has ended in the meantime, because it had nothing to do, is
opened again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.stage import Stage, StageState, find_stage
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.stages.closing import close_stage
from qrmi_workflows.stages.guard import settle_stages
from qrmi_workflows.stages.opening import open_stage, waits_for
from qrmi_workflows.stages.waiting_jobs import announce_jobs, submission_options
from qrmi_workflows.state.locks import is_locked
from snakemake_executor_plugin_slurm_qpu.stage_requests import StagePlan
from snakemake_executor_plugin_slurm_qpu.telemetry import log_leases

__all__ = ["OpenStages", "StageJob", "keeper_options"]

# In quotes, too, as users write it in profiles.
_RESERVATION = re.compile(r"""(?:^|[\s'"])--reservation[=\s]\s*([^\s'"]+)""")

_POLL_SECONDS = 0.2

_SETTLE_SECONDS = 5.0
"""How long not to ask Slurm again about a keeper that gives no sign of life."""

_TELL_SECONDS = 30.0
"""How long not to ask again what a stage waits for."""

_RECORD_SECONDS = 10.0
"""How long to wait for the lease record of a stage that has ended; one without a lease has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """A job that is submitted as one of a stage.

    Attributes:
        stage: The stage when the job is submitted.
        options: The options of sbatch that make it one.
        comment: Its comment, one of these options.
    """

    stage: Stage
    options: Sequence[str]
    comment: str

    @classmethod
    def of(cls, stage: Stage, comment: str, after: Iterable[str]) -> StageJob:
        """Describe a job, which waits for the stage, and for the end of other jobs."""
        options = submission_options(stage, comment=comment, after=after, scheduler=Slurm())
        key = "--comment="
        (marked,) = [each.removeprefix(key) for each in options if each.startswith(key)]
        return cls(stage=stage, options=options, comment=marked)

    @property
    def waits(self) -> bool:
        """Whether it waits in the queue until the keeper releases it."""
        return any(each.startswith("--dependency=afterok:") for each in self.options)

    def announce(self) -> None:
        """Point the keeper to the job, which it may have missed if it has just become ready."""
        if self.waits:
            announce_jobs(self.stage)


class OpenStages:
    """The stages that this run has opened.

    Args:
        logger: Snakemake's logger.
        idle_limit: After how many seconds without a job a stage ends.
        time_limit: The time limit of a stage in minutes; that of the partition if 0.
    """

    # Threads that submit jobs use `enter` and `submitted`, the one that checks jobs the rest.

    def __init__(self, logger: Any, *, idle_limit: float, time_limit: int) -> None:
        self._logger = logger
        self._idle_limit = idle_limit
        self._time_limit = str(time_limit) if time_limit else None
        self._lock = Lock()
        self._next_settling = 0.0
        self._open: dict[str, Stage] = {}
        self._closed: dict[str, Stage] = {}
        self._ended: dict[str, float] = {}
        self._told: dict[str, tuple[str, float]] = {}

    @property
    def opener(self) -> str:
        """The name under which this run opens and closes stages: a rerun has the same one."""
        return f"snakemake in {Path.cwd()}"

    @property
    def names(self) -> list[str]:
        """The names of the stages that this run has opened and not closed."""
        return list(self._open)

    def is_open(self, name: str) -> bool:
        """Return whether this run has opened a stage that still takes jobs."""
        with self._lock:
            return self._present(name) is not None

    def enter(self, plan: StagePlan, options: Callable[[], Mapping[str, Any]]) -> Stage:
        """Return the open stage of a plan, opened first if it is not.

        Args:
            plan: The plan.
            options: Returns further options of `open_stage`.

        Raises:
            QPUError: The stage cannot be opened.
        """
        with self._lock:  # the first two jobs are submitted at the same time
            stage = self._present(plan.name)
            if stage is None:
                stage = self._open[plan.name] = self._open_stage(plan, options())
            return stage

    def _present(self, name: str) -> Stage | None:
        """Return a stage that this run has opened, if it still takes jobs."""
        before = self._open.get(name)
        if before is None:
            return None
        with suppress(QPUError):  # somebody has removed its folder
            self._settle(before)
            now = find_stage(name)
            if now.id == before.id and not now.is_ended and not now.closing:
                return now
            if now.id == before.id and now.is_ended:
                self._logger.info(_end_of(now))
        self._closed[before.id] = self._open.pop(name)
        return None

    def _settle(self, stage: Stage) -> None:
        """End a stage whose keeper's job has been killed, before a job is submitted for it."""
        # The queue is asked, but not for each job of a fan-out that waits for the keeper to start.
        if not is_locked(stage.folder.alive) and time.monotonic() >= self._next_settling:
            self._next_settling = time.monotonic() + _SETTLE_SECONDS
            settle_stages(stage.name)

    def _open_stage(self, plan: StagePlan, options: Mapping[str, Any]) -> Stage:
        stage = open_stage(
            plan.name,
            qpu=plan.request.qpu,
            mode=plan.mode,
            opener=self.opener,
            idle_limit=self._idle_limit,
            time=self._time_limit,
            **options,
        )
        self._closed.pop(stage.id, None)  # if it was only being closed
        self._logger.info(
            f"Stage {plan.name!r}: its jobs share one lease of QPU {stage.qpu}, held by SLURM job "
            f"{stage.keeper_job} (log: {stage.folder.log}). Mode {stage.mode}: "
            f"{plan.why if stage.mode == plan.mode else 'the stage was open already'}."
        )
        return stage

    def tell_waiting(self, stage: Stage) -> None:
        """Say that jobs of a stage wait for its QPU, and why; again only if that has changed."""
        with self._lock:  # the first two jobs are submitted at the same time
            told, told_at = self._told.get(stage.id, (None, 0.0))
            if told is not None and time.monotonic() < told_at + _TELL_SECONDS:
                return
            self._told[stage.id] = (told or "", time.monotonic())
        with suppress(QPUError):
            now = find_stage(stage.name)
            if now.id != stage.id or now.state is not StageState.OPENING:
                return
            why = waits_for(now)
            self._told[stage.id] = (why, time.monotonic())
            if told is None:
                reason = f" ({why})" if why else ""
                self._logger.info(
                    f"Jobs of stage {stage.name!r} wait in the queue until it is ready{reason}. No "
                    "node waits with them."
                )
            elif why and why != told:
                self._logger.info(f"Stage {stage.name!r} is not ready yet: {why}.")

    def ended_ids(self) -> set[str]:
        """Return the ids of the stages that have ended, though this run has not closed them."""
        return {stage.id for stage in tuple(self._open.values()) if self._has_ended(stage)}

    def why_ended(self, stage: Stage) -> str:
        """Say in a sentence why a stage has ended; empty if it has not."""
        with suppress(QPUError):
            if not self._has_ended(stage):
                settle_stages(stage.name)  # its keeper may have been killed
            now = find_stage(stage.name)
            if now.id == stage.id and now.is_ended:
                return _end_of(now)
        return ""

    def close(self, name: str) -> None:
        """Close a stage, which ends once its present jobs have ended."""
        with self._lock:
            stage = self._open.pop(name, None)
        if stage is None:
            return
        try:
            now = close_stage(name, opener=self.opener)
            if now.id == stage.id and not (now.closing or now.is_ended):
                others = ", ".join(now.openers)
                self._logger.info(f"Stage {name!r} stays open, because others use it: {others}.")
                return
        except (QPUError, OSError) as error:
            self._logger.warning(
                f"Stage {name!r} could not be closed: {error} It ends after "
                f"{stage.idle_limit:g} s without a job; to end it now, run `qpu stage close "
                f"{name}`."
            )
        self._closed[stage.id] = stage

    def log_ended(self) -> None:
        """Log the leases of the closed stages that have ended and released them."""
        for stage in tuple(self._closed.values()):
            if self._has_ended(stage) and self._log_lease(stage):
                self._closed.pop(stage.id, None)

    def _log_lease(self, stage: Stage) -> bool:
        """Log the leases of a stage that has ended, and return whether there is nothing to come."""
        ended = self._ended.setdefault(stage.id, time.monotonic())
        is_late = time.monotonic() - ended > _RECORD_SECONDS
        # A stage has ended before its last lease is released; its keeper exits after that.
        if is_locked(stage.folder.alive) and not is_late:
            return False
        since = datetime.fromtimestamp(stage.created, UTC)
        found = log_leases(self._logger, f"stage {stage.name}", stage.keeper_job or "", since)
        return bool(found) or is_late

    def await_end(self, seconds: float) -> None:
        """Wait until the closed stages have ended, and log their leases."""
        deadline = time.monotonic() + seconds
        self.log_ended()
        while self._closed and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            self.log_ended()
        for stage in self._closed.values():
            self._logger.warning(
                f"Stage {stage.name!r} has been closed, but has not ended yet: SLURM job "
                f"{stage.keeper_job} still holds QPU {stage.qpu}. `qpu stage show {stage.name}` "
                "shows what it waits for."
            )

    def _has_ended(self, stage: Stage) -> bool:
        try:
            now = find_stage(stage.name)
        except QPUError:
            return True
        return now.id != stage.id or now.is_ended


def _end_of(stage: Stage) -> str:
    return f"Stage {stage.name!r} has ended: {stage.reason or 'no reason is known'}."


def keeper_options(resources: Mapping[str, Any], settings: Any) -> tuple[str, ...]:
    """Return the options of sbatch for a stage's own job: those that may decide when it starts.

    Args:
        resources: The resources of one of the stage's jobs.
        settings: The executor's settings.
    """
    # In the stock executor's call (2.8.0), the setting of the QoS comes last, and `slurm_extra`
    # after the setting of the reservation; sbatch uses the last of two.
    qos = settings.qos or resources.get("qos")
    stated = _RESERVATION.findall(resources.get("slurm_extra") or "")
    reservation = stated[-1] if stated else settings.reservation
    options = {"--qos": qos, "--reservation": reservation}
    return tuple(f"{name}={value}" for name, value in options.items() if value)
