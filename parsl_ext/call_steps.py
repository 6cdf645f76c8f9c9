"""Steps of calls whose apps name none, such as those of Parsl's own `python_app` and `bash_app`."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from parsl.dataflow.dflow import DataFlowKernel, DataFlowKernelLoader
from parsl.errors import NoDataFlowKernelError
from parsl.executors.base import ParslExecutor
from parsl.serialize import pack_apply_message

from parsl_ext.steps import archive_step, new_name

__all__ = ["CallSteps"]

_MONITORING = "_parsl_monitoring_"  # what its arguments start with; they differ in each attempt


class CallSteps:
    """Makes each call of an executor a step, which Parsl's retry of the call takes over.

    Parsl (read in 2026.10.26) does not tell an executor which of its tasks a call belongs to. So a
    retry is recognised by its content: it takes over the step of an equal call that has failed.

    Parameters
    ----------
    executor : ParslExecutor
        The executor that runs the calls.
    """

    def __init__(self, executor: ParslExecutor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._failed: defaultdict[str, list[str]] = defaultdict(list)

    def start(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        start: Callable[[str], Future[Any]],
    ) -> Future[Any]:
        """Start a call, given the name of its step."""
        content = _digest(function, args, kwargs)
        step = self._take(content, function)
        future = start(step)
        future.add_done_callback(partial(self._settle, content, step))
        return future

    def close(self) -> None:
        """Archive the steps of failed calls: the run is over, so nobody repeats them."""
        with self._lock:
            steps = [step for failed in self._failed.values() for step in failed]
            self._failed.clear()
        for step in steps:
            archive_step(step)

    def _take(self, content: str, function: Callable[..., Any]) -> str:
        kernel = self._kernel()
        with self._lock:
            failed = self._failed.get(content)
            # An equal call that the program makes after one has failed is a call of its own.
            if failed and (kernel is None or self._has_retry(kernel, function)):
                return failed.pop()
        return new_name(function, is_retried=kernel is None or kernel.config.retries > 0)

    def _has_retry(self, kernel: DataFlowKernel, function: Callable[..., Any]) -> bool:
        """Return whether Parsl repeats a call of the function on this executor now."""
        own = (self._executor.label, getattr(function, "__name__", None))
        # A copy, because other threads add tasks. Parsl removes those that have ended.
        return any(
            record["fail_count"] > 0 and (record["executor"], record["func_name"]) == own
            for record in list(kernel.tasks.values())
        )

    def _kernel(self) -> DataFlowKernel | None:
        """Return the kernel that runs the executor; `None` if it is not the loaded one."""
        try:
            kernel = DataFlowKernelLoader.dfk()
        except NoDataFlowKernelError:
            return None
        own = kernel.executors.get(self._executor.label)
        return kernel if own is self._executor else None

    def _settle(self, content: str, step: str, done: Future[Any]) -> None:
        if done.exception() is None:
            archive_step(step)
            return
        with self._lock:
            self._failed[content].append(step)


def _digest(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    own = {name: kwargs[name] for name in kwargs if not name.startswith(_MONITORING)}
    buffer = pack_apply_message(function, args, own, buffer_threshold=1 << 20)
    return hashlib.sha256(buffer).hexdigest()
