"""The lease records that a job has left."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from qrmi_workflows.config.variables import QPU_LEASE_RECORD
from qrmi_workflows.lease.record import LeaseRecord, records_folder

__all__ = ["records_of_job"]

_CLOCK_SKEW = timedelta(minutes=1)  # by which a node's clock may be behind
_TAIL_BYTES = 1 << 18  # about 500 records; a job that has just ended is among them


def records_of_job(
    job_id: str, since: datetime, environ: Mapping[str, str] = os.environ
) -> list[LeaseRecord]:
    """Return the lease records that a job has left.

    Args:
        job_id: The scheduler's id of the job.
        since: When the job was submitted; another cluster, or this one years ago, may have used the
            same id.
        environ: The environment with `QPU_LEASE_RECORD` and `QPU_STATE`.
    """
    named = environ.get(QPU_LEASE_RECORD)
    files = [Path(named)] if named else sorted(records_folder(environ).glob("*.jsonl"))
    records = [record for file in files for record in _last_records(file)]
    return [
        record
        for record in records
        if record.owner.job == job_id and _is_since(record, since - _CLOCK_SKEW)
    ]


def _is_since(record: LeaseRecord, earliest: datetime) -> bool:
    try:
        return record.times()[0] >= earliest
    except ValueError:  # a damaged record: none of its values can be relied on
        return False


def _last_records(file: Path) -> Iterator[LeaseRecord]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            text = opened.read().decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        with suppress(ValueError):  # the first line may be incomplete
            yield LeaseRecord.from_json(line)
