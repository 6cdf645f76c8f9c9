"""The common part of Pasqal's two APIs, and the documents of Pasqal Cloud."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request

from qrmi_workflows.emulator.dialects.base import RefusalError, parse_json, required_field
from qrmi_workflows.emulator.store import Batch, Task

__all__ = [
    "MAX_RUNS",
    "PULSER_DEVICES",
    "STATUS",
    "batch_document",
    "batch_status",
    "job_document",
    "job_request",
    "read_body",
    "read_body_object",
    "sequence_text",
]

PULSER_DEVICES = ("AnalogDevice", "DigitalAnalogDevice", "MockDevice")
MAX_RUNS = {"AnalogDevice": 2000}
"""The `max_runs` of Pulser's devices that have one."""

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
    """Return the request's JSON body, decompressed if necessary: Pasqal's SDK sends gzip.

    Raises:
        RefusalError: The body is not JSON, or not in the stated encoding (400).
    """
    body = await request.body()
    try:
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
    except (OSError, EOFError, zlib.error) as error:
        raise RefusalError(400, f"The request body is not JSON: {error}.") from error
    return parse_json(body)


async def read_body_object(request: Request) -> dict[str, Any]:
    """Return the request's JSON body, which must be an object; see `read_body`.

    Raises:
        RefusalError: The body is not a JSON object, or not in the stated encoding (400).
    """
    document = await read_body(request)
    if not isinstance(document, dict):
        raise RefusalError(400, "The request body must be a JSON object.")
    return document


def sequence_text(text: object, field: str, *, quoted: bool = False) -> str:
    """Return a field's value after checking that it looks like a serialised sequence.

    Args:
        text: The value.
        field: The field's name.
        quoted: Whether it may be a JSON string that holds the sequence, which is then returned.

    Raises:
        RefusalError: The value is not a serialised sequence (400).
    """
    if not isinstance(text, str):
        raise RefusalError(400, f"The field {field!r} must be a string, not {text!r:.80}.")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RefusalError(400, f"The field {field!r} is not JSON: {error}.") from error
    if quoted and isinstance(document, str):
        return sequence_text(document, field)
    if not isinstance(document, dict) or not isinstance(document.get("device"), dict):
        raise RefusalError(400, f"The field {field!r} is not a serialised Pulser sequence.")
    return text


def job_request(job: object, sequence: str | None, max_runs: int | None) -> dict[str, Any]:
    """Return the stored request of one job of a batch.

    Args:
        job: The job's document: `runs`, and optionally `variables` and its own `sequence`.
        sequence: The batch's sequence, if it has one.
        max_runs: How many runs the device allows, if it has a limit.

    Raises:
        RefusalError: The job is malformed, or neither it nor the batch has a sequence (400).
    """
    if not isinstance(job, dict):
        raise RefusalError(400, f"A job must be an object, not {job!r:.80}.")
    runs = required_field(job, "runs", int)
    if runs < 1:
        raise RefusalError(400, f"The field 'runs' must be at least 1, not {runs}.")
    if max_runs is not None and runs > max_runs:
        raise RefusalError(400, f"The field 'runs' must be at most {max_runs}, not {runs}.")
    variables = job.get("variables") or {}
    if not isinstance(variables, dict):
        raise RefusalError(400, f"The field 'variables' must be an object, not {variables!r:.80}.")
    if job.get("sequence") is not None:
        sequence = sequence_text(job["sequence"], "sequence")
    if sequence is None:
        raise RefusalError(400, "Neither the batch nor the job has a sequence.")
    return {"sequence": sequence, "runs": runs, "variables": variables}


def batch_status(states: list[str], is_open: bool) -> str:
    """Derive a batch's status from the states of its tasks."""
    if all(state == "queued" for state in states):
        return "PENDING"
    if is_open or any(state in _UNFINISHED for state in states):
        return "RUNNING"
    for state in ("failed", "cancelled"):
        if all(item == state for item in states):
            return STATUS[state]
    return "DONE"


def batch_document(batch: Batch, tasks: list[Task], project_id: str, iso: _Iso) -> dict[str, Any]:
    """Return the API's document of a batch."""
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
        "parent_id": batch.details.get("parent"),
        "queue_priority": "MEDIUM",
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
    """Return the API's document of a job."""
    details: Mapping[str, Any] = task.details
    return {
        "id": task.id,
        "batch_id": task.batch,
        "project_id": project_id,
        "status": STATUS[task.state],
        "runs": details["runs"],
        "user_id": "emulator",
        "parent_id": details.get("parent"),
        "variables": details.get("variables") or None,
        "created_at": iso(task.accepted),
        "updated_at": iso(task.finished or task.started or task.accepted),
        "start_timestamp": iso(task.started),
        "end_timestamp": iso(task.finished),
        "errors": [task.reason] if task.state == "failed" else None,
    }
