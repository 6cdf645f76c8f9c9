"""What Parsl is to do about an app that failed."""

from __future__ import annotations

import math
from typing import Any

from parsl.executors.errors import InvalidResourceSpecification

from qrmi_workflows.errors import QPUError

__all__ = ["qpu_retry_handler"]


def qpu_retry_handler(exception: Exception, task_record: Any) -> float:  # noqa: ARG001 - Parsl's
    """Return what a failure costs of an app's retries, for `Config(retry_handler=…)`.

    What no repetition mends costs all of them: a wrong request or payload, a task that failed at
    the vendor, one of which nobody knows whether it was accepted. Everything else costs one, a lost
    worker or block among it: the retry finds the task that the lost one had submitted.

    Parameters
    ----------
    exception : Exception
        What the app, or Parsl, raised.
    task_record : TaskRecord
        Parsl's record of the call.

    Returns
    -------
    float
        Parsl retries while the sum of the costs is at most `Config`'s `retries`.
    """
    if isinstance(exception, QPUError):
        return 1.0 if exception.retryable else math.inf
    if isinstance(exception, InvalidResourceSpecification):
        return math.inf
    return 1.0
