"""Release leases whose process was killed by SIGKILL or died with its node.

The files of open leases name their owners. This host knows its own processes, and the scheduler
knows the jobs on other hosts; a lease is released only if its owner has certainly died, or has left
it. A lease whose tasks a rerun would wait for is not released before they have ended (`wanted`).
Reaping can safely be repeated, or run in several processes at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qrmi_workflows.client.failures import is_session_ended
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.job import read_job
from qrmi_workflows.config.qpus import load_dynamic, load_qpus
from qrmi_workflows.errors import (
    ConfigError,
    DeadlineError,
    QPUError,
    SchedulerError,
    TaskUnknownError,
)
from qrmi_workflows.lease.records import OpenLease, open_leases
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT
from qrmi_workflows.state.locks import try_lock
from qrmi_workflows.state.process import Owner

if TYPE_CHECKING:
    from qrmi_workflows.lease.wanted import RunningTasks

__all__ = ["LiveJobs", "Reaped", "TakeOver", "environment_of", "open_resource", "reap"]

logger = logging.getLogger(__name__)

_ASK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """The outcome of reaping one orphaned lease.

    Attributes:
        lease: The lease's own id.
        qpu: The QPU's name.
        released: Whether it has been released.
        error: Why it could not be released, if so.
        kept: Why it stays open for now, if so: a rerun of a step would wait for its tasks.
    """

    lease: str
    qpu: str
    released: bool
    error: str = ""
    kept: str = ""


LiveJobs = Callable[[str | None], set[str] | None]
"""Returns the ids of a cluster's jobs that may have processes; `None` if they are not known."""


class TakeOver(Protocol):
    """Takes over orphaned leases that would stay open; called with the lease locked."""

    def __call__(self, opened: OpenLease, environment: Mapping[str, str]) -> bool:
        """Take a lease over if it is the one that the caller needs; return whether it is.

        Args:
            opened: The lease.
            environment: The settings of its QPU, without the `NAME_` prefix.
        """


def reap(
    *,
    patience: float | None = None,
    cancel_tasks: bool = False,
    take_over: TakeOver | None = None,
    live_jobs: LiveJobs | None = None,
) -> list[Reaped]:
    """Release this user's orphaned leases; query a silent vendor or scheduler only once.

    Args:
        patience: Seconds that a release, or an answer of the scheduler, may take. Set it where
            reaping is a side job: then all processes together query the scheduler at most once a
            minute. If `None`, each call has its own deadline.
        cancel_tasks: Whether to cancel tasks that are still running, and release their leases.
        take_over: Called for each lease whose tasks are still running.
        live_jobs: Called instead of the scheduler, after the leases have been read.

    Returns:
        One outcome for each orphaned lease that was not taken over.
    """
    reaped: list[Reaped] = []
    reaper = _Reaper(patience, cancel_tasks, take_over)
    # Read all files before querying the scheduler, so that a job that it does not list has ended.
    found = list(open_leases())
    # The scheduler is queried only for owners that are not alive on this host.
    jobs = _Jobs(patience, live_jobs)
    # A reaper that only looks at a lease must not keep it from whoever would take it over.
    limit = time.monotonic() + (patience or 0.0 if take_over else 0.0)
    for opened in found:
        if _is_orphaned(opened, jobs):
            try:
                # Another process may be reaping the same lease; the one with the lock releases it.
                with try_lock(opened.path, limit - time.monotonic()) as is_locked:
                    # It may have been taken over, too, since the file was read.
                    if is_locked and (now := _reload(opened)) is not None:
                        outcome = reaper.release(now)
                        reaped += [] if outcome is None else [outcome]
            except OSError as error:  # the state folder is read-only, say
                reaped.append(_not_released(opened, f"{opened.path}: {error.strerror or error}"))
    return reaped


def _reload(opened: OpenLease) -> OpenLease | None:
    """Read a lease's file again; return `None` if the lease has another owner now."""
    try:
        now = OpenLease.load(opened.path)
    except (FileNotFoundError, ConfigError):
        return None
    return now if (now.owner, now.is_left) == (opened.owner, opened.is_left) else None


