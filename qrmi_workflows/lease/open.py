"""Open leases: adopt the one that this job has, or acquire one.

`open_lease` adopts a lease that it finds in the job's environment: the site's SPANK plugin, or an
outer `qpu lease exec`, has acquired it and will release it. Otherwise it acquires a QPU from
`qrmi_config.json`, and releases it on return, exception, SIGTERM and exit.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, overload

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.qpus import find_config
from qrmi_workflows.config.variables import QPU_STEP, on_stop
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.at_exit import (
    exit_deferred,
    exit_on_sigterm,
    release_at_exit,
    run_uninterrupted,
)
from qrmi_workflows.lease.ending import finish
from qrmi_workflows.lease.grants import require_grant
from qrmi_workflows.lease.held import HeldQPU, lease_environment
from qrmi_workflows.lease.killwait import current_kill_wait
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.schedulers.inherited import discard_inherited_leases

__all__ = ["LeaseSet", "open_lease"]

logger = logging.getLogger(__name__)

_REAP_SECONDS = 3.0  # how long a silent vendor of an orphaned lease may delay this one


class LeaseSet(Mapping[str, Lease]):
    """The leases of several QPUs in one job, by name; a context manager that releases them all."""

    def __init__(self, leases: Iterable[Lease]) -> None:
        self._leases = {lease.qpu: lease for lease in leases}

    def __getitem__(self, qpu: str) -> Lease:
        return self._leases[qpu]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leases)

    def __len__(self) -> int:
        return len(self._leases)

    def environment(self) -> dict[str, str]:
        """Return the variables that let a child process adopt these leases."""
        return lease_environment(lease.held for lease in self.values())

    def await_tasks(self) -> None:
        """Wait until all submitted tasks have ended; leaving a `with` block normally does so."""
        for lease in self.values():
            lease.await_tasks()

    def cancel_tasks(self) -> None:
        """Cancel all unfinished tasks, even if `$QPU_ON_STOP` would leave them for a rerun."""
        for lease in self.values():
            lease.cancel_tasks()

    def release(self) -> None:
        """Release all leases in parallel, so that all of them fit into KillWait.

        Raises:
            LeaseError: A release failed.
        """
        with exit_deferred():
            with ThreadPoolExecutor(max_workers=len(self)) as pool:
                releases = [pool.submit(lease.release) for lease in self.values()]
            failed = [error for each in releases if (error := each.exception()) is not None]
        for error in failed[1:]:
            logger.warning("%s", error)
        if failed:
            raise failed[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        finish(self, error)


@overload
def open_lease(
    qpu: str | None = None, *, config: Path | str | None = None, step: str | None = None
) -> Lease: ...
@overload
def open_lease(
    qpu: list[str], *, config: Path | str | None = None, step: str | None = None
) -> LeaseSet: ...
def open_lease(
    qpu: str | list[str] | None = None,
    *,
    config: Path | str | None = None,
    step: str | None = None,
) -> Lease | LeaseSet:
    """Open a lease on a QPU: adopt the one that this job has, or acquire the QPU.

    Args:
        qpu: The QPU's name; may be omitted if the job holds, or the file defines, exactly one. For
            a list of names, all of them are opened, or none.
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
        step: The name under which a rerun finds this step's tasks. If `None`, it is taken from
            `$QPU_STEP`, else from the scheduler's job; without either, every run is a new step.

    Returns:
        A lease, or a `LeaseSet` for a list. Both are context managers that release at the end.

    Raises:
        RequestError: The list is empty, or names a QPU twice; or the scheduler grants the QPU to
            jobs, and has not granted it to this one.
        UnknownQPUError: No QPU of that name is defined here.
        ConfigError: There is no usable `qrmi_config.json`.
        LeaseError: The vendor did not grant it.
    """
    discard_inherited_leases()
    path = None if config is None else Path(config)
    if not isinstance(qpu, list):
        return _open(find_qpu(qpu, config=path), step, path or _find_config())
    _require_distinct(qpu)
    found = [find_qpu(name, config=path) for name in qpu]
    path = path or _find_config()
    # If one cannot be opened, those opened before it are released.
    with ExitStack() as stack:
        leases = [stack.enter_context(_open(each, step, path)) for each in found]
        stack.pop_all()
        return LeaseSet(leases)


def _require_distinct(qpus: list[str]) -> None:
    twice = next((name for name in qpus if qpus.count(name) > 1), None)
    if not qpus or twice is not None:
        what = "no QPU named" if twice is None else f"QPU {twice!r} named twice"
        raise RequestError(f"{what}: must be one or more QPUs, each named once. Correct the list.")


def _find_config() -> Path | None:
    try:
        return find_config()
    except ConfigError:  # a job's environment may define its QPUs without the file
        return None


def _open(found: JobQPU, step: str | None, config: Path | None) -> Lease:
    # These refuse a wrong $QPU_KILL_WAIT, site.toml or $QPU_ON_STOP before anything is acquired or
    # adopted.
    late_seconds = current_kill_wait().command
    this_scheduler()
    on_stop()
    # Before acquiring anything: by default, SIGTERM would end the process immediately.
    exit_on_sigterm()
    if found.token is not None:
        return Lease(HeldQPU.adopt(found, step=_name(step)), step=step)
    require_grant(found.name)
    return run_uninterrupted(
        lambda stop: _acquire(found, step, config, stop),
        Lease.release,
        late_seconds=late_seconds,
    )


def _name(step: str | None) -> str:
    return step or os.environ.get(QPU_STEP, "")


def _acquire(found: JobQPU, step: str | None, config: Path | None, stop: threading.Event) -> Lease:
    name = _name(step)
    # An orphaned lease on an exclusive QPU would block this one until its session ends. One whose
    # tasks are still running is not released, but taken over: with it, they go on.
    orphan = _Orphan(found, name)
    reap(patience=_REAP_SECONDS, take_over=orphan)
    if orphan.taken is not None:
        held = HeldQPU.take_over(found, orphan.taken)
    else:
        held = HeldQPU.acquire(found, step=name, config=config, stop=stop)
    lease = Lease(held, step=step)
    release_at_exit(lease, lease.release)
    return lease


class _Orphan:
    """Takes over one orphaned lease of a QPU, if there is any.

    Args:
        qpu: The QPU.
        step: The step that needs it.
    """

    def __init__(self, qpu: JobQPU, step: str) -> None:
        self._qpu = qpu
        self._step = step
        self.taken: OpenLease | None = None

    def __call__(self, opened: OpenLease, environment: Mapping[str, str]) -> bool:
        """Take a lease over if it is of the same QPU, under the same account."""
        needed = (self._qpu.name, self._qpu.type, self._qpu.environment)
        if self.taken is not None or (opened.qpu, opened.type, environment) != needed:
            return False
        self.taken = opened.take_over(self._step)
        logger.warning(
            "taking over the lease of QPU %r that an earlier run has left: its tasks are still "
            "running",
            opened.qpu,
        )
        return True
