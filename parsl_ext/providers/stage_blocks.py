"""A provider's part in a stage of several jobs: it opens the stage, and closes it after the run."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from parsl_ext.stages import QPUStage
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import QPUError, RequestError
from qrmi_workflows.lease.stage import Stage, StageState, find_stage
from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.schedulers.base import JobStatus, Scheduler
from qrmi_workflows.stages.closing import close_stage
from qrmi_workflows.stages.opening import check_lanes, open_stage
from qrmi_workflows.stages.waiting_jobs import announce_jobs, submission_options

__all__ = ["StageBlocks"]

logger = logging.getLogger(__name__)

# Parsl's own file, parsl.log, has only what is logged below the name `parsl`.
_run_log = logging.getLogger("parsl.qpu.stages")


@dataclass(slots=True)
class _Use:
    """One run's use of a stage.

    Attributes:
        stage: What the run's providers say about it.
        opened: The id of the stage that the run has opened; empty if it has not.
        told: The id of the stage, and the mode of its session, that were logged last.
        is_closed: Whether the run has closed it.
    """

    stage: QPUStage
    opened: str = ""
    told: tuple[str, str | None] = ("", None)
    is_closed: bool = False


_lock = threading.Lock()
_uses: dict[tuple[str, str], _Use] = {}
"""By the folder of Parsl's run and the stage's name: executors of one run share the stage."""


class StageBlocks:
    """The blocks of one provider, which belong to a stage.

    Args:
        stage: The stage.
        is_classical: Whether the blocks use no QPU.
        scheduler: The scheduler's hooks.
        site: Path of the site policy.
    """

    def __init__(
        self, stage: QPUStage, is_classical: bool, scheduler: Scheduler, site: str | None
    ) -> None:
        self._stage = stage
        self._is_classical = is_classical
        self._scheduler = scheduler
        self._site = site
        self._run = ""
        self._blocks: dict[str, Stage] = {}  # by job id, as it was at the submission
        self._waiting: set[str] = set()

    @property
    def lanes(self) -> int | None:
        """How many lanes the stage has; `None` if that is left to the site policy."""
        return self._stage.lanes

    def join_run(self, run: str) -> None:
        """Take part in one run of Parsl, whose providers must agree about the stage.

        Raises:
            RequestError: They do not agree, or the stage is open with another QPU.
        """
        name = self._stage.name
        with _lock:
            use = _uses.get((run, name))
            stage = self._stage if use is None else _agreed(use.stage, self._stage)
            _refuse_other_qpu(stage)
            if use is None:
                _uses[run, name] = _Use(stage)
            else:
                use.stage = stage
        self._run = run

    def check_lanes(self, policy: SitePolicy) -> None:
        """Refuse more lanes than the QPU has; where a GRES counts them, its units are the lanes.

        Raises:
            RequestError: It has fewer.
            SchedulerError: The scheduler does not answer.
        """
        stage = self._stage
        if stage.lanes is None or stage.qpu is None:
            return
        check_lanes(stage.name, stage.qpu, stage.lanes, scheduler=self._scheduler, site=policy)

    def open(self) -> Stage | None:
        """Open the stage for another block, if it is not open; `None` if the block need not wait.

        A classical block does not open a stage that has been ready once in this run: the calls for
        its QPU are done, and the QPU would be acquired for nothing.

        Raises:
            QPUError: The stage could not be opened.
        """
        use = _uses[self._run, self._stage.name]
        with _lock:
            if self._is_classical and _is_done(use):
                return None
            stage = self._open(use.stage)
            if use.opened != stage.id:
                _log_opened(stage, use.stage)
            use.opened, use.is_closed = stage.id, False
            return stage

    def _open(self, stage: QPUStage) -> Stage:
        if stage.qpu is None and (found := _find(stage.name)) is not None and not found.is_ended:
            stage = replace(stage, qpu=found.qpu)
        if stage.qpu is None:
            raise RequestError(
                f"stage {stage.name!r} is not open, and no QPU is named for it. Write "
                f'`stage=QPUStage("{stage.name}", qpu=…)`, or add an executor whose provider has '
                "this stage and a QPU."
            )
        given: dict[str, Any] = {"idle_limit": stage.idle_limit, "time": stage.walltime}
        return open_stage(
            stage.name,
            qpu=stage.qpu,
            mode=stage.mode,
            warm_up=stage.warm_up,
            lanes=stage.lanes,
            partition=stage.partition,
            account=stage.account,
            options=stage.options,
            site=self._site,
            opener=_opener(self._run),
            **{key: value for key, value in given.items() if value is not None},
        )

    def options(self, stage: Stage | None) -> list[str]:
        """Return the scheduler's options for a block, which waits until the stage is ready."""
        return [] if stage is None else submission_options(stage, scheduler=self._scheduler)

    def add(self, job_id: str, stage: Stage) -> None:
        """Remember a block that has been submitted for the stage."""
        self._blocks[job_id] = stage
        announce_jobs(stage)
        if stage.state is StageState.OPENING:
            self._waiting.add(job_id)

    def is_waiting(self, job_id: str) -> bool:
        """Return whether a block waited for its stage when it was looked at last."""
        return job_id in self._waiting

    def message(self, job_id: str, listed: Mapping[str, JobStatus]) -> str:
        """Return what a block waits for, or why it has ended, if that is due to its stage.

        Args:
            job_id: The block's job.
            listed: All jobs that the scheduler lists, among them this one.
        """
        if (submitted := self._blocks.get(job_id)) is None:
            return ""
        stage = _find(submitted.name) or submitted
        if stage.id != submitted.id:
            stage = submitted  # its name has been opened again since
        self._log_mode(stage)
        status, keeper = listed[job_id], stage.keeper_job or ""
        was_waiting = job_id in self._waiting
        if self._scheduler.is_waiting(status, keeper):
            self._waiting.add(job_id)
            return f"waiting for stage {stage.name!r}: {_what_for(stage, listed.get(keeper))}"
        self._waiting.discard(job_id)
        if not status.state.is_final:
            return ""
        if stage.is_ended:
            return f"stage {stage.name!r} has ended: {stage.reason or 'closed'}"
        return f"stage {stage.name!r}: its keeper, job {keeper}, has ended" if was_waiting else ""

    def _log_mode(self, stage: Stage) -> None:
        """Log the mode of the stage's session once its keeper has chosen it, or another one."""
        use, told = _uses.get((self._run, stage.name)), (stage.id, stage.session_mode)
        if use is not None and stage.session_mode is not None and use.told != told:
            use.told = told
            _run_log.info(
                "stage %r has a %s session: %s", stage.name, stage.session_mode, stage.mode_reason
            )

    def close(self) -> None:
        """Close the stage: the run is over. Its keeper ends if no other workflow needs it.

        This is called again when more blocks have been cancelled: a keeper whose job is pending is
        cancelled with the last one.
        """
        _close(self._run, self._stage.name)


