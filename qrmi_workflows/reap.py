"""Release the leases whose process is gone: killed by SIGKILL, or with its node.

It reads the open leases' files, asks this host for processes and the scheduler for jobs, and
releases those whose owner is certainly gone. Safe to run twice, and at once.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config import load_qpus, state_folder
from qrmi_workflows.environment import read_job
from qrmi_workflows.errors import ConfigError, DeadlineError, QPUError, SchedulerError
from qrmi_workflows.ledger import OpenLease, open_leases
from qrmi_workflows.locks import locked_at_once
from qrmi_workflows.owner import Owner
from qrmi_workflows.resource import QRMIResource
from qrmi_workflows.schedulers.base import COMMAND_TIMEOUT
from qrmi_workflows.schedulers.slurm import live_jobs

__all__ = ["Reaped", "reap"]

logger = logging.getLogger(__name__)

_ASK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What became of one orphaned lease.

    Attributes:
        lease: The lease's own id.
        qpu: The QPU's name.
        released: Whether it has been released.
        error: Why not.
    """

    lease: str
    qpu: str
    released: bool
    error: str = ""


def reap(*, patience: float | None = None) -> list[Reaped]:
    """Release this user's orphaned leases; whoever is silent, vendor or scheduler, is asked once.

    Args:
        patience: Seconds that a release may take, and the scheduler's answer: then this is done by
            the way, and the scheduler asked at most once a minute by all such. Without it, each
            has its own deadline.

    Returns:
        What became of each orphan.
    """
    reaped: list[Reaped] = []
    silent: dict[str, str] = {}
    # All are read before the scheduler is asked: a job that it does not list has ended then.
    found = list(open_leases())
    jobs = _Jobs(patience)
    for opened in found:
        if _orphaned(opened.owner, jobs):
            try:
                with locked_at_once(opened.path) as ours:
                    if ours:
                        reaped.append(_release(opened, silent, patience))
            except OSError as error:  # a state folder that may only be read
                reaped.append(_kept(opened, f"{opened.path}: {error.strerror or error}"))
    return reaped


class _Jobs:
    """The jobs that live, as the scheduler says, asked once for each of its clusters."""

    def __init__(self, patience: float | None) -> None:
        self._patience = patience
        self._live: dict[str | None, set[str] | None] = {}

    def have_ended(self, owner: Owner) -> bool:
        """Return whether a process's job has certainly ended."""
        if owner.requeued():
            return True
        if owner.job is None or shutil.which("squeue") is None:
            return False
        if owner.cluster not in self._live:
            self._live[owner.cluster] = self._ask(owner.cluster)
        live = self._live[owner.cluster]
        return live is not None and owner.job not in live

    def _ask(self, cluster: str | None) -> set[str] | None:
        if self._patience is not None and not _first_in(_ASK_SECONDS):
            return None
        try:
            return live_jobs(cluster, timeout=self._patience or COMMAND_TIMEOUT)
        except SchedulerError as error:
            logger.warning("whether jobs of other hosts still hold leases is not known: %s", error)
            return None


def _first_in(seconds: float) -> bool:
    """Return whether nobody asked for so long, and note that somebody does now."""
    asked = state_folder() / "leases" / "asked"
    try:
        if abs(time.time() - asked.stat().st_mtime) < seconds:  # a clock may have been set
            return False
    except FileNotFoundError:
        pass
    with suppress(OSError):
        asked.touch()
    return True


def _orphaned(owner: Owner, jobs: _Jobs) -> bool:
    lives = owner.lives()
    return jobs.have_ended(owner) if lives is None else not lives


def _release(opened: OpenLease, silent: dict[str, str], patience: float | None) -> Reaped:
    if reason := silent.get(opened.qpu):
        return _kept(opened, reason)
    try:
        with _resource(opened, patience) as resource:
            resource.release(opened.token)
    except QPUError as error:
        if isinstance(error, DeadlineError):
            silent[opened.qpu] = str(error)
        if not _gone(error):
            return _kept(opened, str(error))
    opened.close(reaped=True)
    return Reaped(lease=opened.lease, qpu=opened.qpu, released=True)


def _kept(opened: OpenLease, reason: str) -> Reaped:
    return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, error=reason)


def _gone(error: QPUError) -> bool:
    """Tell whether the vendor has ended the session itself."""
    return getattr(error, "status_code", None) in (404, 410)


@contextmanager
def _resource(opened: OpenLease, patience: float | None) -> Iterator[QRMIResource]:
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
    deadlines = {} if patience is None else {"release": patience}
    resource = QRMIResource(
        opened.qpu, opened.type, environment, token=opened.token, deadlines=deadlines
    )
    try:
        yield resource
    finally:
        resource.close()
