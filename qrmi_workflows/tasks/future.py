"""The future of a task's result."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress

from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks.run import TaskRun

__all__ = ["TaskFuture"]

_SLICE_SECONDS = 0.2
"""The longest wait for a lock. Only between two waits can an exception from another thread arrive,
such as the one that Parsl raises when an app's walltime is over."""


class TaskFuture(Future[QuantumResult]):
    """The future of a task's result. Cancelling it stops the task.

    Attributes:
        run: The task.
        leave: Called when the future is cancelled while its payload shares a task with others.
    """

    def __init__(self, run: TaskRun) -> None:
        super().__init__()
        self.run = run
        self.leave: Callable[[], object] | None = None

    @property
    def task_id(self) -> str | None:
        """The vendor's id, once it is known."""
        return self.run.task_id

    def end(self, outcome: QuantumResult | BaseException) -> None:
        """Set the result, or the error, unless the future has ended."""
        with suppress(InvalidStateError):
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)

    def result(self, timeout: float | None = None) -> QuantumResult:
        """Wait for the result, and return it; any exception may interrupt the wait."""
        self.wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task's end, and return its error; any exception may interrupt the wait."""
        self.wait(timeout)
        return super().exception(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the task's end.

        Args:
            timeout: The maximum time to wait, in seconds.

        Returns:
            Whether it has ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            left = _SLICE_SECONDS if end is None else end - time.monotonic()
            if left <= 0:
                return False
            wait([self], timeout=min(left, _SLICE_SECONDS))
        return True

    def cancel(self) -> bool:
        """Stop the task: cancel it, or leave it for a rerun, as `on_stop` says.

        Returns:
            `False` if it has already ended.
        """
        if self.done():
            return self.cancelled()
        self.run.stop.set()
        super().cancel()
        if self.leave is not None:
            self.leave()
        return True

    def cancel_task(self) -> bool:
        """Cancel the task, even if `$QPU_ON_STOP` would leave it: nobody will want its result.

        An `on_stop` that was given for this very task still applies.
        """
        self.run.on_stop = self.run.on_stop or "cancel"
        return self.cancel()
