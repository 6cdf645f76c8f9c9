"""What runs in a block: its lease, adopted once per worker and lent to each call."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from parsl.executors.execute_task import execute_task

from parsl_ext.qpus import MEMO_KEY
from parsl_ext.steps import stop_variables
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.config.job import read_job
from qrmi_workflows.config.variables import QPU_ATTEMPT, QPU_STEP
from qrmi_workflows.errors import ConfigError, StepMovedError, UnknownQPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.lease.fallback_plan import moved_from
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.open import open_lease
from qrmi_workflows.schedulers.several import qpu_names
from qrmi_workflows.tasks.cancellation import cancel_task
from qrmi_workflows.tasks.costs import settle, unseen
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import registered_type

__all__ = [
    "BlockCall",
    "block_lease",
    "cancel_left_tasks",
    "execute_in_lane",
    "is_lease_app",
    "run_as_step",
]

_MOVE_SECONDS = 2.0

# Parsl passes these on to the function, whether it has the parameters or not.
_OPTIONS = ("parsl_resource_specification", "walltime")
_IS_LEASE_APP = "is_qpu_lease_app"


def block_lease(qpu: str | None = None) -> Lease:
    """Return the lease of this worker's block, which each worker process adopts once.

    In a call of a `qpu_app`, it is for the step that the call is.

    Parameters
    ----------
    qpu : str | None
        The QPU's name, if the block holds several.

    Raises
    ------
    ConfigError
        The block holds no QPU, or it holds several and none is named.
    UnknownQPUError
        The block does not hold this QPU.
    """
    lease, call = _adopt(qpu), _this_call.get()
    return lease if call is None else call.lease(lease)


@functools.cache
def _adopt(qpu: str | None) -> Lease:
    held = _held()
    # A worker must not acquire a lease itself: the scheduler has not granted it the QPU, and a
    # worker may be killed, so nobody would release the lease.
    if not held:
        raise ConfigError(
            "this app needs a QPU, but its block holds none. Use a `QPUSlurmProvider`, or give the "
            "provider `launcher=LeaseLauncher(qpu=…)`."
        )
    if qpu is not None and qpu not in (*held, *moved_from()):
        raise UnknownQPUError(qpu, held, "in this block", "Name one that its provider asks for.")
    if qpu is None and len(held) > 1:
        raise ConfigError(
            f"no QPU named, and this block holds {len(held)}: {', '.join(held)}. Name one: "
            "`@qpu_app(qpu=…)`."
        )
    return open_lease(qpu)


def _held() -> list[str]:
    return [name for name, carried in read_job().items() if carried.token is not None]


def is_lease_app(function: Callable[..., Any]) -> bool:
    """Return whether this is the body of an app whose tasks each take a lane.

    Its call must not hold one as well.
    """
    return bool(getattr(function, _IS_LEASE_APP, False))


def execute_in_lane(buffer: bytes, qpu: str | list[str] | None = None, *, step: str) -> Any:
    """Run a call as a step in a worker, while holding one of the QPU's lanes, or one of each QPU.

    If no QPU is named, it holds a lane of each that the block has.

    Parsl's workers import this function by its name and call it instead of Parsl's own
    `execute_task` (see `QPUExecutor.submit`).
    """
    with ExitStack() as held:
        held.enter_context(run_as_step(step))
        # All calls take the lanes of several QPUs in the same order, so none waits in a circle.
        names = sorted(_held() if qpu is None else qpu_names(qpu))
        for name in names or (None,):  # which says that the block holds none
            held.enter_context(block_lease(name).lane())
        return execute_task(buffer)


class _Call:
    """A call in progress: the leases that it has been lent, for its own step."""

    def __init__(self, step: str, stack: ExitStack) -> None:
        self.step = step
        self._stack = stack
        self._leases: dict[str, Lease] = {}

    def lease(self, block: Lease) -> Lease:
        """Return a lease on the block's QPU for the step."""
        if block.qpu not in self._leases:
            self._leases[block.qpu] = self._stack.enter_context(block.for_step(self.step))
        return self._leases[block.qpu]


_this_call: ContextVar[_Call | None] = ContextVar("_this_call", default=None)


@contextmanager
def run_as_step(step: str) -> Iterator[None]:
    """Run a call as an attempt at a step: its tasks, and those of its children, are the step's."""
    with ExitStack() as stack:
        token = _this_call.set(_Call(step, stack))
        stack.callback(_this_call.reset, token)
        # Workers make their calls in the main thread; the environment belongs to all threads.
        if threading.current_thread() is threading.main_thread():
            variables = {QPU_STEP: step, QPU_ATTEMPT: uuid.uuid4().hex[:16]}
            for name, value in (variables | stop_variables(step)).items():
                stack.callback(_set, name, os.environ.get(name))
                _set(name, value)
        yield


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def cancel_left_tasks() -> None:
    """Cancel the tasks of this call that its child processes have left to a retry."""
    call = _this_call.get()
    if call is None:
        return
    journal = Journal()
    step = journal.step(call.step)
    for record in step.records():  # all of them, because equal tasks are claimed in their order
        entry, before = step.claim(
            record.digest, qpu=record.qpu, program=record.program, identity=record.identity
        )
        if before is not None and before.state is RecordState.SUBMITTED:
            _cancel(entry, block_lease(record.qpu))
    journal.close(step)


def _cancel(entry: Entry, lease: Lease) -> None:
    traits = registered_type(lease.type) or ResourceType(qrmi="")
    state, failure = cancel_task(lease.resource, str(entry.record.task_id), traits)
    if state is TaskState.CANCELLED:
        entry.failed("stopped with its step", retryable=True, spent=unseen(entry))
        settle(entry)
        lease.held.deletions.delete(entry)
    elif not state.is_final:
        entry.stopping(failure or "its cancellation was requested")


class BlockCall:
    """A function as workers call it: as a step, with the block's lease if it takes one.

    It is an object and not a closure, because dill (read in 0.4.1) would pickle a closure by value,
    with copies of this module's globals. As it is, all calls in a worker share one lease.

    Parameters
    ----------
    body : callable
        The function.
    qpu : str | None
        The QPU to use, if the block holds several.
    """

    def __init__(self, body: Callable[..., Any], qpu: str | None) -> None:
        functools.update_wrapper(self, body)  # Parsl wants its name and its parameters
        parameters = inspect.signature(body).parameters
        self._body = body
        self._qpu = qpu
        self._lends = "lease" in parameters
        self._ignored = [name for name in _OPTIONS if name not in parameters]
        self._mark(self._lends)

    def _mark(self, takes_lanes: bool) -> None:
        """Say whether each task takes a lane, so that the call must not hold one as well."""
        setattr(self, _IS_LEASE_APP, takes_lanes)  # Parsl's wrappers copy attributes

    def __call__(self, *args: Any, qpu_step: str, **kwargs: Any) -> Any:
        """Run the function, as an attempt at the step."""
        kwargs.pop(MEMO_KEY)
        with run_as_step(qpu_step):
            return self.run(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, with the lease if it takes one."""
        if self._lends:
            kwargs["lease"] = block_lease(self._qpu)
        try:
            return self._call_body(args, kwargs)
        except StepMovedError:
            time.sleep(_MOVE_SECONDS)  # until the executor looks, the block gets the call again
            raise

    def _call_body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        passed = {name: kwargs[name] for name in kwargs if name not in self._ignored}
        return self._body(*args, **passed)
