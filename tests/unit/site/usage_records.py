"""Lease records for the tests of accounting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.site.record_files import Counted
from qrmi_workflows.state.process import Owner

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def lease_record(
    start: float = 0.0, held: float = 100.0, *, job: str | None = "7", **values: Any
) -> LeaseRecord:
    """Return a record of a lease that was acquired so many seconds after noon."""
    acquired = NOON + timedelta(seconds=start)
    busy = values.pop("busy", held)
    cluster = values.pop("cluster", "alpha")
    known: dict[str, Any] = {
        "lease": f"lease-{job}-{start:g}",
        "qpu": "ibm_fez",
        "type": "ibm-quantum-system",
        "step": "rule sample",
        "owner": Owner(host="n1", boot="b", pid=1, started=1, job=job, cluster=cluster),
        "acquired": acquired.isoformat(),
        "released": (acquired + timedelta(seconds=held)).isoformat(),
        "queue_wait": 5.0,
        "acquire": 0.5,
        "held": held,
        "busy": busy,
        "idle": held - busy,
        "tasks": 1,
        "task_ids": [f"task-{job}-{start:g}"],
        "user": "alice",
        "account": "chemistry",
    }
    return LeaseRecord(**(known | values))


def counted(record: LeaseRecord, user: str | None = None) -> Counted:
    """Return a record as `Records` yields it."""
    return Counted(user or record.user, record, *record.times())
