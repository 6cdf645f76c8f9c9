"""Parsl apps on a QPU: the function asks for the block's lease by a parameter."""

from __future__ import annotations

import functools
import inspect
import logging
import uuid
from collections.abc import Callable
from typing import Any

from parsl import python_app
from parsl.executors.execute_task import execute_task

from qrmi_workflows.config.job import read_job
from qrmi_workflows.errors import ConfigError, QPUError, RequestError, UnknownQPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.open import open_lease

__all__ = ["archive_step", "block_lease", "execute_in_lane", "qpu_app", "takes_lanes"]

logger = logging.getLogger(__name__)

_LEASE = "lease"
_STEP = "qpu_step"
_SPECIFICATION = "parsl_resource_specification"
_TAKES_LANES = "takes_qpu_lanes"


def qpu_app(
    function: Callable[..., Any] | None = None,
    *,
    qpu: str | None = None,
    executors: list[str] | str = "qpu",
    cache: bool = False,
    ignore_for_cache: list[str] | None = None,
    data_flow_kernel: Any = None,
) -> Callable[..., Any]:
    """Make a function a Parsl app that runs in a block which holds a QPU.

    A parameter named `lease` receives the block's lease; callers do not pass it. Return data that
    pickles::

        @qpu_app
        def sample(payload, *, lease):
            return lease.run(payload).counts()

    A call's tasks are journaled: Parsl's retries find them. With `qpu_step="NAME"`, which is not
    passed on, another run of the program finds them too.

    Parameters
    ----------
    function : callable
        Do not pass it by name; it lets `@qpu_app` be written without parentheses.
    qpu : str | None
        Which of the block's QPUs, where it holds several.
    executors : list of str, or str
        Labels of the executors that it may run on. Default is "qpu", `QPUExecutor`'s.
    cache, ignore_for_cache, data_flow_kernel
        As in Parsl's `python_app`; see `register_memo_types`.

    Returns
    -------
    callable
        The app: a call returns an `AppFuture`.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        labels = [executors] if isinstance(executors, str) and executors != "all" else executors
        app = python_app(
            _with_lease(body, qpu),
            data_flow_kernel=data_flow_kernel,
            executors=labels,
            cache=cache,
            ignore_for_cache=[*(ignore_for_cache or []), _STEP],
        )

        @functools.wraps(body)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _wants_lease(body):
                _refuse_lease(body, args, kwargs)
            # Parsl's retries call with the same arguments, so they find the same step's tasks.
            named = kwargs.pop(_STEP, None)
            step = named or f"app {body.__name__} {uuid.uuid4()}"
            future = app(*args, **{_STEP: step}, **kwargs)
            if _wants_lease(body) and named is None:
                future.add_done_callback(lambda _: archive_step(step))
            return future

        return call

    return decorate if function is None else decorate(function)


@functools.cache
def block_lease(qpu: str | None = None) -> Lease:
    """Return this worker's hold on its block's lease: adopted, opened once for a process.

    Raises:
        ConfigError: The worker runs in no block that holds a QPU, or several and none is named.
        UnknownQPUError: The block does not hold this one.
    """
    held = [name for name, carried in read_job().items() if carried.token is not None]
    if not held:  # a worker acquires none: the scheduler has granted it none, and it may be killed
        raise ConfigError(
            "this app needs a QPU, and its block holds none. Use a `QPUSlurmProvider`, or give the "
            "provider `launcher=LeaseLauncher(qpu=…)`."
        )
    if qpu is not None and qpu not in held:
        raise UnknownQPUError(qpu, held, "in this block", "Name one that its provider asks for.")
    if qpu is None and len(held) > 1:
        raise ConfigError(f"this block holds {', '.join(held)}. Name one: `@qpu_app(qpu=…)`.")
    return open_lease(qpu)


def takes_lanes(function: Callable[..., Any]) -> bool:
    """Whether a function takes a lane for each of its tasks, and so needs none for its call."""
    return bool(getattr(function, _TAKES_LANES, False))


def execute_in_lane(buffer: bytes, qpu: str | None = None) -> Any:
    """Run a call in a worker, in one of the QPU's lanes (see `submit_payload` of Parsl's HTEX)."""
    with block_lease(qpu).lane():
        return execute_task(buffer)


def archive_step(step: str) -> None:
    """Archive the records of an ended call, which no other call will look for."""
    try:
        Journal().archive(step)
    except QPUError as error:  # costs only some space
        logger.warning("the records of step %r stay open: %s", step, error)


def _wants_lease(body: Callable[..., Any]) -> bool:
    return _LEASE in inspect.signature(body).parameters


def _refuse_lease(body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a caller's `lease` before a block is asked for."""
    parameters = inspect.signature(body).parameters.values()
    by_place = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    if _LEASE in kwargs or _LEASE in by_place[: len(args)]:
        raise RequestError(
            f"{body.__name__}() was given `lease`, which its block gives. Leave it out, and let "
            "it be the last parameter."
        )


def _with_lease(body: Callable[..., Any], qpu: str | None) -> Callable[..., Any]:
    wanted, specified = _wants_lease(body), _SPECIFICATION in inspect.signature(body).parameters

    @functools.wraps(body)
    def run(*args: Any, qpu_step: str, **kwargs: Any) -> Any:
        from parsl_ext.apps import block_lease  # in the worker, where this is pickled by value

        if not specified:
            kwargs.pop("parsl_resource_specification", None)
        if not wanted:
            return body(*args, **kwargs)
        with block_lease(qpu).for_step(qpu_step) as lease:
            return body(*args, lease=lease, **kwargs)

    setattr(run, _TAKES_LANES, wanted)
    return run
