"""How Parsl handles apps that fail."""

from __future__ import annotations

import math
from typing import Any

from parsl.app.errors import BashExitFailure
from parsl.executors.errors import InvalidResourceSpecification, UnsupportedFeatureError

from parsl_ext.block_errors import USER_ERRORS
from qrmi_workflows.errors import QPUError, StepMovedError

__all__ = ["qpu_retry_handler"]


def qpu_retry_handler(exception: Exception, task_record: Any) -> float:  # noqa: ARG001 - Parsl's
    """Return the retry cost of a failed call, for `Config(retry_handler=…)`.

    An error that another attempt may cure costs one retry: the loss of a worker or a block, a
    vendor that is busy, a lost connection, a command that fails. The next attempt finds the tasks
    that the last one submitted. Any other error would occur again, and costs all retries: a mistake
    in the app, an invalid request or payload, a task that failed at the vendor or may have been
    accepted, a `walltime` that is over. A call that goes on with the next QPU of a fallback, in
    another block, costs nothing.

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
    if isinstance(exception, StepMovedError):
        return 0.0  # the next block holds another QPU
    if isinstance(exception, QPUError):
        return 1.0 if exception.retryable else math.inf
    return 1.0 if _may_be_cured(exception) else math.inf


def _may_be_cured(exception: Exception) -> bool:
    if isinstance(exception, BashExitFailure):
        return exception.exitcode not in USER_ERRORS
    if isinstance(exception, InvalidResourceSpecification | UnsupportedFeatureError):
        return False
    # Each executor of Parsl has errors of its own for lost workers (ManagerLost, for example).
    from_executor = type(exception).__module__.startswith("parsl.executors.")
    return from_executor or isinstance(exception, ConnectionError | TimeoutError)
