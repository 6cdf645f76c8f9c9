"""A task that moves to another QPU if its own goes away before it has run.

Each task starts at the first QPU of a chain, and goes on to the next one only once it cannot be
paid for any more where it was (see `why_it_moves`). Its record there says where it went, so a rerun
of the step finds it at the end of the chain. No other process may have it meanwhile: its records at
all of its QPUs are held by the same run of the step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    BudgetError,
    ConfigError,
    JournalError,
    PayloadError,
    QPUError,
    TaskFailedError,
    TaskUnknownError,
    UndecodedResultError,
)
from qrmi_workflows.journal.record import Move, RecordState
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.payloads import Payload, PayloadLike
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks.lanes import Stop
from qrmi_workflows.tasks.lookup import MovedEarlierError
from qrmi_workflows.tasks.presence import Presence
from qrmi_workflows.tasks.run import TaskRun

__all__ = ["Chain", "LaneStop", "Leg", "MovableRun", "why_it_moves"]

logger = logging.getLogger(__name__)

_FINAL = (
    AmbiguousTaskError, BudgetError, ConfigError, JournalError, PayloadError, TaskUnknownError,
    UndecodedResultError,
)  # fmt: skip
"""Errors that another QPU would not mend, or after which the task may still be paid for."""


@dataclass(slots=True, kw_only=True)
class Leg:
    """A task at one QPU of the chain.

    Attributes:
        stop: The index of the QPU in the chain.
        run: The task's run there.
        lane: A lane of the QPU.
    """

    stop: int
    run: TaskRun
    lane: AbstractContextManager[object]


class Chain(Protocol):
    """The QPUs that a task may run on, in order."""

    def next_leg(self, task: MovableRun, leg: Leg, reason: str, error: QPUError) -> Leg:
        """Return the task at the next QPU that is there, with a lease of it.

        Args:
            task: The task.
            leg: Where it is.
            reason: Why its QPU counts as gone.
            error: What has happened to it there.

        Raises:
            QPUError: No QPU is left that it can run on.
        """

    def later_leg(self, task: MovableRun, leg: Leg, move: Move) -> Leg:
        """Return the task where an earlier run has moved it (`TaskRun.follows`)."""


@dataclass(slots=True, kw_only=True)
class MovableRun(TaskRun):
    """One task, and its run at the first QPU of its chain.

    Attributes:
        chain: Its QPUs.
        adapt: Returns the payload for another QPU, given its name and its target.
    """

    chain: Chain
    adapt: Callable[[Payload, str, str], PayloadLike] | None = None

    def __call__(self, lane: AbstractContextManager[object]) -> QuantumResult:
        """Run the task on the first QPU of its chain that is there (see `TaskRun`)."""
        has_left = self.presence is not None and self.presence.left is not None
        leg = Leg(stop=0, run=self, lane=nullcontext() if has_left else lane)
        while True:
            try:
                result = TaskRun.__call__(leg.run, leg.lane)
            except MovedEarlierError as found:
                leg = self.chain.later_leg(self, leg, found.move)
            except QPUError as error:
                leg = self._next(leg, error)
            else:
                self.task_id = result.task_id
                return result

    @property
    def lane_stop(self) -> Stop:
        """What ends the wait for a lane: the run's stop, or the end of its QPU."""
        return self.stop if self.presence is None else LaneStop(self.stop, self.presence)

    def relay(self, task_id: str, state: TaskState) -> None:
        """Report a state of the task at another QPU of the chain."""
        self.task_id = task_id
        self.report_state(state)

    def _next(self, leg: Leg, error: QPUError) -> Leg:
        reason = why_it_moves(leg.run, error)
        if reason is None:
            raise error
        entry = leg.run.entry
        onward = self.chain.next_leg(self, leg, reason, error)
        move = _move(leg.run, onward.run, reason)
        entry.moved(move)
        onward.run.moved_from = move
        where = f"{move.qpu!r} to {move.to_qpu!r}"
        logger.warning("a task moves from QPU %s: %s", where, reason)
        return onward


class LaneStop:
    """Ends a wait for a lane when the run is stopped, or its QPU has gone."""

    def __init__(self, stop: Stop, presence: Presence) -> None:
        self._stop = stop
        self._presence = presence

    def is_set(self) -> bool:
        """Return whether to stop waiting."""
        presence = self._presence
        return self._stop.is_set() or presence.left is not None or presence.offline() is not None


def why_it_moves(run: TaskRun, error: QPUError) -> str | None:
    """Return why a task's QPU counts as gone, if the task may move; `None` if it may not.

    It may if it cannot be paid for any more there: the vendor has never accepted it, has cancelled
    it, or has failed it and does not bill its own errors.

    Args:
        run: The task's run there, which has failed.
        error: Its error.
    """
    if isinstance(error, _FINAL) or run.presence is None or run.stop.is_set():
        return None
    if run._found is None or not _is_unpaid(run, run.entry, error):
        return None
    return run.presence.find_reason(error)


def _is_unpaid(run: TaskRun, entry: Entry, error: QPUError) -> bool:
    record = entry.record
    if record.state is RecordState.CLAIMED:
        return True
    if record.state is not RecordState.FAILED:
        return False
    if isinstance(error, TaskFailedError):
        return not run._traits.bills_own_errors
    return record.retryable  # refused, or cancelled


def _move(before: TaskRun, after: TaskRun, reason: str) -> Move:
    return Move(
        qpu=before.resource.resource_id(),
        identity=before.identity,
        task_id=before.entry.record.task_id,
        to_qpu=after.resource.resource_id(),
        to_identity=after.identity,
        to_digest=after.payload.digest,
        reason=reason,
        since=datetime.now(UTC).isoformat(),
    )