def _log_opened(stage: Stage, wanted: QPUStage) -> None:
    if stage.mode != wanted.mode:
        why = "the stage was open already"
    elif stage.mode == "auto":
        why = "its keeper chooses"
    else:
        why = "its `QPUStage` sets it"
    _run_log.info(
        "stage %r: its blocks share one lease of QPU %s, held by job %s (log: %s). Mode %s: %s",
        stage.name,
        stage.qpu,
        stage.keeper_job,
        stage.folder.log,
        stage.mode,
        why,
    )


def _agreed(one: QPUStage, other: QPUStage) -> QPUStage:
    """Return what two providers say about their stage.

    Raises:
        RequestError: They contradict each other.
    """
    given: dict[str, Any] = {}
    for name in (field.name for field in fields(QPUStage)):
        values = [value for each in (one, other) if (value := getattr(each, name)) != _unset(name)]
        if len(set(values)) > 1:
            raise RequestError(
                f"two executors use stage {one.name!r} with different values of {name}: "
                f"{values[0]!r} and {values[1]!r}. A stage has one lease. Give both the same "
                f"value, or name two stages."
            )
        given[name] = values[0] if values else _unset(name)
    return QPUStage(**given)


def _unset(field: str) -> Any:
    return {"mode": "auto", "warm_up": True, "options": ()}.get(field)


def _refuse_other_qpu(stage: QPUStage) -> None:
    found = _find(stage.name)
    if found is None or found.is_ended or stage.qpu in (None, found.qpu):
        return
    raise RequestError(
        f"stage {stage.name!r} is open with QPU {found.qpu!r}, not {stage.qpu!r}. Choose another "
        f"name, or close it: `qpu stage close {stage.name}`."
    )


def _find(name: str) -> Stage | None:
    if not StageFolder.of(name).stage.exists():
        return None
    return find_stage(name)


def _is_done(use: _Use) -> bool:
    found = _find(use.stage.name)
    if found is None or found.id != use.opened:
        return False
    return found.is_ended and found.generation > 0


def _what_for(stage: Stage, keeper: JobStatus | None) -> str:
    if stage.reason:
        return stage.reason
    job = f"its keeper, job {stage.keeper_job},"
    if keeper is None or keeper.state.may_have_processes:
        return f"{job} is acquiring QPU {stage.qpu!r}"
    return f"{job} is {keeper.state}{f' ({keeper.reason})' if keeper.reason else ''}"


def _opener(run: str) -> str:
    return f"parsl {run}"


def _close(run: str, name: str) -> None:
    use = _uses.get((run, name))
    if use is None or not use.opened:
        return
    try:
        close_stage(name, opener=_opener(run))
    except (QPUError, OSError) as error:  # its keeper ends after the idle limit
        logger.warning("could not close stage %r: %s", name, error)
    use.is_closed = True


@atexit.register
def _close_all() -> None:
    for (run, name), use in list(_uses.items()):
        if not use.is_closed:
            _close(run, name)


def _forget_all() -> None:
    """Leave the stages to the parent, in a forked child."""
    global _lock
    _lock = threading.Lock()
    _uses.clear()


os.register_at_fork(after_in_child=_forget_all)
