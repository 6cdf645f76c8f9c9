"""The results of many tasks, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qrmi_workflows.lease.ending import may_rerun

if TYPE_CHECKING:
    from qrmi_workflows.results import QuantumResult
    from qrmi_workflows.tasks.future import TaskFuture

__all__ = ["cancel_all", "in_order"]


def in_order(futures: Sequence[TaskFuture], qpu: str) -> Iterator[QuantumResult]:
    """Yield the results of tasks in order, and show their progress.

    If one fails, or the caller stops, the others are cancelled.
    """
    from qrmi_workflows.tasks.progress import show_progress

    try:
        with show_progress(len(futures), qpu) as advance:
            for future in futures:
                future.add_done_callback(lambda _: advance())
            for future in futures:
                yield future.result()
    except Exception as error:
        if not may_rerun(error):
            for future in futures:
                future.cancel_task()
        raise
    finally:
        cancel_all(futures)


def cancel_all(futures: Iterable[TaskFuture]) -> None:
    """Cancel tasks."""
    for future in futures:
        future.cancel()
