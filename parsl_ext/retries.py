"""How Parsl handles apps and blocks that fail."""

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


def replace_lost_blocks(executor: BlockProviderExecutor, status: dict[str, JobStatus]) -> None:
    """Fail all calls if no block has ever had workers, or if the last three blocks have failed.

    This is the default `block_error_handler` of `QPUExecutor`. Parsl's own default,
    `simple_error_handler` (read in 2026.10.26), gives up as soon as all blocks so far have failed,
    which with `init_blocks=1` is the first lost block: its calls would never be retried in another.
    """
    # HTEX rewrites the state of a block that ended without ever having connected to MISSING.
    never_worked = all(block.state is JobState.MISSING for block in status.values())
    handle = simple_error_handler if never_worked else windowed_error_handler
    handle(executor, status)
