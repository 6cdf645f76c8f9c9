"""Why a task has failed: the vendor's reason, if QRMI passes it on."""

from __future__ import annotations

from contextlib import suppress

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.errors import QPUError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import explain_failure

__all__ = ["failure_reason"]


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
