"""Open leases: adopt what this job carries, or acquire.

`open_lease` adopts what the job's environment already carries (the site's SPANK plugin or an outer
`qpu lease exec` acquired it, and releases it), or acquires from `qrmi_config.json` and releases on
return, exception, SIGTERM and exit.
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

from qrmi_workflows.acquire import find_qpu
from qrmi_workflows.config import find_config
from qrmi_workflows.environment import JobQPU
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.exits import at_end, beyond_signals, exit_put_off, sigterm_exits
from qrmi_workflows.holding import Holding, environment_of
from qrmi_workflows.journal import STEP_VARIABLE
from qrmi_workflows.lease import Lease, leave
from qrmi_workflows.reap import reap

__all__ = ["LeaseSet", "open_lease"]

logger = logging.getLogger(__name__)

_REAP_SECONDS = 3.0  # what another lease, of a vendor that is silent, may cost this one


class LeaseSet(Mapping[str, Lease]):
    """Leases of several QPUs in one job, by name; a context manager that releases all."""

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
        return environment_of(lease.holding for lease in self.values())

    def await_tasks(self) -> None:
        """Wait for the end of all that was submitted; leaving a `with` block in order does so."""
        for lease in self.values():
            lease.await_tasks()

    def release(self) -> None:
        """Release all, and at once: a vendor who is silent holds up no other's within KillWait.

        Raises:
            LeaseError: One of the vendors did not take it back.
        """
        with exit_put_off():
            with ThreadPoolExecutor(max_workers=len(self)) as pool:
                released = [pool.submit(lease.release) for lease in self.values()]
            failed = [error for each in released if (error := each.exception()) is not None]
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
        leave(self, after_error=kind is not None)


@overload
def open_lease(
    qpu: str | None = None,
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    step: str | None = None,
) -> Lease: ...
@overload
def open_lease(
    qpu: list[str],
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    step: str | None = None,
) -> LeaseSet: ...
def open_lease(
    qpu: str | list[str] | None = None,
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    step: str | None = None,
) -> Lease | LeaseSet:
    """Open the lease of a QPU: adopt the one that this job carries, or acquire it.

    Args:
        qpu: The QPU's name; not needed when the job carries, or the file defines, exactly one.
            A list of names opens all of them, or none.
        config: The path of `qrmi_config.json`; found by `find_config` when it is `None`.
        environ: The job's environment; this process's when it is `None`.
        step: The name under which a rerun finds this step's tasks again; when it is `None`
            `$QPU_STEP`, else the Slurm job, else nothing: every run is new.

    Returns:
        A lease, or for a list a `LeaseSet`: context managers that release.

    Raises:
        RequestError: A list that is empty, or names a QPU twice.
        UnknownQPUError: No QPU of that name is defined here.
        ConfigError: There is no usable `qrmi_config.json`.
        LeaseError: The vendor did not grant it.
    """
    path = None if config is None else Path(config)
    environ = os.environ if environ is None else environ
    if not isinstance(qpu, list):
        return _open(find_qpu(qpu, config=path, environ=environ), step, path or _config(environ))
    _require_distinct(qpu)
    wanted = [find_qpu(name, config=path, environ=environ) for name in qpu]
    found = path or _config(environ)
    with ExitStack() as stack:
        leases = [stack.enter_context(_open(one, step, found)) for one in wanted]
        stack.pop_all()
        return LeaseSet(leases)


def _require_distinct(qpus: list[str]) -> None:
    twice = next((name for name in qpus if qpus.count(name) > 1), None)
    if not qpus or twice is not None:
        what = "no QPU is named" if twice is None else f"QPU {twice!r} is named twice"
        raise RequestError(f"{what}: allowed are one or more QPUs, each once. Correct the list.")


def _config(environ: Mapping[str, str]) -> Path | None:
    try:
        return find_config(environ)
    except ConfigError:  # a job whose environment alone defines its QPUs
        return None


def _open(found: JobQPU, step: str | None, config: Path | None) -> Lease:
    sigterm_exits()
    if found.token is not None:
        return Lease(Holding.adopt(found), step=step)
    reap(patience=_REAP_SECONDS)
    return beyond_signals(lambda stop: _acquire(found, step, config, stop), Lease.release)


def _acquire(found: JobQPU, step: str | None, config: Path | None, stop: threading.Event) -> Lease:
    named = step or os.environ.get(STEP_VARIABLE, "")
    lease = Lease(Holding.acquire(found, step=named, config=config, stop=stop), step=step)
    at_end(lease, lease.release)
    return lease
