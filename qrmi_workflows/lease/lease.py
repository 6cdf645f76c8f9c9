"""The lease: the right to use a QPU, from acquire to release, held by one process for one stage.

`open_lease` creates it. It runs tasks, and offers the vendors' programming interfaces over them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypedDict, Unpack

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.targets import QPUTarget, cached_target, fetch_target, require_fit
from qrmi_workflows.config.variables import OnStop
from qrmi_workflows.errors import LeaseError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.step import Step
from qrmi_workflows.lease.at_exit import exit_deferred, forget_at_exit
from qrmi_workflows.lease.ending import finish, may_rerun
from qrmi_workflows.lease.held import HeldQPU, lease_environment
from qrmi_workflows.lease.killwait import KillWait, current_kill_wait
from qrmi_workflows.payloads import Payload, PayloadLike, to_payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks.pool import TaskFuture, TaskPool
from qrmi_workflows.tasks.progress import show_progress
from qrmi_workflows.tasks.run import OnAmbiguous, TaskRun
from qrmi_workflows.vendors.registry import find_frontend

if TYPE_CHECKING:
    from pulser import Sequence
    from pulser.backend import BackendConfig
    from pulser.backend.remote import RemoteBackend, RemoteConnection
    from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2

__all__ = ["Lease", "TaskOptions"]


class TaskOptions(TypedDict, total=False):
    """Options of a task (see `Lease.submit`)."""

    on_state: Callable[[str, TaskState], None] | None
    on_stop: OnStop | None
    on_ambiguous: OnAmbiguous


class Lease:
    """The right to use one QPU; created by `open_lease`, a context manager that releases it.

    Attributes:
        qpu: The QPU's name.
        type: QRMI's resource type.
        adopted: Whether another process owns the lease; then `release` leaves it open.
        resource: QRMI's handle to the QPU under this lease.
        held: The QPU and its acquisition; leases of other steps may share it (see `for_step`).
    """

    def __init__(self, held: HeldQPU, *, step: str | None = None, shares: bool = False) -> None:
        self.held = held
        self.qpu = held.qpu.name
        self.type = held.qpu.type
        self.adopted = held.is_adopted
        self.resource = held.resource
        self._shares = shares
        self._step_name = step
        self._journal = Journal()
        self._released = False
        self._pool: TaskPool | None = None
        # Reentrant, because a signal handler may release the lease in the middle of a submission.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        how = "released" if self._released else "adopted" if self.adopted else "held"
        return f"<Lease of {self.qpu!r} ({self.type}), {how}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled; say how another process can adopt the lease."""
        raise TypeError(
            f"{self!r} cannot be pickled: it holds credentials and cannot leave its process. From "
            "an app, return the results instead. A child process adopts the lease with "
            "`open_lease()` if its environment contains `lease.environment()`."
        )

    @functools.cached_property
    def step(self) -> Step:
        """The step whose tasks run under the lease, as the journal knows it."""
        name = self._step_name
        return self._journal.step(name) if name else self._journal.this_step()

    def for_step(self, name: str) -> Lease:
        """Return a lease on the same QPU for another step; releasing it leaves this one open."""
        return Lease(self.held, step=name, shares=True)

    def run(
        self, payload: PayloadLike, *, shots: int | None = None, **options: Unpack[TaskOptions]
    ) -> QuantumResult:
        """Run one task and return its result (see `submit`).

        If the step is stopped (SIGTERM, Ctrl-C), the task is cancelled or left for a rerun, as
        `on_stop` says. If another exception interrupts the call, the task is cancelled.

        Raises:
            PayloadError: The payload is not valid, or cannot run on this QPU (see `check`).
            TaskError: The task ended without a result.
            ResourceError: The vendor rejected a request, or failed for too long.
            JournalError: The journal cannot be used; nothing was submitted.
        """
        future = self.submit(payload, shots=shots, **options)
        try:
            return future.result()
        except BaseException as error:
            # If the task itself has failed, there is nothing to cancel.
            ended = future.cancel() if may_rerun(error) else future.cancel_task()
            if ended and not future.cancelled():
                future.wait(self._seconds_to_stop(current_kill_wait()))
            raise

    def submit(
        self, payload: PayloadLike, *, shots: int | None = None, **options: Unpack[TaskOptions]
    ) -> TaskFuture:
        """Submit one task; it starts as soon as one of the QPU's lanes is free.

        Args:
            payload: A payload, its content, or the path of its file.
            shots: A number of shots to use instead of the payload's own.
            **options: `on_state`: called with the task's id and each of its states. `on_stop`:
                whether the task is cancelled when the step is stopped (`"cancel"`), or left for a
                rerun (`"leave"`); by default what `$QPU_ON_STOP` says, else `"cancel"`.
                `on_ambiguous`: what to do if it is not known whether the vendor accepted the task
                (`"fail"` or `"resubmit"`).

        Returns:
            A `concurrent.futures.Future` of the result.

        Raises:
            PayloadError: The payload is not valid, or cannot run on this QPU (see `check`).
        """
        valid = self.check(payload, shots=shots)
        run = TaskRun(
            resource=self.resource,
            resource_type=self.type,
            identity=self.held.qpu.identity,
            payload=valid,
            step=self.step,
            usage=self.held.usage_path(),
            default_on_stop=self.held.on_stop,
            before_submission=self.held.note_submission,
            renew=self.held.renew,
            deletions=self.held.deletions,
            **options,
        )
        with self._lock:  # otherwise `release` might close the pool before the task is in it
            return self._open_pool().submit(run)

    def map(
        self,
        payloads: Iterable[PayloadLike],
        *,
        shots: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[QuantumResult]:
        """Run many tasks, as many at once as the QPU has lanes; yield results in order.

        All are submitted before the first result is awaited. If one fails, or a payload is not
        valid, the others are cancelled. Progress is shown as a bar on a terminal, and in log lines
        elsewhere.
        """
        futures: list[TaskFuture] = []
        try:
            for payload in payloads:
                futures.append(self.submit(payload, shots=shots, **options))
        except BaseException:
            _cancel_all(futures)
            raise
        return self._in_order(futures)

    def _in_order(self, futures: list[TaskFuture]) -> Iterator[QuantumResult]:
        try:
            with show_progress(len(futures), self.qpu) as advance:
                for future in futures:
                    future.add_done_callback(lambda _: advance())
                for future in futures:
                    yield future.result()
        except Exception as error:
            if not may_rerun(error):
                for future in futures:
                    future.cancel_task()
            raise
        finally:
            _cancel_all(futures)

    def lane(self) -> AbstractContextManager[None]:
        """Hold one of the QPU's lanes, for code that uses the QPU other than by this lease's tasks.

        The processes that share the lease never hold more lanes than the QPU has. Tasks need no
        `with lease.lane()`: each takes a lane on its own, or shares the one held here.
        """
        return self.held.lanes.hold_for_call()

    def check(self, payload: PayloadLike, *, shots: int | None = None) -> Payload:
        """Check a payload, and return it as `submit` would send it, without sending it.

        The payload is checked against the QPU's target if the target is in the cache (`qpu target`,
        `Lease.target`) and at most a few hours old. Before it refuses the payload, it is fetched
        again.

        Raises:
            PayloadError: The payload is invalid, for another vendor, or cannot run on this QPU.
        """
        valid = to_payload(payload, shots=shots, resource_type=self.type)
        valid.require_type(self.qpu, self.type)
        require_fit(valid, self.qpu, self._target, self._refreshed_target)
        return valid

    def target(self, *, refresh: bool = False) -> str:
        """Return the QPU's target, which describes its capabilities, as the vendor's JSON.

        Args:
            refresh: Ask the vendor even if the cache has a recent target.

        Raises:
            ResourceError: The vendor rejected the request, or failed.
        """
        if refresh or self._target is None:
            self._target = fetch_target(self.held.qpu, resource=self.resource, refresh=refresh)
        return self._target.text

    def _refreshed_target(self) -> QPUTarget:
        self._target = fetch_target(self.held.qpu, resource=self.resource, refresh=True)
        return self._target

    @functools.cached_property
    def _target(self) -> QPUTarget | None:
        return cached_target(self.held.qpu)

    def sampler(self, options: Mapping[str, Any] | None = None) -> BaseSamplerV2:
        """Return Qiskit's sampler (V2) for this QPU; its tasks are journaled like all others.

        Args:
            options: As QRMI's `SamplerV2` takes them: `default_shots` (1024) and `run_options`.

        Raises:
            PayloadError: The QPU has no sampler, or no such option.
            ConfigError: The front end's package is not installed.
        """
        sampler: BaseSamplerV2 = self.frontend("sampler", options)
        return sampler

    def estimator(self, options: Mapping[str, Any] | None = None) -> BaseEstimatorV2:
        """Return Qiskit's estimator (V2) for this QPU; its tasks are journaled like all others.

        Args:
            options: As QRMI's `EstimatorV2` takes them: `default_precision` (1/64) and
                `run_options`.

        Raises:
            PayloadError: The QPU has no estimator, or no such option.
            ConfigError: The front end's package is not installed.
        """
        estimator: BaseEstimatorV2 = self.frontend("estimator", options)
        return estimator

    def pulser_connection(self) -> RemoteConnection:
        """Return Pulser's connection to this QPU, which lists the devices to build sequences for.

        Raises:
            PayloadError: The QPU runs no sequences.
            ConfigError: The front end's package is not installed.
        """
        connection: RemoteConnection = self.frontend("pulser_connection")
        return connection

    def pulser_backend(
        self, sequence: Sequence, *, config: BackendConfig | None = None
    ) -> RemoteBackend:
        """Return Pulser's backend for a sequence; its tasks are journaled like all others.

        Args:
            sequence: A sequence for a device that the QPU offers.
            config: As Pulser's `QPUBackend` takes it.

        Raises:
            PayloadError: The QPU runs no sequences, or the sequence is for another device.
            ConfigError: The front end's package is not installed.
        """
        backend: RemoteBackend = self.frontend("pulser_backend", sequence, config)
        return backend

    def frontend(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return one of the front ends that the QPU's vendor offers, by its name.

        The methods above cover the vendors in this package; a vendor from another package may offer
        other front ends.

        Args:
            name: The front end's name (`sampler`).
            *args: The front end's own arguments.
            **kwargs: The front end's own arguments.

        Raises:
            PayloadError: The QPU has no such front end.
            ConfigError: The front end's package is not installed.
        """
        make = find_frontend(name, qpu=self.qpu, resource_type=self.type)
        return make(self, *args, **kwargs)

    def await_tasks(self) -> None:
        """Wait until all submitted tasks have ended; leaving a `with` block normally does so."""
        if (pool := self._own_pool()) is not None:
            pool.drain()

    def cancel_tasks(self) -> None:
        """Cancel all unfinished tasks, even if `$QPU_ON_STOP` would leave them for a rerun."""
        if (pool := self._own_pool()) is not None:
            pool.cancel_tasks()

    def environment(self) -> dict[str, str]:
        """Return the variables that let a child process adopt this lease; they hold credentials."""
        return lease_environment([self.held])

    def release(self) -> None:
        """Release the lease, once; an adopted lease stays open for its owner.

        Tasks in flight are stopped first; leaving a `with` block normally awaits them instead.

        Raises:
            LeaseError: The release failed.
        """
        # Deferred from the start: a job's processes may get SIGTERM twice, from the scheduler and
        # from their supervisor. The second one must not fall between the mark that the lease is
        # released and the release.
        with exit_deferred():
            with self._lock:
                if self._released:
                    return
                self._released = True
            forget_at_exit(self)
            pool, budget = self._own_pool(), current_kill_wait()
            try:
                if pool is not None:
                    pool.close(self._seconds_to_stop(budget))
            finally:
                self._release_qpu(pool, budget)

    def _seconds_to_stop(self, budget: KillWait) -> float:
        return budget.adopted_tasks if self.adopted else budget.tasks

    def _release_qpu(self, pool: TaskPool | None, budget: KillWait) -> None:
        try:
            if not self._shares:
                self.held.release()
        finally:  # last, so that a journal whose file system hangs cannot keep the lease open
            if pool is not None:
                self._journal.close(self.step, seconds=budget.record / 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        finish(self, error)

    def _own_pool(self) -> TaskPool | None:
        return None if self._pool is None or self._pool.is_inherited else self._pool

    def _open_pool(self) -> TaskPool:
        if self._released or self.held.released:
            raise LeaseError(
                f"the lease of QPU {self.qpu!r} has been released. Open another.", self.qpu
            )
        self._pool = self._own_pool() or TaskPool(self.held.lanes)
        return self._pool


def _cancel_all(futures: Iterable[TaskFuture]) -> None:
    for future in futures:
        future.cancel()
