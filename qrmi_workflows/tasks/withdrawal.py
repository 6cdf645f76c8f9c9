"""Waiting for a task whose QPU has gone: it is taken back if it has not started, else awaited.

A task may move to another QPU only once it cannot be run, and billed, at its own any more. So a
queued task is cancelled, and moves once the vendor confirms that. A running one may still end, and
a vendor that cannot be reached may still run it: both are waited for, up to a limit.
"""

from __future__ import annotations

import time
from typing import Protocol

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import (
    QPUGoneError,
    ResourceError,
)
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.tasks.cancellation import cancel_task
from qrmi_workflows.tasks.costs import CostedRun, record_usage, took
from qrmi_workflows.tasks.presence import Presence
from qrmi_workflows.tasks.recording import try_to_record
from qrmi_workflows.vendors.base import ResourceType

__all__ = ["Withdrawal"]

_AGAIN_SECONDS = 30.0  # between two attempts to cancel a task


class _Run(CostedRun, Protocol):
    """What `TaskRun` has, which imports this module."""

    resource: QRMIResource

    @property
    def _traits(self) -> ResourceType: ...

    def delete(self, entry: Entry) -> None: ...


class Withdrawal:
    """What to do about one task while its QPU may have gone.

    Args:
        run: The task.
        presence: What is known of its QPU.
        entry: Its place in the journal.
    """

    def __init__(self, run: _Run, presence: Presence, entry: Entry) -> None:
        self._run = run
        self._presence = presence
        self._entry = entry
        self._lost_since: float | None = None
        self._next_attempt = 0.0

    def look(self, state: TaskState) -> TaskState | None:
        """Take the task back if its QPU has gone.

        Args:
            state: The task's present state; it has not ended.

        Returns:
            The task's state if it has ended meanwhile; `None` if it is to be waited for.

        Raises:
            QPUGoneError: The task was cancelled; it may move.
            ResourceError: It may not, and was waited for as long as it may be.
        """
        presence = self._presence
        if not presence.is_lost():
            self._lost_since = None
            return None
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        waited = now - self._lost_since
        is_late = waited >= presence.patience
        if state is TaskState.RUNNING and not is_late:
            presence.tell(f"QPU {self._qpu!r} is offline, and still runs {self._task}", waited)
            return None
        if (now < self._next_attempt and not is_late) or not presence.is_still_lost():
            return None
        self._next_attempt = now + _AGAIN_SECONDS
        return self._cancel(waited, is_last=is_late)

    def _cancel(self, waited: float, *, is_last: bool) -> TaskState | None:
        state, failure = cancel_task(self._run.resource, str(self._run.task_id), self._run._traits)
        if state in (TaskState.COMPLETED, TaskState.FAILED):
            return state
        reason = self._presence.offline() or "it was offline"
        if state is not TaskState.CANCELLED:
            if not failure:  # otherwise the task is still wanted, should its QPU come back
                try_to_record(self._entry.stopping, "its cancellation was requested")
            failure = failure or f"its state is still {state}"
            if is_last:
                raise ResourceError(
                    f"QPU {self._qpu!r} has gone: {reason}. {self._task} is not moved to another "
                    f"QPU, because it may still be run and billed: {failure.removesuffix('.')}. "
                    "Rerun the step to check.",
                    self._qpu, "task_stop", retryable=True,
                )  # fmt: skip
            self._presence.tell(
                f"QPU {self._qpu!r} is offline, and does not confirm the end of {self._task}: "
                f"{failure.removesuffix('.')}",
                waited,
            )
            return None
        self._run._times.saw(state)
        record_usage(self._run, state)
        spent = took(self._run, self._entry, state)
        self._entry.failed(f"taken back: {reason}", retryable=True, spent=spent)
        self._run.delete(self._entry)
        raise QPUGoneError(
            f"QPU {self._qpu!r} has gone: {reason}. {self._task} was cancelled.",
            self._qpu, "task_status", retryable=True, had_no_effect=True,
        )  # fmt: skip

    @property
    def _qpu(self) -> str:
        return self._run.resource.name

    @property
    def _task(self) -> str:
        return f"task {self._run.task_id}"
