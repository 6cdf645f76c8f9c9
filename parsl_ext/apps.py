"""Parsl apps that use a QPU: a parameter named `lease` receives the block's lease."""

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

__all__ = ["archive_step", "block_lease", "execute_in_lane", "is_lease_app", "qpu_app"]

logger = logging.getLogger(__name__)

_LEASE = "lease"
_STEP = "qpu_step"
_SPECIFICATION = "parsl_resource_specification"
_IS_LEASE_APP = "is_qpu_lease_app"


def qpu_app(
    function: Callable[..., Any] | None = None,
    *,
    qpu: str | None = None,
    executors: list[str] | str = "qpu",
    cache: bool = False,
    ignore_for_cache: list[str] | None = None,
    data_flow_kernel: Any = None,
) -> Callable[..., Any]:
    """Turn a function into a Parsl app that runs in a block holding a QPU.

    A parameter named `lease` receives the block's lease; callers leave it out. The function must
    return data that can be pickled::

        @qpu_app
        def sample(payload, *, lease):
            return lease.run(payload).counts()

    The tasks of a call are journaled, so that Parsl's retries of the call find them. If the caller
    adds `qpu_step="NAME"` (not passed to the function), other runs of the program find them too.

    Parameters
    ----------
    function : callable
        The function, if the decorator is used without parentheses. Do not pass it by name.
    qpu : str | None
        The QPU to use, if the block holds several.
    executors : list of str, or str
        Labels of the executors that the app may run on. Default is "qpu", the default label of
        `QPUExecutor`.
    cache, ignore_for_cache, data_flow_kernel
        As in Parsl's `python_app`; see also `register_memo_types`.

    Returns
    -------
    callable
        The app. Calling it returns an `AppFuture`.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        labels = [executors] if isinstance(executors, str) and executors != "all" else executors
        app = python_app(
            _lend_block_lease(body, qpu),
            data_flow_kernel=data_flow_kernel,
            executors=labels,
            cache=cache,
            ignore_for_cache=[*(ignore_for_cache or []), _STEP],
        )

        @functools.wraps(body)
        def call(*args: Any, **kwargs: Any) -> Any:
            return _call_as_step(app, body, args, kwargs)

        return call

    return decorate if function is None else decorate(function)


def _call_as_step(
    app: Callable[..., Any],
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call an app under a step name, which Parsl passes again each time it retries the call."""
    has_lease = _has_parameter(body, _LEASE)
    if has_lease:
        _refuse_lease_argument(body, args, kwargs)
    name = kwargs.pop(_STEP, None)
    step = name or f"app {body.__name__} {uuid.uuid4()}"
    future = app(*args, **{_STEP: step}, **kwargs)
    if has_lease and name is None:  # no other run of the program can know the step's name
        future.add_done_callback(lambda _: archive_step(step))
    return future


@functools.cache
def block_lease(qpu: str | None = None) -> Lease:
    """Return the lease of this worker's block; adopted once for each worker process.

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
    held = [name for name, carried in read_job().items() if carried.token is not None]
    # A worker must not acquire a lease itself: the scheduler has not granted it the QPU, and a
    # worker may be killed, so nobody would release the lease.
    if not held:
        raise ConfigError(
            "this app needs a QPU, but its block holds none. Use a `QPUSlurmProvider`, or give the "
            "provider `launcher=LeaseLauncher(qpu=…)`."
        )
    if qpu is not None and qpu not in held:
        raise UnknownQPUError(qpu, held, "in this block", "Name one that its provider asks for.")
    if qpu is None and len(held) > 1:
        raise ConfigError(
            f"no QPU named, and this block holds {len(held)}: {', '.join(held)}. Name one: "
            "`@qpu_app(qpu=…)`."
        )
    return open_lease(qpu)


def is_lease_app(function: Callable[..., Any]) -> bool:
    """Return whether this is the body of a `qpu_app` that receives the lease.

    Each of its tasks takes a lane, so its call must not hold one as well.
    """
    return bool(getattr(function, _IS_LEASE_APP, False))


def execute_in_lane(buffer: bytes, qpu: str | None = None) -> Any:
    """Run a call in a worker while holding one of the QPU's lanes.

    Parsl's workers import this function by its name and call it instead of Parsl's own
    `execute_task` (see `QPUExecutor.submit`).
    """
    with block_lease(qpu).lane():
        return execute_task(buffer)


def archive_step(step: str) -> None:
    """Archive the journal records of a finished call: no other call can look for them."""
    try:
        Journal().archive(step)
    except QPUError as error:  # this only costs some disk space
        logger.warning("could not archive the journal records of step %r: %s", step, error)


def _has_parameter(body: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(body).parameters


def _refuse_lease_argument(
    body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuse a `lease` from the caller now, before Parsl asks for a block."""
    parameters = inspect.signature(body).parameters.values()
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    if _LEASE in kwargs or _LEASE in positional[: len(args)]:
        raise RequestError(
            f"{body.__name__}() was called with a `lease`: the app gets it from its block. Leave "
            "it out of the call, and make `lease` the function's last parameter."
        )


def _lend_block_lease(body: Callable[..., Any], qpu: str | None) -> Callable[..., Any]:
    """Wrap a function so that a worker passes it the block's lease if it has the parameter."""
    has_lease = _has_parameter(body, _LEASE)
    has_specification = _has_parameter(body, _SPECIFICATION)

    @functools.wraps(body)
    def run(*args: Any, qpu_step: str, **kwargs: Any) -> Any:
        # dill (read in 0.4.1) pickles this wrapper by value, with copies of this module's globals.
        # Import `block_lease` instead, so that all calls in a worker share its cache.
        from parsl_ext.apps import block_lease

        # Parsl passes the specification on to the function, whether it has the parameter or not.
        if not has_specification:
            kwargs.pop("parsl_resource_specification", None)
        if not has_lease:
            return body(*args, **kwargs)
        with block_lease(qpu).for_step(qpu_step) as lease:
            return body(*args, lease=lease, **kwargs)

    setattr(run, _IS_LEASE_APP, has_lease)
    return run
