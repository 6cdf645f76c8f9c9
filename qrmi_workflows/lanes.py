"""Lanes: as many tasks in flight as the QPU takes at once, each a future."""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress

from qrmi_workflows.gate import LaneGate
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks import TaskRun

__all__ = ["Lanes", "TaskFuture"]

_STOP_SECONDS = 7.0
_THREADS_BESIDES = 2


class TaskFuture(Future[QuantumResult]):
    """A task's result to come. Cancelling it cancels the task at the vendor."""

    def __init__(self, run: TaskRun) -> None:
        super().__init__()
        self._run = run

    @property
    def task_id(self) -> str | None:
        """The vendor's id, once it is known."""
        return self._run.task_id

    def cancel(self) -> bool:
        """Cancel the task; `False` when it has ended already."""
        if self.done():
            return self.cancelled()
        self._run.stop.set()
        super().cancel()
        return True


class Lanes:
    """Runs tasks on one QPU, as many at once as its gate lets in.

    A lane is held from submitting a task to seeing its end. What the vendor has no part in (the
    journal, decoding) overlaps with other tasks, for there are more threads than lanes. They are
    daemons, so that a vendor who does not answer holds up no exit; and none of them is the main
    thread, so that a signal never interrupts a submission.

    Args:
        gate: The gate to the QPU's lanes.
    """

    def __init__(self, gate: LaneGate) -> None:
        self._gate = gate
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[TaskFuture | None] = queue.SimpleQueue()
        self._threads = 0
        self._open: set[Future[QuantumResult]] = set()
        self._lock = threading.RLock()  # a signal's handler may release within a submission

    @property
    def inherited(self) -> bool:
        """Whether they are a parent's: a forked child has none of their threads."""
        return self._pid != os.getpid()

    def submit(self, run: TaskRun) -> TaskFuture:
        """Take a task in; it starts as soon as a lane is free."""
        future = TaskFuture(run)
        with self._lock:
            self._open.add(future)
            if self._threads < min(len(self._open), self._gate.count + _THREADS_BESIDES):
                self._threads += 1
                threading.Thread(target=self._serve, name="qpu-lane", daemon=True).start()
        future.add_done_callback(self._forget)
        self._inbox.put(future)
        return future

    def drain(self) -> None:
        """Wait for all that was submitted."""
        wait(self._pending())

    def close(self) -> None:
        """Stop what is still in flight, and wait, within bounds, until it has stopped."""
        pending = self._pending()
        for future in pending:
            future.cancel()
        limit = time.monotonic() + _STOP_SECONDS
        for future in pending:
            with suppress(Exception):
                future.exception(timeout=max(0.0, limit - time.monotonic()))
        for _ in range(self._threads):
            self._inbox.put(None)

    def _pending(self) -> list[Future[QuantumResult]]:
        with self._lock:
            return list(self._open)

    def _forget(self, future: Future[QuantumResult]) -> None:
        with self._lock:
            self._open.discard(future)

    def _serve(self) -> None:
        while (future := self._inbox.get()) is not None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(future._run(self._gate.lane(future._run.stop)))
                except BaseException as error:  # all of it belongs to the caller
                    future.set_exception(error)
            del future
