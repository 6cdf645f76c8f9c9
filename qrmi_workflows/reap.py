"""Release the leases whose process is gone: killed by SIGKILL, or with its node.

It reads the open leases' files, asks this host for processes and the scheduler for jobs, and
releases those whose owner is certainly gone. Safe to run twice, and at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qrmi_workflows.config import load_qpus
from qrmi_workflows.environment import read_job
from qrmi_workflows.errors import ConfigError, DeadlineError, QPUError, SchedulerError
from qrmi_workflows.ledger import OpenLease, only_one, open_leases
from qrmi_workflows.resource import QRMIResource
from qrmi_workflows.schedulers.base import require_success, run_command
from qrmi_workflows.schedulers.slurm import Slurm

__all__ = ["Reaped", "live_jobs", "reap"]

logger = logging.getLogger(__name__)


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


def reap(
    jobs: Callable[[], set[str]] | None = None, *, patience: float | None = None
) -> list[Reaped]:
    """Release this user's orphaned leases; a QPU whose vendor is silent is asked once.

    Args:
        jobs: Returns the ids of the live jobs, for leases of other hosts; those are left alone
            when it is `None`, which costs no question to the scheduler.
        patience: Seconds that a release may take, where that is less than its deadline.

    Returns:
        What became of each orphan.
    """
    reaped: list[Reaped] = []
    silent: dict[str, str] = {}
    for opened in open_leases():
        if _orphaned(opened, jobs):
            with only_one(opened) as ours:
                if ours:
                    reaped.append(_release(opened, silent, patience))
    return reaped


def live_jobs() -> set[str]:
    """Ask Slurm for this user's jobs that have not ended.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    slurm = Slurm()
    listed = slurm.parse_status(require_success(run_command(slurm.status_argv())).stdout)
    return {job for job, (state, _) in listed.items() if not state.final}


def _orphaned(opened: OpenLease, jobs: Callable[[], set[str]] | None) -> bool:
    lives = opened.owner.lives()
    if lives is not None:
        return not lives
    if jobs is None or opened.owner.job is None:
        return False  # only its own host can tell
    try:
        return opened.owner.job not in jobs()
    except SchedulerError as error:
        logger.warning("the scheduler could not be asked for job %s: %s", opened.owner.job, error)
        return False


def _release(opened: OpenLease, silent: dict[str, str], patience: float | None) -> Reaped:
    if reason := silent.get(opened.qpu):
        return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, error=reason)
    try:
        with _resource(opened, patience) as resource:
            resource.release(opened.token)
    except QPUError as error:
        if isinstance(error, DeadlineError):
            silent[opened.qpu] = str(error)
        if not _gone(error):
            return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, error=str(error))
    opened.close(reaped=True)
    return Reaped(lease=opened.lease, qpu=opened.qpu, released=True)


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
