"""Cancelling a task: only the vendor's word on its state tells what became of it."""

from __future__ import annotations

from qrmi_workflows.client.failures import is_transient
from qrmi_workflows.client.protocol import QuantumResource, TaskState
from qrmi_workflows.errors import QPUError, TaskUnknownError
from qrmi_workflows.retry import retry
from qrmi_workflows.vendors.base import ResourceType

__all__ = ["cancel_task"]

_RETRY_SECONDS = 1.0  # of KillWait's share for stopping tasks


def cancel_task(
    resource: QuantumResource, task_id: str, traits: ResourceType
) -> tuple[TaskState, str]:
    """Cancel a task, unless it has ended.

    A vendor may accept a cancellation that comes too late, or have no route for it and answer 404.

    Args:
        resource: The QPU.
        task_id: The task.
        traits: How QRMI reaches the QPU's type.

    Returns:
        The task's state afterwards (UNKNOWN if the vendor does not say), and what went wrong.
    """

    def ask_state() -> TaskState:
        return TaskState.of(resource.task_status(task_id))

    is_stopped, failure = False, ""
    try:
        if traits.stop_deletes_finished:  # the result of a task that has just ended would be lost
            state = retry(ask_state, is_transient, seconds=_RETRY_SECONDS)
            if state.is_final:
                return state, ""
        retry(lambda: resource.task_stop(task_id), is_transient, seconds=_RETRY_SECONDS)
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
