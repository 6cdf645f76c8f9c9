"""The QPUs of a lease that may fall back to others, and the tasks that move between them.

A lease of the next QPU is opened when the first task needs it. The tasks that it has not taken stay
where they are: the decision is made for each of them (see `tasks.moving`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.variables import QPU_MOVE_FILE, fallback_wait_seconds
from qrmi_workflows.errors import (
    LeaseError,
    PayloadError,
    QPUError,
    QPUGoneError,
    RequestError,
    ResourceError,
)
from qrmi_workflows.lease.fallback_plan import (
    FallbackPlan,
    not_for,
    require_one_fits,
    submit_again,
    write_plan,
)
from qrmi_workflows.lease.grants import require_grant
from qrmi_workflows.lease.held import HeldQPU
from qrmi_workflows.tasks.presence import Presence

if TYPE_CHECKING:
    from qrmi_workflows.budgets.allowance import Allowance
    from qrmi_workflows.journal.record import Move
    from qrmi_workflows.journal.step import Step
    from qrmi_workflows.lease.task_options import TaskOptions
    from qrmi_workflows.payloads import Payload, PayloadLike
    from qrmi_workflows.tasks.moving import Leg, MovableRun
    from qrmi_workflows.tasks.run import TaskRun

__all__ = ["Fallback", "Leased"]

logger = logging.getLogger(__name__)


class Leased(Protocol):
    """What `Lease` has, which imports this module."""

    qpu: str
    type: str
    held: HeldQPU

    @property
    def _allowance(self) -> Allowance | None: ...

    def check(self, payload: PayloadLike, *, shots: int | None = None) -> Payload:
        """See `Lease.check`."""

    def target(self, *, refresh: bool = False) -> str:
        """See `Lease.target`."""

    def release(self) -> None:
        """See `Lease.release`."""


@dataclass(slots=True, kw_only=True)
class _Stop:
    """One QPU of the chain.

    Attributes:
        name: Its name in the request.
        found: How to reach it, without a lease; an emulated one does not run yet.
        presence: What is known of it, once it was asked for.
        lease: The lease of it, once it is open.
        has_failed: Whether it is emulated, and its emulator did not start.
    """

    name: str
    found: JobQPU
    presence: Presence | None = None
    lease: Leased | None = None
    has_failed: bool = False

    @property
    def qpu(self) -> JobQPU:
        """How to reach the QPU, with its lease if there is one."""
        return self.found if self.lease is None else self.lease.held.qpu

    @property
    def has_left(self) -> bool:
        """Whether the step has left it, because it had gone."""
        return self.has_failed or (self.presence is not None and self.presence.left is not None)


@dataclass(slots=True)
class Fallback:
    """The QPUs that the tasks of a lease may move to, in order.

    Args:
        plan: The QPUs.
        open_one: Opens a lease of one of them.
    """

    plan: FallbackPlan
    open_one: Callable[[str], Leased]
    _stops: list[_Stop] = field(init=False)
    _patience: float = field(default_factory=fallback_wait_seconds)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _first: int = 0  # the stop whose lease the program holds

    def __post_init__(self) -> None:
        """Note what the step has left before."""
        found = self.plan.found
        self._stops = [_Stop(name=name, found=found[name]) for name in self.plan.all_names]
        for stop in self._stops[: len(self.plan.left)]:
            self._presence(stop).leave("the step has left it")

    # Opening

    def open_first(self) -> Leased:
        """Open a lease of the first QPU that is there.

        Raises:
            LeaseError: None of them is, or the next one needs a job of its own.
        """
        own, failures = len(self.plan.left), list[QPUError]()
        for index in range(own, len(self._stops)):
            if index > own and not self._may_use(index):
                continue
            try:
                lease = self._open(self._stops[index], looks=True)
            except (LeaseError, ResourceError) as error:
                failures.append(self._give_up(index, error))
            else:
                self._first = index
                return lease
        raise self._nothing_left(failures)

    def _give_up(self, index: int, error: QPUError) -> QPUError:
        stop = self._stops[index]
        if is_emulated(stop.name):
            stop.has_failed = True
        else:
            presence = self._presence(stop)
            presence.leave(presence.offline() or error.message)
        logger.warning("QPU %r cannot be used: %s", stop.name, error)
        return error

    def _open(self, stop: _Stop, *, looks: bool = False) -> Leased:
        with self._lock:  # all tasks notice at the same time that their QPU has gone
            if stop.lease is None:
                if looks and stop.found.token is None and not is_emulated(stop.name):
                    self._presence(stop).require()
                stop.lease = self.open_one(stop.name)
                if (own := self._stops[self._first].lease) is not None:
                    stop.lease.held.budget_of = own.held
                stop.presence = Presence(stop.lease.held.resource, self._patience)
            return stop.lease

    def _may_use(self, index: int) -> bool:
        """Return whether this job may use a QPU; an engine is told to submit another job for it."""
        if self._is_granted(index):
            return True
        later = range(index + 1, len(self._stops))
        if QPU_MOVE_FILE in os.environ or not any(map(self._is_granted, later)):
            raise self._submit_again(index, self._why_left(index - 1))
        logger.warning("QPU %r was not granted to this job; left out", self._stops[index].name)
        return False

    def _is_granted(self, index: int) -> bool:
        stop = self._stops[index]
        if is_emulated(stop.name) or stop.lease is not None:
            return True
        try:
            require_grant(stop.name)
        except RequestError:
            return False
        return True

    def _submit_again(self, index: int, reason: str) -> LeaseError:
        for stop in self._stops:
            if stop.lease is not None:
                stop.lease.held.leaves_tasks = True
        names = [stop.name for stop in self._stops]
        return submit_again(names[:index], names[index], names[index + 1 :], reason=reason)

    def _why_left(self, index: int) -> str:
        presence = self._stops[index].presence
        return (presence.left if presence else None) or "it cannot be used"

    def _presence(self, stop: _Stop) -> Presence:
        if stop.presence is None:
            stop.presence = self._new_presence(stop)
        return stop.presence

    def _new_presence(self, stop: _Stop) -> Presence:
        found = stop.qpu
        resource = QRMIResource(found.name, found.type, found.environment, token=found.token)
        return Presence(resource, self._patience)

    def _nothing_left(self, failures: list[QPUError]) -> LeaseError:
        names = [stop.name for stop in self._stops[len(self.plan.left) :]]
        reasons = " ".join(error.message for error in failures)
        return LeaseError(
            f"none of the QPUs {', '.join(names)} can be used: {reasons}", names[0], retryable=True
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that let a child process fall back to the same QPUs."""
        names = [stop.name for stop in self._stops]
        return write_plan(names[: self._first], names[self._first + 1 :])

    def release(self, own: Leased) -> None:
        """Release the QPU of the lease that the program holds, and those of moved tasks.

        Args:
            own: The lease that the program holds.

        Raises:
            LeaseError: A release failed, and not because its QPU has gone.
        """
        others = [stop for stop in self._stops if stop.lease is not None and stop.lease is not own]
        first = self._stops[self._first]
        try:
            for stop in others:
                if stop.lease is not None:
                    stop.lease.release()
        finally:  # last, because it may have gone, and then takes its time
            try:
                own.held.release()
            except LeaseError as error:
                if not first.has_left:
                    raise
                logger.warning("%s", error)  # the step has its results from elsewhere

    # Tasks

    def task_run(
        self,
        lease: Leased,
        payload: PayloadLike,
        *,
        shots: int | None,
        step: Step,
        options: TaskOptions,
    ) -> MovableRun:
        """Return the run of a task that may move.

        Args:
            lease: The lease that the program holds.
            payload: The task's input, for the first of all QPUs.
            shots: As `Lease.submit` takes it.
            step: The step.
            options: As `Lease.submit` takes them.

        Raises:
            PayloadError: The payload is not valid, or can run on none of the QPUs to fall back to.
        """
        from qrmi_workflows.lease.task_runs import run_fields
        from qrmi_workflows.tasks.moving import MovableRun

        first, adapt = self._stops[0], options.get("on_move")
        if self._first == 0:
            valid = lease.check(payload, shots=shots)
            fields = run_fields(
                lease.held, valid, step=step, allowance=lease._allowance, options=options
            )
        else:
            valid = self._check_for(first, payload, shots)
            fields = self._bare_fields(first, valid, step) | {
                name: options[name]
                for name in ("on_state", "on_stop", "on_ambiguous")
                if name in options
            }
        if adapt is None:
            later = [stop for stop in self._stops[self._first + 1 :] if stop.lease is None]
            require_one_fits(valid, [stop.found for stop in later])
        return MovableRun(
            **fields,
            presence=self._presence(first),
            follows=partial(self._follows, 0, step),
            chain=self,
            adapt=adapt,
        )

    def _check_for(self, stop: _Stop, payload: PayloadLike, shots: int | None) -> Payload:
        from qrmi_workflows.payloads import to_payload

        valid = to_payload(payload, shots=shots, resource_type=stop.found.type)
        valid.require_type(stop.name, stop.found.type)
        return valid

    def _follows(self, index: int, step: Step, move: Move) -> bool:
        found = self._find(index, move)
        if found is None or is_emulated(self._stops[found].name):
            return False  # the QPU itself may be back, and nothing emulated stands for its result
        from qrmi_workflows.journal.record import RecordState as _State

        records = step.find(move.to_digest, qpu=move.to_qpu, identity=move.to_identity)
        return any(record.state not in (_State.CLAIMED, _State.FAILED) for record in records)

    def _find(self, index: int, move: Move) -> int | None:
        for later in range(index + 1, len(self._stops)):
            qpu = self._stops[later].qpu
            if (qpu.name, qpu.identity) == (move.to_qpu, move.to_identity):
                return later
        return None

    def later_leg(self, task: MovableRun, leg: Leg, move: Move) -> Leg:
        """See `Chain.later_leg`."""
        index = self._find(leg.stop, move)
        if index is None:
            raise RuntimeError(f"QPU {move.to_qpu!r} is not in the chain")
        stop, presence = self._stops[index], None
        if not stop.has_left:
            try:
                require_grant(stop.name)
                self._open(stop, looks=True)
            except RequestError as error:  # it is there, and another job may get it
                presence = self._new_presence(stop)
                presence.leave(error.message)
            except (LeaseError, ResourceError) as error:
                self._give_up(index, error)
        # Without a lease, too, what it has is awaited.
        return self._leg(task, index, self._adapted(task, stop), move, presence)

    def next_leg(self, task: MovableRun, leg: Leg, reason: str, error: QPUError) -> Leg:
        """See `Chain.next_leg`."""
        self._presence(self._stops[leg.stop]).leave(reason)
        failures, unfit = [error], list[PayloadError]()
        for index in range(leg.stop + 1, len(self._stops)):
            stop = self._stops[index]
            if stop.has_left or not self._may_use(index):
                continue
            try:
                self._open(stop, looks=True)
                return self._leg(task, index, self._adapted(task, stop), None)
            except PayloadError as refused:
                unfit.append(not_for(stop.name, refused))
            except (LeaseError, ResourceError) as gone:
                failures.append(self._give_up(index, gone))
        name = self._stops[leg.stop].name
        if unfit:
            raise PayloadError(
                f"QPU {name!r} has gone ({reason.removesuffix('.')}), and the task cannot move: "
                f"{unfit[0]}"
            ) from error
        others = " ".join(each.message for each in failures[1:])
        raise QPUGoneError(
            f"QPU {name!r} has gone: {reason.removesuffix('.')}. The task was not run there, and "
            f"no QPU is left to fall back to. {others}".rstrip(),
            name, "status", retryable=True, had_no_effect=True,
        ) from error  # fmt: skip

    def _adapted(self, task: MovableRun, stop: _Stop) -> Payload:
        """Return a task's payload for a QPU: transpiled again if the program can do that."""
        if task.adapt is None:
            if stop.lease is None:
                return task.payload
            with suppress(QPUError):
                stop.lease.target()  # the payload is checked against it
            return stop.lease.check(task.payload)
        adapted = task.adapt(task.payload, stop.name, self._target(stop))
        return (
            self._check_for(stop, adapted, None)
            if stop.lease is None
            else stop.lease.check(adapted)
        )

    def _target(self, stop: _Stop) -> str:
        if stop.lease is not None:
            return stop.lease.target()
        from qrmi_workflows.client.targets import fetch_target

        return fetch_target(stop.qpu, resource=self._presence(stop).resource).text

    def _leg(
        self,
        task: MovableRun,
        index: int,
        payload: Payload,
        move: Move | None,
        presence: Presence | None = None,
    ) -> Leg:
        from qrmi_workflows.lease.task_runs import run_fields
        from qrmi_workflows.tasks.moving import Leg
        from qrmi_workflows.tasks.run import TaskRun

        stop = self._stops[index]
        options: TaskOptions = {
            "on_state": task.relay,
            "on_stop": task.on_stop,
            "on_ambiguous": task.on_ambiguous,
        }
        if stop.lease is None:
            fields = self._bare_fields(stop, payload, task.step) | dict(options)
        else:
            held, allowance = stop.lease.held, stop.lease._allowance
            fields = run_fields(held, payload, step=task.step, allowance=allowance, options=options)
            fields["default_on_stop"] = lambda: task.on_stop or held.on_stop()
        presence = presence or self._presence(stop)
        run = TaskRun(
            **fields,
            stop=task.stop,
            presence=presence,
            moved_from=move,
            follows=partial(self._follows, index, task.step),
        )
        return Leg(stop=index, run=run, lane=self._lane(stop, run, presence))

    def _lane(self, stop: _Stop, run: TaskRun, presence: Presence) -> Any:
        from qrmi_workflows.tasks.moving import LaneStop

        if stop.lease is None or presence.left is not None:
            return nullcontext()
        return stop.lease.held.lanes.hold_for_task(LaneStop(run.stop, presence))

    def _bare_fields(self, stop: _Stop, payload: Payload, step: Step) -> dict[str, Any]:
        """Return the fields of the run of a task that a QPU without a lease may have."""
        qpu = stop.qpu
        return {
            "resource": self._presence(stop).resource,
            "resource_type": qpu.type,
            "identity": qpu.identity,
            "payload": payload,
            "step": step,
        }
