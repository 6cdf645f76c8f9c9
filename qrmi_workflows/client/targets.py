"""Targets, which describe the capabilities of QPUs, cached on disk.

Fetching a target needs no lease, and transpiling for one needs no QPU. Each target is stored as its
vendor sent it, in `$XDG_CACHE_HOME/qrmi-workflows/targets`, in one file for each QPU of each site;
the file's modification time is when the target was fetched.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.client.protocol import QuantumResource
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.folders import cache_folder
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.errors import PayloadError, QPUError, ResourceError, ResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.vendors.registry import find_vendor

__all__ = [
    "MAX_AGE_HOURS",
    "QPUTarget",
    "cached_since",
    "cached_target",
    "fetch_target",
    "require_fit",
]

logger = logging.getLogger(__name__)

MAX_AGE_HOURS = 6.0
"""Hours for which a cached target is used; QPUs are calibrated about once a day."""

_LIVE_SECONDS = 60.0  # the age up to which a target is taken for the QPU's present one
_EXPIRY_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUTarget:
    """The capabilities of a QPU.

    Attributes:
        qpu: The QPU's name.
        fetched: When the target was fetched, ISO 8601 in UTC.
        calibrated: When the QPU was calibrated, ISO 8601; `None` if the vendor does not say.
        text: The vendor's JSON.
    """

    qpu: str
    fetched: str
    calibrated: str | None
    text: str = field(repr=False)

    @property
    def is_live(self) -> bool:
        """Whether it was fetched a moment ago."""
        age = time.time() - datetime.fromisoformat(self.fetched).timestamp()
        return abs(age) < _LIVE_SECONDS


def cached_since(
    qpu: JobQPU,
    *,
    max_age_hours: float = MAX_AGE_HOURS,
    environ: Mapping[str, str] = os.environ,
) -> float | None:
    """Return when a QPU's target was cached, in seconds since the epoch; see `cached_target`."""
    with suppress(OSError):
        fetched = _path(qpu, environ).stat().st_mtime
        if abs(time.time() - fetched) < max_age_hours * 3600:  # the clock may have been set back
            return fetched
    return None


def cached_target(
    qpu: JobQPU,
    *,
    max_age_hours: float = MAX_AGE_HOURS,
    environ: Mapping[str, str] = os.environ,
) -> QPUTarget | None:
    """Return a QPU's target from the cache; `None` if it is absent or too old.

    Args:
        qpu: The QPU, as `find_qpu` gives it.
        max_age_hours: How old it may be.
        environ: The environment with `XDG_CACHE_HOME`.
    """
    fetched = cached_since(qpu, max_age_hours=max_age_hours, environ=environ)
    if fetched is None:
        return None
    with suppress(OSError, ValueError, ResultError):
        return _target(qpu, _path(qpu, environ).read_text(encoding="utf-8"), fetched)
    return None


def fetch_target(
    qpu: JobQPU,
    *,
    resource: QuantumResource | None = None,
    refresh: bool = False,
    max_age_hours: float = MAX_AGE_HOURS,
    environ: Mapping[str, str] = os.environ,
) -> QPUTarget:
    """Return a QPU's target from the cache, or fetch it from its vendor and cache it.

    Args:
        qpu: The QPU, as `find_qpu` returns it; no lease is needed.
        resource: The handle to use; a new one is created if `None`.
        refresh: Fetch it even if the cache has it.
        max_age_hours: How old a cached one may be.
        environ: The environment with `XDG_CACHE_HOME`.

    Raises:
        ResourceError: The vendor rejected the request, failed, or sent no target.
    """
    if not refresh and (known := cached_target(qpu, max_age_hours=max_age_hours, environ=environ)):
        return known
    asked = resource or QRMIResource(qpu.name, qpu.type, qpu.environment, token=qpu.token)
    try:
        found = _target(qpu, str(asked.target().value), time.time())
    except ResultError as error:
        raise ResourceError(
            f"QPU {qpu.name!r}: the vendor sent no valid target: {error} Try again later.",
            qpu.name,
            "target",
            retryable=True,
        ) from error
    _cache(_path(qpu, environ), found.text)
    return found


def require_fit(
    payload: Payload, qpu: str, known: QPUTarget | None, fetch: Callable[[], QPUTarget]
) -> None:
    """Refuse a payload that the QPU would reject.

    The QPU may have changed since the target was cached, for example its limits. So a cached target
    alone refuses no payload, unless the present one cannot be had.

    Args:
        payload: The payload.
        qpu: The QPU's name.
        known: The QPU's target, if it is known.
        fetch: Fetches the present target.

    Raises:
        PayloadError: The payload cannot run on the QPU.
    """
    payload.require_fit(qpu, None)
    if known is None:
        return
    try:
        payload.require_fit(qpu, known.text)
    except PayloadError:
        if known.is_live:
            raise
        present = known
        with suppress(QPUError):
            present = fetch()
        if present is known:
            raise
    else:
        return
    payload.require_fit(qpu, present.text)


def _target(qpu: JobQPU, text: str, fetched: float) -> QPUTarget:
    calibrated = find_vendor(qpu.type).calibrated(text)
    at = datetime.fromtimestamp(fetched, UTC).isoformat(timespec="seconds")
    return QPUTarget(qpu=qpu.name, fetched=at, calibrated=calibrated, text=text)


def _path(qpu: JobQPU, environ: Mapping[str, str]) -> Path:
    """Return the cache file of a QPU; the same name at another endpoint is another QPU."""
    return cache_folder(environ) / "targets" / f"{qpu.name}-{qpu.identity}.json"


def _cache(path: Path, text: str) -> None:
    """Write the cache; if that fails, the target is fetched again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            if time.time() - old.stat().st_mtime > _EXPIRY_SECONDS:
                old.unlink(missing_ok=True)
        write_atomically(path, text)
    except OSError as error:
        logger.info("target not cached: %s", error)
