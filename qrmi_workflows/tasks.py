"""Tasks: start, wait, fetch; how often to ask is the polling law.

Asking may add at most 5 % of a task's own duration plus 10 ms: the pause between two questions is
a twentieth of the time that the task has run, at least 5 ms and at most a minute. While it is
queued its own duration has not begun, so the pause is at most a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from qrmi_workflows.errors import QPUError, TaskCancelledError, TaskFailedError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.resource import QuantumResource, TaskState
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.vendors import load_vendor

__all__ = ["RETRY_SECONDS", "PayloadLike", "next_pause", "run_task", "to_payload"]

PayloadLike = Payload | Mapping[str, Any] | Path | str
"""A payload, the content of one, or the path of its file."""

RETRY_SECONDS = 120.0
"""How long a question that is safe to repeat is repeated while the vendor fails."""

_FRACTION, _LEAST, _MOST_RUNNING, _MOST_QUEUED = 0.05, 0.005, 60.0, 1.0


def to_payload(payload: PayloadLike) -> Payload:
    """Take a payload in any of its forms.

    Raises:
        PayloadError: It cannot be read, or is of no vendor's schema.
    """
    if isinstance(payload, Payload):
        return payload
    if isinstance(payload, Mapping):
        return Payload.from_content(payload)
    return Payload.from_file(payload)


def next_pause(state: TaskState, seconds: float) -> float:
    """Return the seconds until the next question.

    Args:
        state: The task's last known state.
        seconds: For how long it has been in that state.
    """
    most = _MOST_QUEUED if state is TaskState.QUEUED else _MOST_RUNNING
    return min(max(_FRACTION * seconds, _LEAST), most)


def run_task(
    resource: QuantumResource,
    payload: Payload,
    *,
    resource_type: str,
    on_state: Callable[[str, TaskState], None] | None = None,
) -> QuantumResult:
    """Run one task to its end.

    Args:
        resource: The QPU, acquired where it needs to be.
        payload: The task's input; of the QPU's vendor.
        resource_type: QRMI's type of the QPU.
        on_state: Called with the task's id and each new state.

    Raises:
        TaskFailedError, TaskCancelledError, TaskUnknownError: The task ended without a result.
        ResourceError: The vendor failed for longer than `RETRY_SECONDS`, or refused.
        ResultError: The result is not of the vendor's form.

    When it is interrupted it cancels the task.
    """
    vendor = load_vendor(payload.vendor)
    submitted = _now()
    task_id = resource.task_start(vendor.encode(payload.content))
    try:
        state = _wait(resource, task_id, on_state)
    except BaseException:
        with suppress(QPUError):
            resource.task_stop(task_id)
        raise
    completed = _now()
    if state is not TaskState.COMPLETED:
        raise _ended_without_result(resource, task_id, state)
    text = _repeated(lambda: resource.task_result(task_id).value)
    return QuantumResult(
        qpu=resource.resource_id(),
        type=resource_type,
        program=payload.program,
        task_id=task_id,
        payload_digest=payload.digest,
        submitted=submitted,
        completed=completed,
        data=vendor.decode(payload.program, text),
        vendor_result=text,
    )


def _wait(
    resource: QuantumResource,
    task_id: str,
    on_state: Callable[[str, TaskState], None] | None,
) -> TaskState:
    last, since = None, time.monotonic()
    while True:
        state: TaskState = _repeated(lambda: TaskState.of(resource.task_status(task_id)))
        if state is not last:
            last, since = state, time.monotonic()
            if on_state:
                on_state(task_id, state)
        if state.final:
            return state
        time.sleep(next_pause(state, time.monotonic() - since))


def _repeated(question: Callable[[], Any]) -> Any:
    """Ask something that changes nothing, again while the vendor fails in a way that passes."""
    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, QPUError) and error.retryable),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        stop=stop_after_delay(RETRY_SECONDS),
        retry_error_callback=_last_error,
    )(question)


def _last_error(state: RetryCallState) -> Any:
    if state.outcome is not None:
        return state.outcome.result()
    return None


def _ended_without_result(
    resource: QuantumResource, task_id: str, state: TaskState
) -> TaskFailedError | TaskCancelledError:
    qpu = resource.resource_id()
    if state is TaskState.CANCELLED:
        return TaskCancelledError(
            f"task {task_id} on QPU {qpu!r} was cancelled at the vendor.", qpu, task_id
        )
    reason = ""
    with suppress(QPUError):
        reason = resource.task_logs(task_id).strip()
    return TaskFailedError(
        f"task {task_id} on QPU {qpu!r} failed at the vendor: {reason or 'no reason given'}",
        qpu,
        task_id,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
