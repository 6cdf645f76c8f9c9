"""Many tasks at once, as many in flight as the QPU has lanes; each is a future."""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress

from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks.lanes import LaneSemaphore
from qrmi_workflows.tasks.run import TaskRun

__all__ = ["TaskFuture", "TaskPool"]

_SPARE_THREADS = 2
_SLICE_SECONDS = 0.2
"""The longest wait for a lock. Only between two waits can an exception from another thread arrive,
such as the one that Parsl raises when an app's walltime is over."""


class TaskFuture(Future[QuantumResult]):
    """The future of a task's result. Cancelling it stops the task."""

    def __init__(self, run: TaskRun) -> None:
        super().__init__()
        self._run = run

    @property
    def task_id(self) -> str | None:
        """The vendor's id, once it is known."""
        return self._run.task_id

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
        self._run.stop.set()
        super().cancel()
        return True

    def cancel_task(self) -> bool:
        """Cancel the task, even if `$QPU_ON_STOP` would leave it: nobody will want its result.

        An `on_stop` that was given for this very task still applies.
        """
        self._run.on_stop = self._run.on_stop or "cancel"
        return self.cancel()


class TaskPool:
    """Runs tasks on one QPU, as many at once as it has lanes.

    A lane is held from submitting a task until its end. There are more threads than lanes, so that
    work that needs no vendor (the journal, decoding) overlaps with other tasks. Threads are started
    as needed, and are daemons: a silent vendor must not delay the process's exit. Tasks never run
    in the main thread, where a signal could interrupt a submission.

    Args:
        lanes: The QPU's lanes.
    """

    def __init__(self, lanes: LaneSemaphore) -> None:
        self._lanes = lanes
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[TaskFuture | None] = queue.SimpleQueue()
        self._threads = 0
        self._unfinished: set[TaskFuture] = set()
        # Reentrant, because a signal handler may release the lease in the middle of a submission.
        self._lock = threading.RLock()

    @property
    def is_inherited(self) -> bool:
        """Whether the pool belongs to the parent: a forked child has none of its threads."""
        return self._pid != os.getpid()

    def submit(self, run: TaskRun) -> TaskFuture:
        """Accept a task; it starts as soon as a lane is free."""
        future = TaskFuture(run)
        with self._lock:
            self._unfinished.add(future)
            if self._threads < min(len(self._unfinished), self._lanes.count + _SPARE_THREADS):
                self._threads += 1
                threading.Thread(target=self._work, name="qpu-lane", daemon=True).start()
        future.add_done_callback(self._discard)
        self._inbox.put(future)
        return future

    def drain(self) -> None:
        """Wait until all submitted tasks have ended."""
        for future in self._pending():
            future.wait()

    def cancel_tasks(self) -> None:
        """Cancel all unfinished tasks: nobody will want their results."""
        for future in self._pending():
            future.cancel_task()

    def close(self, seconds: float) -> None:
        """Stop all unfinished tasks, and the threads.

        Args:
            seconds: How long to wait for the tasks to stop.
        """
        pending = self._pending()
        for future in pending:
            future.cancel()
        limit = time.monotonic() + seconds
        for future in pending:
            with suppress(Exception):
                future.exception(timeout=max(0.0, limit - time.monotonic()))
        for _ in range(self._threads):
            self._inbox.put(None)

    def _pending(self) -> list[TaskFuture]:
        with self._lock:
            return list(self._unfinished)

    def _discard(self, future: Future[QuantumResult]) -> None:
        with self._lock:
            self._unfinished.discard(future)

    def _work(self) -> None:
        while (future := self._inbox.get()) is not None:
            if future.set_running_or_notify_cancel():
                try:
                    lane = self._lanes.hold_for_task(future._run.stop)
                    future.set_result(future._run(lane))
                except BaseException as error:  # raised to the caller by the future
                    future.set_exception(error)
            del future  # or this frame would keep the last result alive
