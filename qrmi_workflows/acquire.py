"""Find a QPU and acquire it: from the job's environment, else as `qrmi_config.json` defines it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from qrmi_workflows.config import find_config, load_qpus, select_qpu
from qrmi_workflows.environment import JobQPU, read_job
from qrmi_workflows.errors import (
    ConfigError,
    LeaseError,
    QPUError,
    ResourceError,
    UnknownQPUError,
)
from qrmi_workflows.resource import QRMIResource

__all__ = ["ACQUIRE_SECONDS", "acquire", "find_qpu"]

logger = logging.getLogger(__name__)

ACQUIRE_SECONDS = 300.0
"""How long acquiring is repeated while the vendor refuses for now (busy, reserved, 429)."""


def find_qpu(
    qpu: str | None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> JobQPU:
    """Find a QPU: as the job's environment carries it, else as `qrmi_config.json` defines it.

    Raises:
        UnknownQPUError: Neither has it.
        ConfigError: There is no usable `qrmi_config.json`.
    """
    carried = read_job(environ)
    if qpu is None and len(carried) == 1:
        return next(iter(carried.values()))
    if qpu is not None and qpu in carried:
        return carried[qpu]
    try:
        path = config or find_config(environ)
        defined = select_qpu(qpu, load_qpus(path), path)
    except UnknownQPUError:
        raise
    except ConfigError as error:
        if carried and qpu is not None:
            raise UnknownQPUError(qpu, carried, "in this job", str(error)) from error
        raise
    return JobQPU(name=defined.name, type=defined.type, environment=defined.environment, token=None)


def acquire(found: JobQPU, resource: QRMIResource, stop: threading.Event) -> str:
    """Acquire a QPU and return the token; wait, within bounds, while the vendor refuses for now.

    Args:
        found: The QPU.
        resource: The handle to it.
        stop: Set to ask no more: nobody waits for it.

    Raises:
        ConfigError: The QPU's settings are incomplete.
        LeaseError: The vendor did not grant it.
    """

    def ask() -> str:
        if stop.is_set():
            raise LeaseError(f"the QPU {found.name!r} is no longer wanted.", found.name)
        return resource.acquire()

    try:
        token: str = Retrying(
            retry=retry_if_exception(_refused_for_now),
            wait=wait_random_exponential(multiplier=1, max=30),
            stop=stop_after_delay(ACQUIRE_SECONDS),
            sleep=sleep_using_event(stop),
            before_sleep=_say_waiting,
            reraise=True,
        )(ask)
    except (ConfigError, LeaseError):
        raise
    except QPUError as error:
        raise LeaseError(
            f"the QPU {found.name!r} could not be acquired: {error}",
            found.name,
            retryable=error.retryable,
        ) from error
    return token


def _refused_for_now(error: BaseException) -> bool:
    return isinstance(error, ResourceError) and error.retryable and error.refused


def _say_waiting(state: RetryCallState) -> None:
    said = state.outcome and state.outcome.exception()
    logger.warning(
        "waiting for the QPU, for %.0f s of at most %.0f s: %s",
        state.seconds_since_start or 0.0,
        ACQUIRE_SECONDS,
        said,
    )
