"""What is noted of tasks that have ended, whether or not the journal can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable

from qrmi_workflows.errors import JournalError
from qrmi_workflows.results import QuantumResult

__all__ = ["try_to_record", "warn"]

logger = logging.getLogger(__name__)


def try_to_record(write: Callable[..., None], *args: object, **kwargs: object) -> bool:
    """Record an event that has already happened; if the journal fails, log that, return `False`."""
    try:
        write(*args, **kwargs)
    except JournalError as error:
        logger.warning("not recorded, so a crash would lose it: %s", error)
        return False
    return True


def warn(result: QuantumResult) -> QuantumResult:
    """Log what the QPU says about a result, and return the result."""
    for warning in result.warnings:
        logger.warning("task %s on QPU %r: %s", result.task_id, result.qpu, warning)
    return result
