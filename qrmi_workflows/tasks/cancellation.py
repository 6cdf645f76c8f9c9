"""Cancelling a task: only the vendor's word on its state tells what became of it."""

from __future__ import annotations

from typing import Protocol

from qrmi_workflows.client.failures import is_transient
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import QPUError, TaskUnknownError
from qrmi_workflows.retry import retry
from qrmi_workflows.vendors.base import ResourceType

__all__ = ["cancel_task"]

_RETRY_SECONDS = 1.0  # of KillWait's share for stopping tasks
_WAIT_SECONDS = 1.0  # the same, for each call that may wait for the task's end


class _Resource(Protocol):
    """The calls of `QRMIResource` that cancel a task."""

    def task_status(self, task_id: str, *, deadline: float | None = None) -> object: ...

    def task_stop(self, task_id: str, *, deadline: float | None = None) -> None: ...


def cancel_task(resource: _Resource, task_id: str, traits: ResourceType) -> tuple[TaskState, str]:
    """Cancel a task, unless it has ended.

    A vendor may accept a cancellation that comes too late, or have no route for it and answer 404.

    Args:
        resource: The QPU.
        task_id: The task.
        traits: How QRMI reaches the QPU's type.

    Returns:
        The task's state afterwards (UNKNOWN if the vendor does not say), and what went wrong.
    """
    within = {"deadline": _WAIT_SECONDS} if traits.status_waits else {}

    def ask_state() -> TaskState:
        return TaskState.of(resource.task_status(task_id, **within))

    is_stopped, failure = False, ""
    try:
        if traits.stop_deletes_finished:  # the result of a task that has just ended would be lost
            state = retry(ask_state, is_transient, seconds=_RETRY_SECONDS)
            if state.is_final:
                return state, ""
        retry(lambda: resource.task_stop(task_id, **within), is_transient, seconds=_RETRY_SECONDS)
        is_stopped = True
    except QPUError as error:
        failure = error.message
    try:
        return retry(ask_state, is_transient, seconds=_RETRY_SECONDS), failure
    except TaskUnknownError as error:
        if is_stopped and traits.stop_deletes_finished:
            return TaskState.CANCELLED, ""
        return TaskState.UNKNOWN, failure or error.message
    except QPUError as error:
        return TaskState.UNKNOWN, failure or error.message
