"""The usage of a job's leases: logged for the user and logger plugins, and kept for the report.

A Snakemake inside a job loads no logger plugins, so the job cannot log events. Instead, each lease
leaves a lease record; the executor reads the records of a job when the job has ended.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from qrmi_workflows.lease.history import records_of_job
from qrmi_workflows.lease.record import LeaseRecord

__all__ = ["LEASE_EVENT", "WORKFLOW_RECORDS", "log_leases"]

LEASE_EVENT = "qpu_lease"
"""The `event` of a lease's log record, for logger plugins; its `lease` is the lease record."""

WORKFLOW_RECORDS = Path(".snakemake/slurm_qpu/leases.jsonl")
"""The workflow's lease records, one JSON object per line, each with the name of its rule."""


def log_leases(logger: Any, rule: str, job_id: str, submitted: datetime) -> list[LeaseRecord]:
    """Log the usage of an ended job's leases, and append it to the workflow's records.

    Args:
        logger: Snakemake's logger.
        rule: The name of the job's rule or group.
        job_id: The Slurm job's id.
        submitted: When the job was submitted.

    Returns:
        What the leases have left.
    """
    records = records_of_job(job_id, submitted)
    for record in records:
        # The record is one key of `extra`: logging refuses keys that are LogRecord's own (`name`).
        lease = {"rule": rule, **asdict(record)}
        logger.info(record.describe(), extra={"event": LEASE_EVENT, "lease": lease})
        try:
            _append(json.dumps(lease))
        except OSError as error:
            logger.warning(
                f"{WORKFLOW_RECORDS}: {error}; the report will not include job {job_id}."
            )
    return records


def _append(line: str) -> None:
    # Without a lock: no other process writes to this file, and the workflow's folder may be on a
    # file system that has no locks (Lustre without `-o flock`).
    WORKFLOW_RECORDS.parent.mkdir(parents=True, exist_ok=True)
    with WORKFLOW_RECORDS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
