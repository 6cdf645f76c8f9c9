"""Release leases whose process was killed by SIGKILL or died with its node.

The files of open leases name their owners. This host knows its own processes, and the scheduler
knows the jobs on other hosts; a lease is released only if its owner has certainly died. Reaping can
safely be repeated, or run in several processes at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.job import read_job
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.errors import ConfigError, DeadlineError, QPUError, SchedulerError
from qrmi_workflows.lease.records import OpenLease, open_leases
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT
from qrmi_workflows.state.locks import try_lock
from qrmi_workflows.state.process import Owner

__all__ = ["Reaped", "reap"]

logger = logging.getLogger(__name__)

_ASK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """The outcome of reaping one orphaned lease.

    Attributes:
        lease: The lease's own id.
        qpu: The QPU's name.
        released: Whether it has been released.
        error: Why it has not been released, if so.
    """

    lease: str
    qpu: str
    released: bool
    error: str = ""


def reap(*, patience: float | None = None) -> list[Reaped]:
    """Release this user's orphaned leases; query a silent vendor or scheduler only once.

    Args:
        patience: Seconds that a release, or an answer of the scheduler, may take. Set it where
            reaping is a side job: then all processes together query the scheduler at most once a
            minute. If `None`, each call has its own deadline.

    Returns:
        One outcome for each orphaned lease.
    """
    reaped: list[Reaped] = []
    silent: dict[str, str] = {}
    # Read all files before querying the scheduler, so that a job that it does not list has ended.
    found = list(open_leases())
    # The scheduler is queried only for owners that are not alive on this host.
    jobs = _Jobs(patience)
    for opened in found:
        if _is_orphaned(opened.owner, jobs):
            try:
                # Another process may be reaping the same lease; the one with the lock releases it.
                with try_lock(opened.path) as is_locked:
                    if is_locked:
                        reaped.append(_release(opened, silent, patience))
            except OSError as error:  # the state folder is read-only, say
                reaped.append(_not_released(opened, f"{opened.path}: {error.strerror or error}"))
    return reaped


class _Jobs:
    """The live jobs of each cluster, queried only once."""

    def __init__(self, patience: float | None) -> None:
        self._patience = patience
        self._live: dict[str | None, set[str] | None] = {}

    def have_ended(self, owner: Owner) -> bool:
        """Return whether a process's job has certainly ended."""
        if owner.was_requeued(this_job()):
            return True
        if owner.job is None:
            return False
        if owner.cluster not in self._live:
            self._live[owner.cluster] = self._ask(owner.cluster)
        live = self._live[owner.cluster]
        return live is not None and owner.job not in live

    def _ask(self, cluster: str | None) -> set[str] | None:
        if self._patience is not None and not _is_first_in(_ASK_SECONDS):
            return None
        try:
            live = this_scheduler().live_jobs(cluster, timeout=self._patience or COMMAND_TIMEOUT)
        except SchedulerError as error:
            logger.warning("cannot tell whether jobs on other hosts still hold leases: %s", error)
            return None
        if live is None:
            # The scheduler is not installed on this host. That must not keep one where it is from
            # querying it.
            with suppress(OSError):
                _query_marker().unlink()
        return live


def _is_first_in(seconds: float) -> bool:
    """Return whether the last query is at least this old; if so, record a new one."""
    marker = _query_marker()
    try:
        # The absolute value, because the clock may have been set back.
        if abs(time.time() - marker.stat().st_mtime) < seconds:
            return False
    except FileNotFoundError:
        pass
    with suppress(OSError):
        marker.touch()
    return True


def _query_marker() -> Path:
    return state_folder() / "leases" / "asked"


def _is_orphaned(owner: Owner, jobs: _Jobs) -> bool:
    is_alive = owner.is_alive()
    return jobs.have_ended(owner) if is_alive is None else not is_alive


def _release(opened: OpenLease, silent: dict[str, str], patience: float | None) -> Reaped:
    if reason := silent.get(opened.qpu):
        return _not_released(opened, reason)
    try:
        with _resource(opened) as resource:
            resource.release(opened.token, deadline=patience)
    except QPUError as error:
        # Further leases of a silent vendor would each wait for the same deadline.
        if isinstance(error, DeadlineError):
            silent[opened.qpu] = str(error)
        if not _has_ended(error):
            return _not_released(opened, str(error))
    opened.close(reaped=True)
    return Reaped(lease=opened.lease, qpu=opened.qpu, released=True)


def _not_released(opened: OpenLease, reason: str) -> Reaped:
    return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, error=reason)


def _has_ended(error: QPUError) -> bool:
    """Return whether the vendor has already ended the session."""
    return getattr(error, "status_code", None) in (404, 410)


@contextmanager
def _resource(opened: OpenLease) -> Iterator[QRMIResource]:
    """Open a handle to a lease's QPU, and close its connections afterwards."""
    if opened.config is not None:
        definitions = load_qpus(Path(opened.config))
        environment = definitions[opened.qpu].environment if opened.qpu in definitions else None
    else:
        carried = read_job(os.environ).get(opened.qpu)
        environment = carried.environment if carried else None
    if environment is None:
        raise ConfigError(
            f"QPU {opened.qpu!r} of lease {opened.lease} is no longer defined in "
            f"{opened.config or 'this environment'}. Define it again, or wait until the vendor "
            "ends the session."
        )
    resource = QRMIResource(opened.qpu, opened.type, environment, token=opened.token)
    try:
        yield resource
    finally:
        resource.close()
