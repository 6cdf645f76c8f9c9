"""Find a QPU, in the job's environment or in `qrmi_config.json`, and acquire it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qrmi_workflows.client.discovery import find_discovered
from qrmi_workflows.client.failures import is_busy, is_transient
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.job import JobQPU, read_job
from qrmi_workflows.config.qpus import (
    QPUDefinition,
    find_config,
    load_dynamic,
    load_qpus,
    select_qpu,
)
from qrmi_workflows.config.variables import QPU_NAME, QPU_STAGE
from qrmi_workflows.errors import (
    ConfigError,
    LeaseError,
    QPUError,
    RequestError,
    UnknownQPUError,
)
from qrmi_workflows.lease.grants import granted_qpus
from qrmi_workflows.retry import retry

if TYPE_CHECKING:
    from qrmi_workflows.lease.stage import Stage

__all__ = ["ACQUIRE_SECONDS", "FAILING_SECONDS", "acquire", "find_qpu", "stage_to_join"]

logger = logging.getLogger(__name__)

ACQUIRE_SECONDS = 300.0
"""How long to retry while the vendor refuses temporarily (busy, reserved, 429)."""

FAILING_SECONDS = 30.0
"""How long to retry while the vendor fails (503, no answer). What it grants late is released."""


def find_qpu(
    qpu: str | None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> JobQPU:
    """Find a QPU: in the job's environment, else in `qrmi_config.json`.

    Args:
        qpu: Its name; may be `None` if the environment describes, the file defines, or the
            scheduler has granted to the job exactly one; or if `$QPU_STAGE` names a stage, or
            `$QPU_NAME` a QPU.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        environ: The job's environment.

    Raises:
        UnknownQPUError: Neither of them has it.
        ConfigError: There is no usable `qrmi_config.json`, or the name is needed.
        ResourceError: The vendor of a dynamic entry of the file did not answer.
    """
    carried = read_job(environ)
    if (stage := stage_to_join(qpu, None, environ)) is not None:
        qpu, config = stage.qpu, config or (None if stage.config is None else Path(stage.config))
    if qpu is None and carried:
        qpu = _choose(carried, "this job's environment describes", environ)
    qpu = qpu or environ.get(QPU_NAME) or None
    if qpu is not None and qpu in carried:
        return carried[qpu]
    if qpu is not None and is_emulated(qpu):
        from qrmi_workflows.lease.emulated import describe_emulated  # most leases are on real QPUs

        return describe_emulated(qpu)
    try:
        path = config or find_config(environ)
        qpus, dynamic = load_qpus(path), load_dynamic(path)
        if qpu is None and dynamic:  # which may have any QPU that the job holds
            qpu = _choose({*qpus, *granted_qpus(environ)}, f"{path} defines", environ)
        elif qpu is None and qpus:
            qpu = _choose(qpus, f"{path} defines", environ)
        defined = _find_dynamic(qpu, qpus, dynamic) or select_qpu(qpu, qpus, path)
    except ConfigError as error:
        # At some sites, users have no qrmi_config.json: the keeper has got the QPU from the site.
        if stage is not None and (published := _published_by(stage)) is not None:
            return published
        if carried and qpu is not None and not isinstance(error, UnknownQPUError):
            raise UnknownQPUError(qpu, carried, "in this job", str(error)) from error
        raise
    return JobQPU(name=defined.name, type=defined.type, environment=defined.environment, token=None)


def _published_by(stage: Stage) -> JobQPU | None:
    """Return the QPU of a stage that is ready, as its keeper has it, without the token."""
    from qrmi_workflows.lease.stage import Published

    published = Published.load(stage.folder)
    if published is None or not published.is_of(stage):
        return None
    return replace(published.qpu, token=None)


def _find_dynamic(
    qpu: str | None,
    qpus: Mapping[str, QPUDefinition],
    dynamic: Mapping[str, QPUDefinition],
) -> QPUDefinition | None:
    """Return a QPU of one of the accounts that the file names, if it does not define the QPU."""
    if qpu is None or qpu in qpus or not dynamic:
        return None
    if qpu in dynamic:
        raise ConfigError(
            f"{qpu!r} stands for all QPUs of an account; must be the name of one of them. "
            "`qpu list` shows them."
        )
    return find_discovered(qpu, dynamic.values())


def _choose(qpus: Iterable[str], where: str, environ: Mapping[str, str]) -> str:
    """Return the only QPU, or the only one of them that the scheduler has granted to the job.

    Raises:
        ConfigError: There are several; the message lists those to choose from.
    """
    names = set(qpus)
    if len(names) > 1 and (granted := names & granted_qpus(environ)):
        names, where = granted, "this job was granted"
    if len(names) == 1:
        return names.pop()
    raise ConfigError(
        f"no QPU named, and {where} {len(names)}: {', '.join(sorted(names)) or 'none'}. "
        'Name one: `--qpu NAME`, or `open_lease("NAME")`; `qpu list` shows all.'
    )


def acquire(found: JobQPU, resource: QRMIResource, stop: threading.Event) -> str:
    """Acquire a QPU and return the token; retry for a while if the vendor is busy or fails.

    Args:
        found: The QPU.
        resource: The handle to it.
        stop: Set this event to give up.

    Raises:
        ConfigError: The QPU's settings are incomplete.
        LeaseError: The vendor did not grant it.
    """
    started = time.monotonic()

    def is_worth_repeating(error: BaseException) -> bool:
        is_soon = time.monotonic() - started < FAILING_SECONDS
        return is_busy(error) or (is_soon and is_transient(error))

    def request() -> str:
        if stop.is_set():
            raise LeaseError(f"acquiring QPU {found.name!r} was interrupted.", found.name)
        return resource.acquire()

    try:
        return retry(
            request,
            is_worth_repeating,
            stop=stop,
            seconds=ACQUIRE_SECONDS,
            pause=1.0,
            max_pause=30.0,
            before_pause=_log_waiting,
        )
    except (ConfigError, LeaseError):
        raise
    except QPUError as error:
        reason = str(error).removeprefix(f"QPU {found.name!r}: ")
        raise LeaseError(
            f"QPU {found.name!r} could not be acquired: {reason}",
            found.name,
            retryable=error.retryable,
        ) from error


def _log_waiting(seconds: float, error: BaseException) -> None:
    limit = ACQUIRE_SECONDS if is_busy(error) else FAILING_SECONDS
    logger.warning("waiting for the QPU: %.0f s so far, at most %.0f s: %s", seconds, limit, error)


def stage_to_join(
    qpu: str | list[str] | None, stage: str | None, environ: Mapping[str, str] = os.environ
) -> Stage | None:
    """Return the stage whose lease a process is to use; `None` if it needs a lease of its own.

    Args:
        qpu: The QPU that was asked for, or several, if any.
        stage: The stage that was asked for; if `None`, `$QPU_STAGE` applies unless another QPU was
            asked for.
        environ: The environment.

    Raises:
        RequestError: There is no such stage, or it has another QPU.
    """
    name = stage or environ.get(QPU_STAGE)
    if not name:
        return None
    from qrmi_workflows.lease.stage import find_stage  # most leases are for no stage

    found = find_stage(name)
    if qpu is None or found.qpu in ([qpu] if isinstance(qpu, str) else qpu):
        return found
    if stage is None:
        return None
    raise RequestError(
        f"stage {name!r} has QPU {found.qpu!r}, not {qpu!r}. Name the stage's own QPU, or none; or "
        "open another stage."
    )
