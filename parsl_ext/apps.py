"""Parsl apps that use a QPU: a parameter named `lease` receives the block's lease."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from parsl import python_app
from parsl.dataflow.dflow import DataFlowKernel, DataFlowKernelLoader
from parsl.dataflow.futures import AppFuture

from parsl_ext.bash import BashCall
from parsl_ext.block import BlockCall
from parsl_ext.qpus import MEMO_KEY, memo_key
from parsl_ext.resumed import labels_with_tasks
from parsl_ext.steps import archive_step, found_tasks, full_name, new_name, start_numbered
from qrmi_workflows.errors import RequestError

__all__ = ["qpu_app", "qpu_bash_app"]

_LEASE = "lease"
_STEP = "qpu_step"


def qpu_app(
    function: Callable[..., Any] | None = None,
    *,
    qpu: str | None = None,
    executors: list[str] | str = "qpu",
    cache: bool = False,
    ignore_for_cache: list[str] | None = None,
    data_flow_kernel: DataFlowKernel | None = None,
) -> Callable[..., Any]:
    """Turn a function into a Parsl app that runs in a block holding a QPU.

    A parameter named `lease` receives the block's lease; callers leave it out. The function must
    return data that can be pickled::

        @qpu_app
        def sample(payload, *, lease):
            return lease.run(payload).counts()

    The tasks of a call are journaled, so that Parsl's retries of the call find them. If the caller
    adds `qpu_step="NAME"` (not passed to the function), another run of the program finds them too,
    until the call has succeeded. Equal names in one run are told apart by their order.

    A parameter named `walltime` limits the call, as in Parsl: its tasks are cancelled when that
    time is over.

    Parameters
    ----------
    function : callable
        The function, if the decorator is used without parentheses. Do not pass it by name.
    qpu : str | None
        The QPU to use, if the block holds several.
    executors : list of str, or str
        Labels of the executors that the app may run on. Default is "qpu", the default label of
        `QPUExecutor`.
    cache : bool
        Whether Parsl memoises calls; see also `register_memo_types`. A call on another QPU is
        another call. One that may run on several QPUs gets the result of any of them.
    ignore_for_cache, data_flow_kernel
        As in Parsl's `python_app`.

    Returns
    -------
    callable
        The app. Calling it returns an `AppFuture`.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        return _make_app(
            body,
            BlockCall(body, qpu),
            qpu=qpu,
            executors=executors,
            cache=cache,
            ignore_for_cache=ignore_for_cache,
            data_flow_kernel=data_flow_kernel,
        )

    return decorate if function is None else decorate(function)


