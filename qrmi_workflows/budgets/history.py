"""What earlier tasks on a QPU have taken, as the user's journal has it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

from qrmi_workflows.budgets.estimates import Sample
from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.journal.record_files import read_records

__all__ = ["read_history"]

_MEASURED = ("observed", "reported by the vendor")
_STEPS = 200  # the latest ones, so that a long journal does not delay a task


def read_history(qpu: str, identity: str, journal: Journal | None = None) -> list[Sample]:
    """Read what tasks on a QPU have taken in the latest steps.

    Args:
        qpu: The QPU's name.
        identity: What tells it from others of its name (`JobQPU.identity`).
        journal: The journal; the user's own if `None`.
    """
    return [
        sample
        for folder in _latest_steps((journal or Journal()).folder)
        for record in read_records(folder, on_error=_ignore)
        if (record.qpu, record.identity) == (qpu, identity)
        if (sample := _sample(record)) is not None
    ]


def _latest_steps(journal: Path) -> list[Path]:
    return heapq.nlargest(_STEPS, _steps(journal), key=_modified)


def _steps(journal: Path) -> Iterator[Path]:
    yield from journal.glob("open/*/*")
    yield from journal.glob("archived/*/*")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _sample(record: TaskRecord) -> Sample | None:
    """Return what a task has taken; `None` if that was not observed, or it was not alone."""
    spent = None if record.cost is None else record.cost.spent
    if record.state is not RecordState.COMPLETED or record.portion is not None:
        return None
    if spent is None or spent.origin not in _MEASURED or not spent.shots or spent.seconds is None:
        return None
    return Sample(
        digest=record.digest, program=record.program, shots=spent.shots, seconds=spent.seconds
    )


def _ignore(_error: JournalError) -> None:
    """A record that cannot be read measures nothing."""
