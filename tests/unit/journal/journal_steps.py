"""Claiming and completing tasks of a step, without a vendor."""

from __future__ import annotations

from collections.abc import Iterable

from qrmi_workflows.journal.record import TaskRecord
from qrmi_workflows.journal.step import Entry, Step
from qrmi_workflows.results import QuantumResult

__all__ = ["DIGEST", "claim", "complete", "states"]

DIGEST = "d" * 64


def claim(step: Step, digest: str = DIGEST) -> tuple[Entry, TaskRecord | None]:
    """Claim the next task with this payload."""
    return step.claim(digest, qpu="q", program="sampler")


def complete(step: Step, digest: str = DIGEST) -> None:
    """Claim the next task with this payload, and record its result."""
    entry, _ = claim(step, digest)
    entry.submitted("task")
    result = QuantumResult(
        qpu="q", type="t", program="sampler", task_id="task", payload_digest=digest,
        submitted="", completed="", data=[], vendor_result="{}",
    )  # fmt: skip
    entry.completed(result)


def states(records: Iterable[TaskRecord]) -> list[str]:
    """Return the states of records."""
    return [str(record.state) for record in records]
