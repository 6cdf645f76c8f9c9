"""How Parsl handles apps that fail."""

from __future__ import annotations

import math
from typing import Any

from parsl.executors.errors import InvalidResourceSpecification
from parsl.serialize.errors import DeserializationError

from qrmi_workflows.errors import QPUError

__all__ = ["qpu_retry_handler"]


def qpu_retry_handler(exception: Exception, task_record: Any) -> float:  # noqa: ARG001 - Parsl's
    """Return the retry cost of a failed call, for `Config(retry_handler=…)`.

    An error that would occur again costs all retries: an invalid request or payload, a task that
    failed at the vendor, a task that the vendor may or may not have accepted, data that cannot be
    unpickled. Any other error costs one retry, including the loss of a worker or a block: the next
    attempt finds the task that the lost one submitted.

    Parameters
    ----------
    exception : Exception
        The exception that the app, or Parsl, raised.
    task_record : TaskRecord
        Parsl's record of the call.

    Returns
    -------
    float
        The cost. Parsl retries a call while its costs add up to no more than `retries` in `Config`.
    """
    if isinstance(exception, QPUError):
        return 1.0 if exception.retryable else math.inf
    if isinstance(exception, InvalidResourceSpecification | DeserializationError):
        return math.inf
    return 1.0
