"""The lease: the right to use a QPU, from acquire to release, held by one process for one stage.

`open_lease` adopts what the job's environment already carries (the site's SPANK plugin or an outer
`qpu lease exec` acquired it, and releases it), or acquires from `qrmi_config.json` and releases on
return, exception, SIGTERM and exit.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, overload

from qrmi_workflows.config import find_config, load_qpus, select_qpu
from qrmi_workflows.environment import JobQPU, describe_job, read_job, write_job
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError, UnknownQPUError
from qrmi_workflows.resource import QRMIResource, QuantumResource, TaskState
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks import PayloadLike, run_task, to_payload

__all__ = ["Lease", "LeaseSet", "find_qpu", "open_lease"]


class Lease:
    """The right to use one QPU. Made by `open_lease`; a context manager that releases it.

    Attributes:
        qpu: The QPU's name.
        type: QRMI's resource type.
        adopted: Whether another process owns the lease: then `release` leaves it open.
        resource: The QPU under this lease, as QRMI gives it.
    """

    def __init__(self, held: JobQPU, resource: QuantumResource, *, adopted: bool) -> None:
        self.qpu = held.name
        self.type = held.type
        self.adopted = adopted
        self.resource = resource
        self._held = held
        self._released = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        how = "adopted" if self.adopted else "released" if self._released else "held"
        return f"<Lease of {self.qpu!r} ({self.type}), {how}>"

    def run(
        self,
        payload: PayloadLike,
        *,
        shots: int | None = None,
        on_state: Callable[[str, TaskState], None] | None = None,
    ) -> QuantumResult:
        """Run one task and return its result.

        Args:
            payload: A payload, the content of one, or the path of its file.
            shots: Another number of shots than the payload's own.
            on_state: Called with the task's id and each new state of it.

        Raises:
            PayloadError: The payload is not valid, or for another vendor.
            TaskError: The task ended without a result.
            ResourceError: The vendor refused or failed.
        """
        valid = to_payload(payload)
        valid.require_type(self.qpu, self.type)
        if shots is not None:
            valid = valid.with_shots(shots)
        return run_task(self.resource, valid, resource_type=self.type, on_state=on_state)

    def target(self) -> str:
        """Return what the QPU can do, as the vendor's JSON: for IBM configuration and properties.

        Raises:
            ResourceError: The vendor refused or failed.
        """
        return str(self.resource.target().value)

    def environment(self) -> dict[str, str]:
        """Return the variables that let a child process adopt this lease; they hold credentials."""
        return _environment([self])

    def release(self) -> None:
        """Release the lease, once; leave it open when another process owns it.

        Raises:
            LeaseError: The vendor did not take it back.
        """
        with self._lock:
            if self._released:
                return
            self._released = True
        _forget(self)
        if self.adopted:
            return
        try:
            with _exit_put_off():
                self.resource.release(self._held.token or "")
        except QPUError as error:
            raise LeaseError(
                f"the lease of QPU {self.qpu!r} could not be released: {error} The vendor ends it "
                "when its time to live is over.",
                self.qpu,
                retryable=True,
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


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
        return _environment(self.values())

    def release(self) -> None:
        """Release all, in the reverse order of acquiring, whatever one of them raises."""
        with ExitStack() as stack:
            for lease in self.values():
                stack.callback(lease.release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@overload
def open_lease(
    qpu: str | None = None,
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Lease: ...
@overload
def open_lease(
    qpu: list[str],
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
) -> LeaseSet: ...
def open_lease(
    qpu: str | list[str] | None = None,
    *,
    config: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Lease | LeaseSet:
    """Open the lease of a QPU: adopt the one that this job carries, or acquire it.

    Args:
        qpu: The QPU's name; not needed when the job carries, or the file defines, exactly one.
            A list of names opens all of them, or none.
        config: The path of `qrmi_config.json`; found by `find_config` when it is `None`.
        environ: The job's environment; this process's when it is `None`.

    Returns:
        A lease, or for a list a `LeaseSet`: context managers that release.

    Raises:
        UnknownQPUError: No QPU of that name is defined here.
        ConfigError: There is no usable `qrmi_config.json`.
        LeaseError: The vendor did not grant it.
    """
    path = None if config is None else Path(config)
    environ = os.environ if environ is None else environ
    if not isinstance(qpu, list):
        return _open(find_qpu(qpu, config=path, environ=environ))
    wanted = [find_qpu(name, config=path, environ=environ) for name in qpu]
    with ExitStack() as stack:
        leases = [stack.enter_context(_open(one)) for one in wanted]
        stack.pop_all()
        return LeaseSet(leases)


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


def _open(found: JobQPU) -> Lease:
    adopted = found.token is not None
    resource = QRMIResource(found.name, found.type, found.environment, token=found.token)
    if not adopted:
        found, resource = _acquire(found, resource)
    lease = Lease(found, resource, adopted=adopted)
    if not adopted:
        _remember(lease)
    return lease


def _acquire(found: JobQPU, resource: QRMIResource) -> tuple[JobQPU, QRMIResource]:
    _catch_sigterm()
    try:
        token = resource.acquire()
    except ConfigError:
        raise
    except QPUError as error:
        raise LeaseError(
            f"the QPU {found.name!r} could not be acquired: {error}",
            found.name,
            retryable=error.retryable,
        ) from error
    # Some vendors' handles take the token from their settings alone, so tasks get handles anew.
    held = replace(found, token=token)
    return held, QRMIResource(held.name, held.type, held.environment, token=token)


def _environment(leases: Iterable[Lease]) -> dict[str, str]:
    return describe_job() | write_job(lease._held for lease in leases)


# What this process owns, so that its end, by exit or SIGTERM, releases it.
_owned: list[Lease] = []


def _remember(lease: Lease) -> None:
    _owned.append(lease)


def _forget(lease: Lease) -> None:
    if lease in _owned:
        _owned.remove(lease)


@atexit.register
def _release_owned() -> None:
    for lease in list(_owned):
        lease.release()


def _catch_sigterm() -> None:
    """Make SIGTERM an orderly exit, unless the program has its own way with it."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_on_signal)


_put_off: list[int] | None = None


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    if _put_off is not None:
        _put_off.append(number)
    else:
        sys.exit(128 + number)


@contextmanager
def _exit_put_off() -> Iterator[None]:
    """Let a release finish before SIGTERM ends the process: its deadline bounds it."""
    global _put_off  # a signal's handler belongs to the process
    if threading.current_thread() is not threading.main_thread() or _put_off is not None:
        yield
        return
    arrived: list[int] = []
    _put_off = arrived
    try:
        yield
    finally:
        _put_off = None
    if arrived:
        sys.exit(128 + arrived[0])
