"""The lease: the right to use a QPU, from acquire to release, held by one process for one stage.

`opening` makes it; `holding` is what it holds. Here is what it is for: tasks, and the vendors'
programming interfaces over them.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypedDict, Unpack

from qrmi_workflows.errors import LeaseError
from qrmi_workflows.exits import no_longer_at_end
from qrmi_workflows.holding import Holding, environment_of
from qrmi_workflows.journal import Journal
from qrmi_workflows.lanes import Lanes, TaskFuture
from qrmi_workflows.progress import counted
from qrmi_workflows.resource import TaskState
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.step import Step
from qrmi_workflows.targets import QPUTarget, cached_target, fetch_target
from qrmi_workflows.tasks import OnAmbiguous, OnStop, PayloadLike, TaskRun, to_payload
from qrmi_workflows.vendors import find_frontend

if TYPE_CHECKING:
    from pulser import Sequence
    from pulser.backend import BackendConfig
    from pulser.backend.remote import RemoteBackend, RemoteConnection
    from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2

    from qrmi_workflows.opening import LeaseSet
    from qrmi_workflows.payloads import Payload

__all__ = ["Lease", "TaskOptions", "leave"]

logger = logging.getLogger(__name__)

_STOP_SECONDS = 7.0  # twice, and the release after it, fit into Slurm's KillWait of 30 s


class TaskOptions(TypedDict, total=False):
    """What can be said of a task besides its payload (see `Lease.submit`)."""

    on_state: Callable[[str, TaskState], None] | None
    on_stop: OnStop
    on_ambiguous: OnAmbiguous


class Lease:
    """The right to use one QPU. Made by `open_lease`; a context manager that releases it.

    Attributes:
        qpu: The QPU's name.
        type: QRMI's resource type.
        adopted: Whether another process owns the lease: then `release` leaves it open.
        resource: The QPU under this lease, as QRMI gives it.
        holding: What the lease holds; several leases share it (see `for_step`).
    """

    def __init__(
        self, holding: Holding, *, step: str | None = None, adopted: bool | None = None
    ) -> None:
        self.holding = holding
        self.qpu = holding.qpu.name
        self.type = holding.qpu.type
        self.adopted = holding.adopted if adopted is None else adopted
        self.resource = holding.resource
        self._named = step
        self._journal = Journal()
        self._released = False
        self._lanes: Lanes | None = None
        self._lock = threading.RLock()  # a signal's handler may release within a submission

    def __repr__(self) -> str:
        how = "adopted" if self.adopted else "released" if self._released else "held"
        return f"<Lease of {self.qpu!r} ({self.type}), {how}>"

    def __reduce__(self) -> NoReturn:
        """Say how another process gets at the lease."""
        raise TypeError(
            f"{self!r} cannot be pickled: it holds credentials and stays in its process. From an "
            "app, return its results; another process adopts it (`open_lease`) when its "
            "environment has `lease.environment()`."
        )

    @functools.cached_property
    def step(self) -> Step:
        """The step whose tasks run under the lease, as the journal knows it."""
        return self._journal.step(self._named) if self._named else self._journal.this_step()

    def for_step(self, name: str) -> Lease:
        """Return the same lease for the tasks of another step; releasing that leaves this open."""
        return Lease(self.holding, step=name, adopted=True)

    def run(
        self, payload: PayloadLike, *, shots: int | None = None, **options: Unpack[TaskOptions]
    ) -> QuantumResult:
        """Run one task and return its result (see `submit`).

        Interrupted, it has the task cancelled, or left as `on_stop` says.

        Raises:
            PayloadError: The payload is not valid, or cannot run on this QPU (see `check`).
            TaskError: The task ended without a result.
            ResourceError: The vendor refused or failed.
            JournalError: The journal cannot be used; nothing was submitted.
        """
        future = self.submit(payload, shots=shots, **options)
        try:
            return future.result()
        except BaseException:
            if future.cancel() and not future.cancelled():
                wait([future], timeout=_STOP_SECONDS)
            raise

    def submit(
        self, payload: PayloadLike, *, shots: int | None = None, **options: Unpack[TaskOptions]
    ) -> TaskFuture:
        """Start one task as soon as one of the QPU's lanes is free.

        Args:
            payload: A payload, the content of one, or the path of its file.
            shots: Another number of shots than the payload's own.
            **options: `on_state`: called with the task's id and each new state of it. `on_stop`:
                whether the task is cancelled when the step is stopped (`"cancel"`), or left to a
                rerun (`"leave"`). `on_ambiguous`: what to do when nobody knows whether the vendor
                accepted the task (`"fail"`, `"resubmit"`).

        Returns:
            A `concurrent.futures.Future` of the result.

        Raises:
            PayloadError: The payload is not valid, or cannot run on this QPU (see `check`).
        """
        valid = self.check(payload, shots=shots)
        run = TaskRun(
            resource=self.resource,
            resource_type=self.type,
            payload=valid,
            step=self.step,
            usage=self.holding.usage_path(),
            renew=self.holding.renew,
            **options,
        )
        with self._lock:  # so that nothing is submitted to lanes that `release` has closed
            return self._open_lanes().submit(run)

    def map(
        self,
        payloads: Iterable[PayloadLike],
        *,
        shots: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[QuantumResult]:
        """Run many tasks, as many at once as the QPU has lanes; yield results in their order.

        All are submitted at once. When one fails, or is no valid payload, the others are cancelled.
        A bar on a terminal, or log lines elsewhere, tell how many have ended.
        """
        futures: list[TaskFuture] = []
        try:
            for payload in payloads:
                futures.append(self.submit(payload, shots=shots, **options))
        except BaseException:
            _cancel(futures)
            raise
        return self._in_order(futures)

    def _in_order(self, futures: list[TaskFuture]) -> Iterator[QuantumResult]:
        try:
            with counted(len(futures), self.qpu) as advance:
                for future in futures:
                    future.add_done_callback(lambda _: advance())
                for future in futures:
                    yield future.result()
        finally:
            _cancel(futures)

    def lane(self) -> AbstractContextManager[None]:
        """Hold one of the QPU's lanes, for code that calls the QPU by itself.

        No more than the QPU has are held at once by all processes that share the lease; this
        process's tasks share the one that it holds. Tasks need no such care: each takes a lane.
        """
        return self.holding.gate.call()

    def check(self, payload: PayloadLike, *, shots: int | None = None) -> Payload:
        """Return a payload as `submit` would send it; nothing is sent.

        Whether the QPU can run it is checked against the QPU's target, where that is in the cache
        (`qpu target`, `Lease.target`) and not older than a few hours.

        Raises:
            PayloadError: It is not valid, for another vendor, or cannot run on this QPU.
        """
        valid = to_payload(payload, shots=shots)
        valid.require_type(self.qpu, self.type)
        valid.require_fit(self.qpu, self._target.text if self._target else None)
        return valid

    def target(self, *, refresh: bool = False) -> str:
        """Return what the QPU can do, as the vendor's JSON: for IBM configuration and properties.

        Args:
            refresh: Ask the vendor, also when the cache has a target that is a few hours old.

        Raises:
            ResourceError: The vendor refused or failed.
        """
        if refresh or self._target is None:
            self._target = fetch_target(self.holding.qpu, resource=self.resource, refresh=refresh)
        return self._target.text

    @functools.cached_property
    def _target(self) -> QPUTarget | None:
        return cached_target(self.holding.qpu)

    def sampler(self, options: Mapping[str, Any] | None = None) -> BaseSamplerV2:
        """Return Qiskit's sampler (V2) of this QPU; its tasks are journaled as all others.

        Args:
            options: As QRMI's `SamplerV2` takes them: `default_shots` (1024) and `run_options`.

        Raises:
            PayloadError: The QPU has no sampler, or there is no such option.
            ConfigError: The extra `ibm` is not installed.
        """
        sampler: BaseSamplerV2 = self._frontend("sampler")(self, options)
        return sampler

    def estimator(self, options: Mapping[str, Any] | None = None) -> BaseEstimatorV2:
        """Return Qiskit's estimator (V2) of this QPU; its tasks are journaled as all others.

        Args:
            options: As QRMI's `EstimatorV2` takes them: `default_precision` (1/64) and
                `run_options`.

        Raises:
            PayloadError: The QPU has no estimator, or there is no such option.
            ConfigError: The extra `ibm` is not installed.
        """
        estimator: BaseEstimatorV2 = self._frontend("estimator")(self, options)
        return estimator

    def pulser_connection(self) -> RemoteConnection:
        """Return Pulser's connection to this QPU, which knows the devices to build sequences for.

        Raises:
            PayloadError: The QPU runs no sequences.
            ConfigError: The extra `pasqal` is not installed.
        """
        connection: RemoteConnection = self._frontend("pulser_connection")(self)
        return connection

    def pulser_backend(
        self, sequence: Sequence, *, config: BackendConfig | None = None
    ) -> RemoteBackend:
        """Return Pulser's backend for a sequence; its tasks are journaled as all others.

        Args:
            sequence: For a device that the QPU offers.
            config: As Pulser's `QPUBackend` takes it.

        Raises:
            PayloadError: The QPU runs no sequences, or the sequence is for another device.
            ConfigError: The extra `pasqal` is not installed.
        """
        backend: RemoteBackend = self._frontend("pulser_backend")(self, sequence, config)
        return backend

    def _frontend(self, kind: str) -> Callable[..., Any]:
        return find_frontend(kind, qpu=self.qpu, resource_type=self.type)

    def await_tasks(self) -> None:
        """Wait for the end of all that was submitted; leaving a `with` block in order does so."""
        if (lanes := self._own_lanes()) is not None:
            lanes.drain()

    def environment(self) -> dict[str, str]:
        """Return the variables that let a child process adopt this lease; they hold credentials."""
        return environment_of([self.holding])

    def release(self) -> None:
        """Release the lease, once; leave it open when another process owns it.

        Tasks still in flight are stopped first; leaving a `with` block in order awaits them.

        Raises:
            LeaseError: The vendor did not take it back.
        """
        with self._lock:
            if self._released:
                return
            self._released = True
        no_longer_at_end(self)
        lanes = self._own_lanes()
        try:
            if lanes is not None:
                lanes.close()
        finally:  # also when that is interrupted
            self._give_back(lanes)

    def _give_back(self, lanes: Lanes | None) -> None:
        try:
            if not self.adopted:
                self.holding.give_back()
        finally:  # a journal whose file system hangs keeps no lease
            if lanes is not None:
                self._journal.close(self.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave(self, after_error=kind is not None)

    def _own_lanes(self) -> Lanes | None:
        return None if self._lanes is None or self._lanes.inherited else self._lanes

    def _open_lanes(self) -> Lanes:
        if self._released or self.holding.ended:
            raise LeaseError(
                f"the lease of QPU {self.qpu!r} has been released. Open another.", self.qpu
            )
        self._lanes = self._own_lanes() or Lanes(self.holding.gate)
        return self._lanes


def leave(held: Lease | LeaseSet, *, after_error: bool) -> None:
    """Leave a `with` block: await the tasks, unless it ends by an error, and release."""
    if not after_error:
        try:
            held.await_tasks()
        finally:
            held.release()
        return
    try:
        held.release()
    except LeaseError as failed:  # it must not hide what went wrong before
        logger.warning("%s", failed)


def _cancel(futures: Iterable[TaskFuture]) -> None:
    for future in futures:
        future.cancel()
