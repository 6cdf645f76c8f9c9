"""What the leases of a job used: read where the jobs wrote it, logged, and kept for the report.

A Snakemake inside a job has no logger plugins, so a job cannot log events. Each lease leaves one
line of JSON, the lease record, and the executor reads the lines of a job when it has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from qrmi_workflows.config import state_folder

__all__ = ["EVENT", "RECORDS", "append_records", "describe_record", "read_records"]

EVENT = "qpu_lease"
"""The event of the log records, for logger plugins: the lease record's fields are its `extra`."""

RECORDS = Path(".snakemake/slurm_qpu/leases.jsonl")
"""Where a workflow's lease records are kept, with the rules that they belong to."""

_RECORD_VARIABLE = "QPU_LEASE_RECORD"
_SKEW = timedelta(minutes=1)  # that a node's clock may be behind
_RECENT = 1 << 18  # bytes: some 500 leases; the record of a job that has just ended is among them


def read_records(
    job_id: str, since: datetime, environ: Mapping[str, str] = os.environ
) -> list[dict[str, Any]]:
    """Return the lease records that a Slurm job has left.

    Args:
        job_id: Slurm's id of it.
        since: When it was submitted: another cluster, or this one years ago, has the same ids.
        environ: Where to read the state folder from.
    """
    folder = state_folder(environ) / "leases"
    named = environ.get(_RECORD_VARIABLE)
    files = [Path(named)] if named else sorted(folder.glob("*.jsonl"))
    records = [record for file in files for record in _parse(_end(file))]
    return [record for record in records if _is_of(record, job_id, since)]


def describe_record(record: Mapping[str, Any]) -> str:
    """Render a lease record as a line of a log."""
    wait = record.get("queue_wait")
    waited = "" if wait is None else f"waited {wait:.0f} s in the queue, "
    ids = ", ".join(record.get("task_ids") or ()) or "none"
    return (
        f"QPU {record['qpu']}: {waited}lease held {record['held']:.2f} s, QPU busy "
        f"{record['busy']:.2f} s, idle {record['idle']:.2f} s, tasks: {record['tasks']} ({ids})"
    )


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a workflow's file of them."""
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)


def _is_of(record: Mapping[str, Any], job_id: str, since: datetime) -> bool:
    try:
        acquired = datetime.fromisoformat(record["acquired"])
        return bool(record["owner"]["job"] == job_id and acquired >= since - _SKEW)
    except (KeyError, TypeError, ValueError):
        return False


def _end(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _RECENT))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""


def _parse(text: str) -> Iterable[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the first line may be cut
        if isinstance(record, dict):
            yield record
