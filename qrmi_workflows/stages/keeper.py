"""The keeper: holds a stage's lease, and gives it to the stage's processes.

It acquires the QPU, publishes how to adopt the lease, and has the stage's held jobs released. Then
it waits: for a member that asks for another session, for the last job to end, for SIGTERM. On every
path the lease is released once, what was published is removed, and the stage says why it has ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qrmi_workflows.config.variables import QPU_STAGE, QPU_STAGE_MEMBER
from qrmi_workflows.errors import LeaseError, QPUError, RequestError, SchedulerError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.at_exit import exit_deferred, exit_on_sigterm
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.membership import is_member_alive
from qrmi_workflows.lease.open import open_found
from qrmi_workflows.lease.shared import count_lanes, lease_environment
from qrmi_workflows.lease.stage import Published, Stage, StageState, find_stage, update_stage
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.stages.jobs import StageJobs
from qrmi_workflows.state.locks import lock_file
from qrmi_workflows.state.process import Owner

__all__ = ["keep"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # how often the folder is looked at
_TOUCH_SECONDS = 5.0  # members expect a sign of life within KEEPER_SECONDS
_SWEEP_SECONDS = 30.0  # how often the scheduler is asked for held jobs that nobody has announced


def keep(name: str, jobs: StageJobs) -> None:
    """Hold the lease of a stage until the stage ends.

    Args:
        name: The stage's name.
        jobs: Its jobs.

    Raises:
        RequestError: There is no such stage, or another process keeps it.
        LeaseError: The vendor did not grant the QPU, or the release failed.
    """
    for variable in (QPU_STAGE, QPU_STAGE_MEMBER):  # or the keeper would join its own stage
        os.environ.pop(variable, None)
    exit_on_sigterm()
    folder = find_stage(name).folder
    try:
        alive = lock_file(folder.alive)
    except BlockingIOError as error:
        raise RequestError(
            f"stage {name!r} has a keeper already: {folder.alive} is locked. Close the stage, or "
            "use it."
        ) from error
    with alive:
        if (stage := update_stage(name, _start)).is_ended:
            logger.warning("stage %r has ended: %s", name, stage.reason)
            return
        _Keeper(stage, jobs).run()


def _start(stage: Stage) -> Stage:
    if stage.is_ended:
        return stage
    # Before the lease of a keeper that was killed is looked at: members submit nothing until they
    # see the next publication.
    owner = Owner.this_process(this_job())
    return replace(stage, keeper=owner, state=StageState.OPENING, reason="")


class _Keeper:
    """Keeps one stage."""

    def __init__(self, stage: Stage, jobs: StageJobs) -> None:
        self._stage = stage
        self._folder = stage.folder
        self._jobs = jobs
        self._lease: Lease | None = None
        self._next_touch = self._next_sweep = float("-inf")
        self._active = time.monotonic()

    def run(self) -> None:
        """Open the lease, serve the stage, and end it on every path."""
        reason = "its keeper was stopped"
        try:
            self._open()
            reason = self._serve()
        except QPUError as error:
            reason = error.message
            raise
        except SystemExit:
            reason = "its keeper was stopped by SIGTERM: its time limit, or a cancellation"
            raise
        finally:
            # A second signal must not interrupt it: nothing would repeat it.
            with exit_deferred():
                self._end(reason)

    def _open(self) -> None:
        stage = self._stage
        config = None if stage.config is None else Path(stage.config)
        found = find_qpu(stage.qpu, config=config)
        self._lease = open_found(found, step=f"stage {stage.name}", config=config)
        lanes = stage.lanes or count_lanes(stage.qpu, self._lease.resource)
        self._lease.held.shared_lanes = lanes, self._folder.lanes
        self._change(lambda now: replace(now, lanes=lanes))
        self._publish(self._lease)

    def _publish(self, lease: Lease) -> None:
        """Let the stage's processes use the lease from now on."""
        generation = self._stage.generation + 1
        variables = lease_environment([lease.held])
        Published(stage=self._stage.id, generation=generation, variables=variables).save(
            self._folder
        )
        self._change(
            lambda now: replace(now, state=StageState.READY, generation=generation, reason="")
        )
        logger.warning("stage %r is ready: QPU %r is held", self._stage.name, self._stage.qpu)
        self._ask_scheduler(self._jobs.release_held)

    def _serve(self) -> str:
        """Wait until there is a reason to end the stage, and return it."""
        while True:
            self._touch()
            self._look_at_wishes()
            if (reason := self._reason_to_end()) is not None:
                return reason
            time.sleep(_LOOK_SECONDS)

    def _touch(self) -> None:
        now = time.monotonic()
        if now >= self._next_touch:
            self._next_touch = now + _TOUCH_SECONDS
            self._folder.alive.touch()

    def _look_at_wishes(self) -> None:
        now = time.monotonic()
        for wish in list(self._folder.wishes.iterdir()):
            if wish.name == f"renew-{self._stage.generation}":
                self._renew()
            elif wish.name.startswith("jobs"):  # of whoever has submitted a held job meanwhile
                self._next_sweep = now
            with suppress(OSError):
                wish.unlink()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS
            self._ask_scheduler(self._jobs.release_held)

    def _renew(self) -> None:
        raise LeaseError(
            f"the session of QPU {self._stage.qpu!r} has ended.", self._stage.qpu, retryable=True
        )

    def _reason_to_end(self) -> str | None:
        self._stage = stage = find_stage(self._stage.name)
        if stage.is_ended:
            return stage.reason
        if self._members():
            self._active = time.monotonic()
            return None
        idle = time.monotonic() - self._active
        limit = 0.0 if stage.closing else stage.idle_limit
        if idle < limit:
            return None
        try:
            if self._jobs.are_left():
                self._active = time.monotonic()
                return None
        except SchedulerError as error:
            logger.warning("%s", error)
            return None
        return "closed" if stage.closing else f"it had nothing to do for {idle:.0f} s"

    def _members(self) -> list[str]:
        """Return the members that are alive; forget those that have died."""
        alive = []
        for file in list(self._folder.members.iterdir()):
            if is_member_alive(file):
                alive.append(file.name)
                continue
            logger.warning("a process of the stage has died: %s", file.name)
            with suppress(OSError):
                file.unlink(missing_ok=True)
        return alive

    def _end(self, reason: str) -> None:
        logger.warning("stage %r ends: %s", self._stage.name, reason)
        # In this order: nobody joins or submits any more, the lease is released, and then whatever
        # may take longer than the scheduler allows.
        self._change(lambda now: replace(now, state=StageState.ENDED, reason=reason))
        with suppress(OSError):
            self._folder.environment.unlink(missing_ok=True)
        try:
            if self._lease is not None:
                self._lease.release()
        finally:
            self._ask_scheduler(lambda: self._jobs.cancel_held(reason))

    def _change(self, change: Callable[[Stage], Stage]) -> None:
        self._stage = update_stage(self._stage.name, change)

    def _ask_scheduler(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except SchedulerError as error:
            logger.warning("%s", error)
