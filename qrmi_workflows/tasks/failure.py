"""Why a task has failed: the vendor's reason, if QRMI passes it on, or a session that has ended."""

from __future__ import annotations

from contextlib import suppress

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    QPUError,
    SessionEndedError,
    TaskFailedError,
)
from qrmi_workflows.journal.record import TaskRecord
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import explain_failure

__all__ = ["ambiguous", "failed_earlier", "failure_reason", "session_lost"]


def failure_reason(
    resource: QRMIResource, traits: ResourceType, payload: Payload, task_id: str
) -> str:
    """Return why a task has failed: its log, else what is wrong with its payload, if known.

    Args:
        resource: The QPU.
        traits: How QRMI reaches its type.
        payload: The task's input.
        task_id: The task.
    """
    log = ""
    with suppress(QPUError):
        log = resource.task_logs(task_id).strip()
    if log and log not in traits.empty_logs:
        return log
    if explanation := explain_failure(payload.vendor, payload.content):
        return explanation
    if log:
        return traits.empty_logs[log]
    try:  # some clients give the reason when they are asked for the result
        resource.task_result(task_id)
    except QPUError as error:
        return error.message
    return "no reason given"


def ambiguous(qpu: str, task: str, reason: str) -> AmbiguousTaskError:
    """Return the error of a task that the vendor may have accepted.

    Args:
        qpu: The QPU's name.
        task: The task, as a phrase.
        reason: Why that is not known.
    """
    return AmbiguousTaskError(
        f"it is not known whether QPU {qpu!r} accepted {task}: {reason.removesuffix('.')}. Check "
        "the vendor's list of tasks. To submit it again, at the risk of paying twice, rerun the "
        "step with `--on-ambiguous resubmit` (on_ambiguous='resubmit').",
        qpu,
    )


def failed_earlier(before: TaskRecord) -> TaskFailedError:
    """Return the error of a task that has failed in an earlier run of its step."""
    return TaskFailedError(
        f"{before.reason} This was recorded by an earlier run of step {before.step!r}, so the "
        "task is not submitted again. To forget it, run `qpu journal prune --step "
        f"{before.step!r}`.",
        before.qpu,
        before.task_id or "",
    )


def session_lost(error: SessionEndedError) -> SessionEndedError:
    """Return the error of a task whose session another process has opened."""
    message = (
        f"{error.message} This process did not open it, so it cannot open another. Submit the job "
        "again: it gets a new session, and a step that is run again finds the tasks that it has "
        "submitted."
    )
    return SessionEndedError(
        message, error.qpu, error.call, error.status_code, retryable=True, had_no_effect=True
    )
