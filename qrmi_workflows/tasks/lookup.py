"""What an earlier run, or another process, has left of a task in the journal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from qrmi_workflows.errors import TaskCancelledError
from qrmi_workflows.journal.coalesced import leader_file
from qrmi_workflows.journal.record import Move, RecordState, TaskRecord
from qrmi_workflows.journal.record_files import read_record
from qrmi_workflows.journal.step import Entry, Step
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.state.locks import is_locked
from qrmi_workflows.tasks.costs import CostedRun, charge, settle
from qrmi_workflows.tasks.failure import failed_earlier
from qrmi_workflows.tasks.limits import Coalesce

__all__ = ["MovedEarlierError", "look_up", "resolve"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2


class MovedEarlierError(Exception):
    """An earlier run has moved the task to another QPU, where this one goes on.

    Args:
        move: The move.
    """

    def __init__(self, move: Move) -> None:
        super().__init__(move)
        self.move = move


class _Run(CostedRun, Protocol):
    """What `TaskRun` has, which imports this module."""

    step: Step
    stop: threading.Event
    coalesce: Coalesce | None

    @property
    def follows(self) -> Callable[[Move], bool]: ...

    def delete(self, entry: Entry) -> None: ...
    def handle_ambiguity(self, reason: str) -> None: ...
    def cancelled(self, what: str) -> TaskCancelledError: ...


def look_up(run: _Run) -> tuple[Entry, QuantumResult | str | None]:
    """Claim a task in the journal; return its result, its id, or `None` if it is new."""
    payload, qpu = run.payload, run.resource.resource_id()
    entry, before = run.step.claim(
        payload.digest, qpu=qpu, program=payload.program, identity=run.identity
    )
    if before is None:
        return entry, None
    return resolve(run, entry, _await_leader(run, entry, before))


def resolve(
    run: _Run, entry: Entry, before: TaskRecord
) -> tuple[Entry, QuantumResult | str | None]:
    """Return as `look_up` what to make of the record that was left of a task."""
    settle(entry)  # the earlier run may have ended before it could do so
    run._is_expected = False
    if before.moved_to is not None and before.state is RecordState.MOVED:
        if run.follows(before.moved_to):
            raise MovedEarlierError(before.moved_to)
        logger.warning("%s", _describe_move(before.moved_to))
    if before.state is RecordState.COMPLETED:
        logger.info("task %s was completed in an earlier run", before.task_id)
        return entry, before.result
    if before.state is RecordState.SUBMITTED:
        logger.info("re-attaching to task %s", before.task_id)
        return entry, before.task_id
    if before.state is RecordState.FAILED:
        run.delete(entry)
        if not before.retryable:
            raise failed_earlier(before)
        if before.portion is not None:  # it may be why the others have failed, or not
            run.coalesce = None
    if before.state is RecordState.INTENT:
        run.handle_ambiguity("an earlier run ended before the vendor had answered")
        charge(run, entry)
    if before.state is not RecordState.CLAIMED:
        entry.reset()
    return entry, None


def _describe_move(move: Move) -> str:
    return (
        f"an earlier run has moved a task from QPU {move.qpu!r} to {move.to_qpu!r}; what it left "
        f"there is not used now, and the task goes to {move.qpu!r} again"
    )


def _await_leader(run: _Run, entry: Entry, before: TaskRecord) -> TaskRecord:
    """Wait while another process runs the task for this payload, too; return what it leaves.

    It may still be submitting it; and once it has all results, it deletes the task if need be.
    """
    if before.portion is None or not before.state.is_at_vendor:
        return before
    leader = leader_file(entry.path, before.portion.task)
    if not is_locked(leader):
        return before
    logger.info("waiting for the process that runs the task for several payloads")
    while is_locked(leader):
        found = read_record(entry.path)
        if found is None or not found.state.is_at_vendor:
            break
        if run.stop.wait(_LOOK_SECONDS):
            raise run.cancelled("goes on: other payloads share it")
    return entry.take_back()