class _Jobs:
    """The live jobs of each cluster, queried only once."""

    def __init__(self, patience: float | None, live_jobs: LiveJobs | None) -> None:
        self._patience = patience
        self._ask = live_jobs or self._ask_scheduler
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

    def _ask_scheduler(self, cluster: str | None) -> set[str] | None:
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


def _is_orphaned(opened: OpenLease, jobs: _Jobs) -> bool:
    if opened.is_left:
        return True
    is_alive = opened.owner.is_alive()
    return jobs.have_ended(opened.owner) if is_alive is None else not is_alive


class _Reaper:
    """Releases orphaned leases one after the other."""

    def __init__(
        self, patience: float | None, cancel_tasks: bool, take_over: TakeOver | None
    ) -> None:
        self._patience = patience
        self._cancel_tasks = cancel_tasks
        self._take_over = take_over
        self._silent: dict[str, str] = {}

    def release(self, opened: OpenLease) -> Reaped | None:
        """Release a lease that this process has locked; return `None` if it is taken over."""
        # The site releases its leases itself, and a private emulator has ended with its lease's
        # process.
        if opened.adopted or is_emulated(opened.qpu):
            opened.close(reaped=True)
            return Reaped(lease=opened.lease, qpu=opened.qpu, released=True)
        if reason := self._silent.get(opened.qpu):
            return _not_released(opened, reason)
        from qrmi_workflows.lease.wanted import find_running_tasks  # most processes find no orphans

        try:
            environment = environment_of(opened)
            with open_resource(opened, environment) as resource:
                running = find_running_tasks(
                    opened, resource, environment=environment, seconds=self._patience
                )
                if running is not None and not self._cancel_tasks:
                    return self._keep(opened, environment, running)
                for task_id in running.task_ids if running else ():
                    with suppress(TaskUnknownError):
                        resource.task_stop(task_id)
                resource.release(opened.token, deadline=self._patience)
        except QPUError as error:
            # Further leases of a silent vendor would each wait for the same deadline.
            if isinstance(error, DeadlineError):
                self._silent[opened.qpu] = str(error)
            if not is_session_ended(error):
                return _not_released(opened, str(error))
        opened.close(reaped=True)
        return Reaped(lease=opened.lease, qpu=opened.qpu, released=True)

    def _keep(
        self, opened: OpenLease, environment: Mapping[str, str], running: RunningTasks
    ) -> Reaped | None:
        if self._take_over is not None and self._take_over(opened, environment):
            return None
        return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, kept=str(running))


def _not_released(opened: OpenLease, reason: str) -> Reaped:
    return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, error=reason)


def environment_of(opened: OpenLease) -> Mapping[str, str]:
    """Return the settings of a lease's QPU.

    Raises:
        ConfigError: The QPU is no longer defined.
    """
    if opened.config is not None:
        environment = _defined_environment(opened, Path(opened.config))
    else:
        carried = read_job(os.environ).get(opened.qpu)
        environment = carried.environment if carried else None
    if environment is None:
        raise ConfigError(
            f"QPU {opened.qpu!r} of lease {opened.lease} is no longer defined in "
            f"{opened.config or 'this environment'}. Define it again, or wait until the vendor "
            "ends the session."
        )
    return environment


def _defined_environment(opened: OpenLease, path: Path) -> Mapping[str, str] | None:
    if (definition := load_qpus(path).get(opened.qpu)) is not None:
        return definition.environment
    accounts = [each for each in load_dynamic(path).values() if each.type == opened.type]
    return accounts[0].environment if len(accounts) == 1 else None


@contextmanager
def open_resource(opened: OpenLease, environment: Mapping[str, str]) -> Iterator[QRMIResource]:
    """Open a handle to a lease's QPU, and close its connections afterwards."""
    resource = QRMIResource(opened.qpu, opened.type, environment, token=opened.token)
    try:
        yield resource
    finally:
        resource.close()
