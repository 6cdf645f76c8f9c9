"""What QPUs can do, remembered: a target needs no lease, and transpiling needs no QPU.

Targets are kept as their vendor gave them in `$XDG_CACHE_HOME/qrmi-workflows/targets`, one file
for each QPU of each site; the file's time is when it was fetched.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.config import home_folder
from qrmi_workflows.environment import JobQPU
from qrmi_workflows.errors import ConfigError, ResourceError, ResultError
from qrmi_workflows.resource import QRMIResource, QuantumResource
from qrmi_workflows.results import write_whole
from qrmi_workflows.vendors import vendor_of_type

__all__ = ["MAX_AGE_HOURS", "QPUTarget", "cached_target", "fetch_target"]

logger = logging.getLogger(__name__)

MAX_AGE_HOURS = 6.0
"""How long a target is taken from the cache; QPUs are calibrated about once a day."""

_FORGET_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QPUTarget:
    """What a QPU can do.

    Attributes:
        qpu: The QPU's name.
        fetched: When its vendor was asked, ISO 8601 in UTC.
        calibrated: When it was calibrated, ISO 8601, where the vendor says it.
        text: The vendor's JSON.
    """

    qpu: str
    fetched: str
    calibrated: str | None
    text: str = field(repr=False)


def cached_target(
    qpu: JobQPU,
    *,
    max_age_hours: float = MAX_AGE_HOURS,
    environ: Mapping[str, str] = os.environ,
) -> QPUTarget | None:
    """Return a QPU's target without asking anyone; `None` when there is none that is new enough.

    Args:
        qpu: The QPU, as `find_qpu` gives it.
        max_age_hours: How long ago it may have been fetched.
        environ: Where `XDG_CACHE_HOME` is looked up.
    """
    path = _path(qpu, environ)
    with suppress(OSError, ValueError, ResultError):
        fetched = path.stat().st_mtime
        if abs(time.time() - fetched) < max_age_hours * 3600:  # a clock may have been set
            return _target(qpu, path.read_text(encoding="utf-8"), fetched)
    return None


def fetch_target(
    qpu: JobQPU,
    *,
    resource: QuantumResource | None = None,
    refresh: bool = False,
    max_age_hours: float = MAX_AGE_HOURS,
    environ: Mapping[str, str] = os.environ,
) -> QPUTarget:
    """Return a QPU's target from the cache, or ask its vendor and remember the answer.

    Args:
        qpu: The QPU, as `find_qpu` gives it; no lease of it is needed.
        resource: The handle to ask through; one of its own when it is `None`.
        refresh: Ask in any case.
        max_age_hours: How old it may be, else the vendor is asked.
        environ: Where `XDG_CACHE_HOME` is looked up.

    Raises:
        ResourceError: The vendor refused, failed, or gave no target.
    """
    if not refresh and (known := cached_target(qpu, max_age_hours=max_age_hours, environ=environ)):
        return known
    asked = resource or QRMIResource(qpu.name, qpu.type, qpu.environment, token=qpu.token)
    try:
        found = _target(qpu, str(asked.target().value), time.time())
    except ResultError as error:
        raise ResourceError(
            f"QPU {qpu.name!r}: the vendor gave no target: {error} Try again later.",
            qpu.name,
            "target",
            retryable=True,
        ) from error
    _remember(_path(qpu, environ), found.text)
    return found


def _target(qpu: JobQPU, text: str, fetched: float) -> QPUTarget:
    try:
        calibrated = vendor_of_type(qpu.type).calibrated(text)
    except ConfigError:  # a type that QRMI knows and no vendor of ours
        calibrated = None
    at = datetime.fromtimestamp(fetched, UTC).isoformat(timespec="seconds")
    return QPUTarget(qpu=qpu.name, fetched=at, calibrated=calibrated, text=text)


def _path(qpu: JobQPU, environ: Mapping[str, str]) -> Path:
    """Return the file of a QPU; the same name at another endpoint is another QPU."""
    home = Path(environ.get("XDG_CACHE_HOME") or home_folder() / ".cache")
    places = (key for key in qpu.environment if "ENDPOINT" in key or "URL" in key)
    where = "\n".join([qpu.type, *(f"{key}={qpu.environment[key]}" for key in sorted(places))])
    digest = hashlib.sha256(where.encode()).hexdigest()[:16]
    return home / "qrmi-workflows" / "targets" / f"{qpu.name}-{digest}.json"


def _remember(path: Path, text: str) -> None:
    """Write the cache; that it cannot be written costs time later, and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            if time.time() - old.stat().st_mtime > _FORGET_SECONDS:
                old.unlink(missing_ok=True)
        write_whole(path, text)
    except OSError as error:
        logger.info("the target is not kept: %s", error)