def qpu_bash_app(
    function: Callable[..., Any] | None = None,
    *,
    qpu: str | None = None,
    executors: list[str] | str = "qpu",
    cache: bool = False,
    ignore_for_cache: list[str] | None = None,
    data_flow_kernel: DataFlowKernel | None = None,
) -> Callable[..., Any]:
    """Turn a function that returns a command line into a Parsl app that uses its block's QPU.

    The command, and any program that it starts, adopts the block's lease::

        @qpu_bash_app
        def sample(inputs=(), outputs=(), stderr=parsl.AUTO_LOGNAME):
            return f"qpu run {inputs[0]} -o {outputs[0]}"

    Each task takes a lane, as in a `qpu_app`. Retries and `qpu_step` find tasks as they do there.
    When a `walltime` is over, the command gets SIGTERM, and its tasks are cancelled.

    Parameters
    ----------
    function : callable
        The function, if the decorator is used without parentheses. Do not pass it by name.
    qpu : str | None
        The QPU that the command uses, if the block holds several; the command names it too
        (`qpu run --qpu NAME`).
    executors, cache, ignore_for_cache, data_flow_kernel
        As in `qpu_app`.

    Returns
    -------
    callable
        The app. Calling it returns an `AppFuture` of the exit status, as with Parsl's `bash_app`.

    Raises
    ------
    RequestError
        The function has a parameter `lease`.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        if _has_parameter(body, _LEASE):
            raise RequestError(
                f"{body.__name__}() has a parameter `lease`: the command of a bash app adopts the "
                "block's lease by itself (`qpu run …`). Remove the parameter, or use `qpu_app`."
            )
        return _make_app(
            body,
            BashCall(body, qpu),
            qpu=qpu,
            executors=executors,
            cache=cache,
            ignore_for_cache=ignore_for_cache,
            data_flow_kernel=data_flow_kernel,
        )

    return decorate if function is None else decorate(function)


def _make_app(
    body: Callable[..., Any],
    run: Callable[..., Any],
    *,
    qpu: str | None,
    executors: list[str] | str,
    cache: bool,
    ignore_for_cache: list[str] | None,
    data_flow_kernel: DataFlowKernel | None,
) -> Callable[..., Any]:
    labels = [executors] if isinstance(executors, str) and executors != "all" else executors
    app = _App(
        body=body,
        run=run,
        qpu=qpu,
        labels=labels,
        cache=cache,
        ignore_for_cache=[*(ignore_for_cache or []), _STEP],
        data_flow_kernel=data_flow_kernel,
    )

    @functools.wraps(body)
    def call(*args: Any, **kwargs: Any) -> AppFuture:
        return app.call(args, kwargs)

    return call


@dataclass(kw_only=True)
class _App:
    """An app: its function, what workers run in its place, and where."""

    body: Callable[..., Any]
    run: Callable[..., Any]
    qpu: str | None
    labels: list[str] | str
    cache: bool
    ignore_for_cache: list[str]
    data_flow_kernel: DataFlowKernel | None
    _parsl_apps: dict[tuple[str, ...], Callable[..., AppFuture]] = field(default_factory=dict)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AppFuture:
        """Call the app as a step, under a name that Parsl's retries pass again."""
        _refuse_lease_argument(self.body, args, kwargs)
        name = kwargs.pop(_STEP, None)
        if name is None:  # no other run of the program can know the step's name
            step = new_name(self.body, is_retried=self._kernel().config.retries > 0)
            future = self._start(step, self._labels(), args, kwargs)
            future.add_done_callback(lambda _: archive_step(step))
            return future
        return start_numbered(
            self._kernel().run_id,
            full_name(name, self.body),
            lambda step: self._start(step, self._labels_for(step), args, kwargs),
        )

    def _start(
        self, step: str, labels: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AppFuture:
        own = {_STEP: step, MEMO_KEY: self._memo_key() if self.cache else ""}
        return self._parsl_app(labels)(*args, **own, **kwargs)

    def _parsl_app(self, labels: Sequence[str]) -> Callable[..., AppFuture]:
        key = tuple(labels)
        if key not in self._parsl_apps:
            self._parsl_apps[key] = python_app(
                self.run,
                data_flow_kernel=self.data_flow_kernel,
                executors=list(labels),
                cache=self.cache,
                ignore_for_cache=self.ignore_for_cache,
            )
        return self._parsl_apps[key]

    def _kernel(self) -> DataFlowKernel:
        return self.data_flow_kernel or DataFlowKernelLoader.dfk()

    def _labels(self) -> list[str]:
        if isinstance(self.labels, str):  # "all"
            return [label for label in self._kernel().executors if label != "_parsl_internal"]
        return self.labels

    def _labels_for(self, step: str) -> list[str]:
        """Return where a named step may run: on the QPU that has its tasks, if one has."""
        labels = self._labels()
        found = found_tasks(step)
        executors = self._kernel().executors
        known = {label: executors[label] for label in labels if label in executors}
        same = labels_with_tasks(step, found, known) if found else []
        return [random.choice(same)] if same else labels  # noqa: S311 - as Parsl chooses

    def _memo_key(self) -> str:
        executors = self._kernel().executors
        return memo_key((executors[each] for each in self._labels() if each in executors), self.qpu)


def _has_parameter(body: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(body).parameters


def _refuse_lease_argument(
    body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuse a `lease` from the caller now, before Parsl asks for a block."""
    parameters = inspect.signature(body).parameters
    positional = [
        each.name for each in parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    if _LEASE in parameters and (_LEASE in kwargs or _LEASE in positional[: len(args)]):
        raise RequestError(
            f"{body.__name__}() was called with a `lease`: the app gets it from its block. Leave "
            "it out of the call, and make `lease` the function's last parameter."
        )
