"""How the `with` block of a lease ends."""

from __future__ import annotations

import logging
from typing import Protocol

from qrmi_workflows.errors import LeaseError

__all__ = ["finish", "may_rerun"]

logger = logging.getLogger(__name__)


class _Releasable(Protocol):
    def await_tasks(self) -> None: ...

    def cancel_tasks(self) -> None: ...

    def release(self) -> None: ...


def finish(leases: _Releasable, error: BaseException | None) -> None:
    """End a `with` block: await the tasks, unless the block failed, and release."""
    if error is None:
        try:
            leases.await_tasks()
        finally:
            leases.release()
        return
    if not may_rerun(error):
        leases.cancel_tasks()
    try:
        leases.release()
    except LeaseError as failed:  # it must not hide the block's own error
        logger.warning("%s", failed)


def may_rerun(error: BaseException) -> bool:
    """Return whether the step may be run again after an error, and find its tasks.

    SIGTERM and Ctrl-C stop the step (`SystemExit`, `KeyboardInterrupt`). After a mistake, or when
    an app's walltime is over in Parsl, nobody will come back for the tasks.
    """
    return not isinstance(error, Exception) or bool(getattr(error, "retryable", False))
