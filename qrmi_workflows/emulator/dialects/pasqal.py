"""What Pasqal's two APIs share: the names of states and devices, and Pasqal Cloud's documents."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request

from qrmi_workflows.emulator.dialects.base import RefusalError, wanted
from qrmi_workflows.emulator.store import Batch, Task

__all__ = [
    "PULSER_DEVICES",
    "STATUS",
    "batch_document",
    "batch_status",
    "job_document",
    "job_request",
    "read_body",
    "sequence_text",
]

PULSER_DEVICES = ("AnalogDevice", "DigitalAnalogDevice", "MockDevice")
STATUS = {
    "queued": "PENDING",
    "running": "RUNNING",
    "completed": "DONE",
    "failed": "ERROR",
    "cancelled": "CANCELED",
}
_UNFINISHED = ("queued", "running")
_Iso = Callable[[float | None], str | None]


async def read_body(request: Request) -> Any:
    """Return the request's JSON body, which Pasqal's SDK compresses.

    Raises:
        RefusalError: It is not JSON, or not what its encoding says (400).
    """
    body = await request.body()
    try:
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        return json.loads(body)
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise RefusalError(400, f"The request body is not JSON: {error}.") from error


def sequence_text(text: object, field: str) -> str:
    """Return a serialised sequence.

    Raises:
        RefusalError: It is not one (400).
    """
    if not isinstance(text, str):
        raise RefusalError(400, f"The field {field!r} must be a string, not {text!r:.80}.")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RefusalError(400, f"The field {field!r} is not JSON: {error}.") from error
    if not isinstance(document, dict) or "device" not in document:
        raise RefusalError(400, f"The field {field!r} is no serialised Pulser sequence.")
    return text


def job_request(job: object, sequence: str | None) -> dict[str, Any]:
    """Return what one job of a batch is to run.

    Args:
        job: `runs`, and optionally `variables` and a `sequence` of its own.
        sequence: The batch's sequence.

    Raises:
        RefusalError: It is malformed, or has no sequence at all (400).
    """
    if not isinstance(job, dict):
        raise RefusalError(400, f"A job must be an object, not {job!r:.80}.")
    runs = wanted(job, "runs", int)
    if runs < 1:
        raise RefusalError(400, f"The field 'runs' must be at least 1, not {runs}.")
    variables = job.get("variables") or {}
    if not isinstance(variables, dict):
        raise RefusalError(400, f"The field 'variables' must be an object, not {variables!r:.80}.")
    if job.get("sequence") is not None:
        sequence = sequence_text(job["sequence"], "sequence")
    if sequence is None:
        raise RefusalError(400, "Neither the batch nor the job has a sequence.")
    return {"sequence": sequence, "runs": runs, "variables": variables}


def batch_status(states: list[str], is_open: bool) -> str:
    """Return a batch's status from the states of its tasks."""
    if all(state == "queued" for state in states):
        return "PENDING"
    if is_open or any(state in _UNFINISHED for state in states):
        return "RUNNING"
    for state in ("failed", "cancelled"):
        if all(item == state for item in states):
            return STATUS[state]
    return "DONE"


def batch_document(batch: Batch, tasks: list[Task], project_id: str, iso: _Iso) -> dict[str, Any]:
    """Render a batch as the API shows it."""
    is_open = bool(batch.details.get("open"))
    status = batch_status([task.state for task in tasks], is_open)
    started = [task.started for task in tasks if task.started]
    ended = [task.finished for task in tasks if task.finished]
    has_ended = status not in ("PENDING", "RUNNING")
    return {
        "id": batch.id,
        "project_id": project_id,
        "user_id": "emulator",
        "status": status,
        "open": is_open,
        "complete": not is_open,
        "device_type": batch.qpu,
        "tags": batch.details.get("tags"),
        "sequence_builder": batch.details.get("sequence"),
        "created_at": iso(batch.created),
        "updated_at": iso(max([batch.created, *started, *ended])),
        "start_datetime": iso(min(started, default=None)),
        "end_datetime": iso(max(ended)) if has_ended and ended else None,
        "jobs_count": len(tasks),
        "jobs_count_per_status": dict(Counter(STATUS[task.state] for task in tasks)),
        "job_ids": [task.id for task in tasks],
        "jobs": [job_document(task, project_id, iso) for task in tasks],
    }


def job_document(task: Task, project_id: str, iso: _Iso) -> dict[str, Any]:
    """Render a job as the API shows it."""
    details: Mapping[str, Any] = task.details
    return {
        "id": task.id,
        "batch_id": task.batch,
        "project_id": project_id,
        "status": STATUS[task.state],
        "runs": details["runs"],
        "variables": details.get("variables") or None,
        "created_at": iso(task.accepted),
        "updated_at": iso(task.finished or task.started or task.accepted),
        "start_timestamp": iso(task.started),
        "end_timestamp": iso(task.finished),
        "errors": [task.reason] if task.state == "failed" else None,
    }
