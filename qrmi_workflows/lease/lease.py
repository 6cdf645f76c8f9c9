"""The lease: the right to use a QPU, from acquire to release, held by one process for one stage.

`open_lease` creates it. It runs tasks, and offers the vendors' programming interfaces over them.
What only tasks need is imported inside functions: a supervisor holds leases, but runs no tasks.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, Unpack

from qrmi_workflows.errors import LeaseError
from qrmi_workflows.lease.allowances import find_allowance
from qrmi_workflows.lease.at_exit import exit_deferred, forget_at_exit
from qrmi_workflows.lease.ending import finish, may_rerun
from qrmi_workflows.lease.fallback import Fallback
from qrmi_workflows.lease.fan_out import cancel_all, in_order
from qrmi_workflows.lease.front_ends import FrontEnds
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.lease.killwait import KillWait, current_kill_wait
from qrmi_workflows.lease.shared import lease_environment
from qrmi_workflows.lease.task_options import TaskOptions
from qrmi_workflows.tasks.limits import Coalesce

if TYPE_CHECKING:
    from qrmi_workflows.budgets.allowance import Allowance
    from qrmi_workflows.client.targets import QPUTarget
    from qrmi_workflows.journal.cost import Amount
    from qrmi_workflows.journal.journal import Journal
    from qrmi_workflows.journal.step import Step
    from qrmi_workflows.payloads import Payload, PayloadLike
    from qrmi_workflows.results import QuantumResult
    from qrmi_workflows.tasks.future import TaskFuture
    from qrmi_workflows.tasks.pool import TaskPool
    from qrmi_workflows.tasks.run import TaskRun

__all__ = ["Lease"]


class Lease(FrontEnds):
    """The right to use one QPU; created by `open_lease`, a context manager that releases it.

    Attributes:
        qpu: The QPU's name.
        type: QRMI's resource type.
        adopted: Whether another process owns the lease; then `release` leaves it open.
        resource: QRMI's handle to the QPU under this lease.
        held: The QPU and its acquisition; leases of other steps may share it (see `for_step`).
        coalesce: The limits within which its payloads share tasks by default; `None`: they do not.
        budget: What the tasks of its job may take in total (`1000 shots`), if that is limited.
        fallback: The QPUs that its tasks move to if this one goes away, if any.
    """

    def __init__(
        self,
        held: HeldQPU,
        *,
        step: str | None = None,
        shares: bool = False,
        coalesce: Coalesce | None = None,
        budget: str | None = None,
    ) -> None:
        self.held = held
        self.coalesce = coalesce
        self.budget = budget
        self.fallback: Fallback | None = None
        self.qpu = held.qpu.name
        self.type = held.qpu.type
        self.adopted = held.is_adopted
        self.resource = held.resource
        self._shares = shares
        self._step_name = step
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
    def _journal(self) -> Journal:
        from qrmi_workflows.journal.journal import Journal  # many leases are for other processes

        return Journal()

    @functools.cached_property
    def step(self) -> Step:
        """The step whose tasks run under the lease, as the journal knows it."""
        name = self._step_name
        return self._journal.step(name) if name else self._journal.this_step()

    def for_step(self, name: str) -> Lease:
        """Return a lease on the same QPU for another step; releasing it leaves this one open."""
        lease = Lease(self.held, step=name, shares=True, coalesce=self.coalesce, budget=self.budget)
        lease.fallback = self.fallback
        return lease

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
            BudgetError: Less than the task would take is left of a budget; nothing was submitted.
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
                (`"fail"` or `"resubmit"`). `coalesce`: whether the payload may share a task with
                others that wait for a lane at the same time, or the limits for that (`Coalesce`);
                by default as `open_lease` was told. `on_move`: if the lease has a fallback, called
                with the payload, the name of the next QPU and its target (the vendor's JSON) when
                the task moves; returns the payload for that QPU, always the same one.

        Returns:
            A `concurrent.futures.Future` of the result.

        Raises:
            PayloadError: The payload is not valid, or cannot run on this QPU (see `check`).
            RequestError: The limits are not valid.
        """
        run = self._task_run(payload, shots=shots, **options)
        with self._lock:  # otherwise `release` might close the pool before the task is in it
            return self._open_pool().submit(run)

    def _task_run(
        self, payload: PayloadLike, *, shots: int | None, **options: Unpack[TaskOptions]
    ) -> TaskRun:
        if self.fallback is not None:
            return self.fallback.task_run(
                self, payload, shots=shots, step=self.step, options=options
            )
        from qrmi_workflows.lease.task_runs import task_run

        return task_run(
            self.held,
            self.check(payload, shots=shots),
            step=self.step,
            allowance=self._allowance,
            coalesce=self._limits(options.get("coalesce")),
            options=options,
        )

    @functools.cached_property
    def _allowance(self) -> Allowance | None:
        return find_allowance(self.held, self.budget)

    def estimate(self, payload: PayloadLike, *, shots: int | None = None) -> Amount:
        """Return what a task is expected to take: shots and QPU seconds, as far as known.

        Nothing is submitted. The figures are those of earlier tasks in this user's journal, if
        there are enough, else the vendor's; `Amount.origin` says which.

        Raises:
            PayloadError: The payload is not valid, or cannot run on this QPU (see `check`).
        """
        from qrmi_workflows.lease.task_runs import estimate

        return estimate(self.held, self.check(payload, shots=shots))

    def _limits(self, coalesce: bool | Coalesce | None) -> Coalesce | None:
        return self.coalesce if coalesce is None else Coalesce.of(coalesce)

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

        With `coalesce=True`, or limits (`Coalesce`), payloads whose options and shots agree go as
        few tasks of many PUBs, each with a result of its own. They are submitted together, so no
        task starts before the last payload is known to be valid.
        """
        futures: list[TaskFuture] = []
        try:
            if self._limits(options.get("coalesce")) is not None:
                runs = [self._task_run(payload, shots=shots, **options) for payload in payloads]
                with self._lock:
                    return in_order(self._open_pool().submit_all(runs), self.qpu)
            for payload in payloads:
                futures.append(self.submit(payload, shots=shots, **options))
        except BaseException:
            cancel_all(futures)
            raise
        return in_order(futures, self.qpu)

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
        from qrmi_workflows.client.targets import require_fit
        from qrmi_workflows.payloads import to_payload

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
        known = None if refresh else self._target
        return (known or self._refreshed_target()).text

    def _refreshed_target(self) -> QPUTarget:
        from qrmi_workflows.client.targets import fetch_target

        self._target = fetch_target(self.held.qpu, resource=self.resource, refresh=True)
        return self._target

    @functools.cached_property
    def _target(self) -> QPUTarget | None:
        from qrmi_workflows.client.targets import cached_target

        return cached_target(self.held.qpu)

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
        variables = lease_environment([self.held], budget=self.budget)
        return variables if self.fallback is None else variables | self.fallback.environment()

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
                if self.fallback is None:
                    self.held.release()
                else:
                    self.fallback.release(self)
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
        from qrmi_workflows.tasks.pool import TaskPool

        self._pool = self._own_pool() or TaskPool(self.held.lanes, self.held.room)
        return self._pool
