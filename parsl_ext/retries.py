"""What Parsl is to do about an app, or a block, that failed."""

from __future__ import annotations

import math
from typing import Any

from parsl.executors.errors import InvalidResourceSpecification
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.error_handlers import simple_error_handler, windowed_error_handler
from parsl.jobs.states import JobState, JobStatus
from parsl.serialize.errors import DeserializationError

from qrmi_workflows.errors import QPUError

__all__ = ["qpu_retry_handler", "replace_lost_blocks"]


def qpu_retry_handler(exception: Exception, task_record: Any) -> float:  # noqa: ARG001 - Parsl's
    """Return what a failure costs of an app's retries, for `Config(retry_handler=…)`.

    What no repetition mends costs all of them: a wrong request or payload, a task that failed at
    the vendor, one of which nobody knows whether it was accepted, data that cannot be unpickled.
    Everything else costs one, a lost worker or block among it: the retry finds the task that the
    lost one had submitted.

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
    if isinstance(exception, InvalidResourceSpecification | DeserializationError):
        return math.inf
    return 1.0


def replace_lost_blocks(executor: BlockProviderExecutor, status: dict[str, JobStatus]) -> None:
    """Fail all calls when no block has ever had workers, or the last three have failed.

    For `block_error_handler`. Parsl's own fails them when the first block is lost that had worked,
    and so repeats nothing.
    """
    # Parsl calls the blocks so that have ended without workers, however they did.
    hopeless = all(block.state is JobState.MISSING for block in status.values())
    handle = simple_error_handler if hopeless else windowed_error_handler
    handle(executor, status)
