"""A QPU's lanes, shared by all processes that use one lease.

A lane in use is a locked file in the lease's folder: however a process dies, its lanes become free.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qrmi_workflows.state.locks import hold_any_lock

__all__ = ["LaneSemaphore", "lane_semaphore"]

logger = logging.getLogger(__name__)

_STOP_LATENCY = 0.1  # seconds within which a task that waits for a lane notices its stop


class LaneSemaphore:
    """Limits how many tasks and calls use a QPU at once, across processes.

    A *task* holds a lane while the vendor has the task. A *call* is code that uses the QPU on its
    own: it holds a lane throughout, and this process's tasks share that lane instead of taking
    another. Otherwise a call that submits a task could wait for a lane that is only freed when the
    call ends.

    Args:
        count: How many lanes the QPU has.
        folder: The folder in which the processes that share the lease lock lanes; created if
            absent. If it is `None` or cannot be used, only this process's tasks are counted.
    """

    def __init__(self, count: int, folder: Path | None = None) -> None:
        self.count = count
        self._folder = folder
        self._reset()
        _semaphores.add(self)

    def _reset(self) -> None:
        """Start counting from zero, as a forked child must: its parent's tasks do not run there."""
        self._changed = threading.Condition()
        self._free = self.count
        self._shared = 0  # lanes held by calls, not in use by a task at the moment
        self._calls = 0
        self._this_thread = threading.local()

    @contextmanager
    def hold_for_task(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Hold a lane for one task, or share one that a call of this process holds.

        Args:
            stop: Once this event is set, the block is entered without a lane.
        """
        is_shared = self._take(stop)
        if is_shared is None:
            yield
            return
        try:
            if is_shared:
                yield
            else:
                with self._file_locked(stop):
                    yield
        finally:
            self._put_back(is_shared=is_shared)

    @contextmanager
    def hold_for_call(self) -> Iterator[None]:
        """Hold a lane for the whole block; this process's tasks share it meanwhile."""
        if getattr(self._this_thread, "in_call", False):
            yield  # a call within a call: the outer one holds the lane
            return
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0)
            self._free -= 1
        try:
            with self._file_locked(None):
                self._share(+1)
                self._this_thread.in_call = True
                try:
                    yield
                finally:
                    self._this_thread.in_call = False
                    self._share(-1)
        finally:
            self._put_back(is_shared=False)

    def _take(self, stop: threading.Event | None) -> bool | None:
        """Wait for a lane of this process; return whether a call shares it, `None` if stopped."""
        with self._changed:
            # A Condition cannot wait for an Event as well, so poll the event.
            while not self._changed.wait_for(self._is_available, timeout=_STOP_LATENCY):
                if stop is not None and stop.is_set():
                    return None
            if self._calls:
                self._shared -= 1
                return True
            self._free -= 1
            return False

    def _is_available(self) -> bool:
        return (self._shared if self._calls else self._free) > 0

    def _put_back(self, *, is_shared: bool) -> None:
        with self._changed:
            if is_shared:
                self._shared += 1
            else:
                self._free += 1
            self._changed.notify_all()

    def _share(self, calls: int) -> None:
        """Share a call's lane with tasks, or take it back once no task uses it."""
        # Wait before taking it back: a task that uses the lane must not outlive the call's lock.
        with self._changed:
            self._calls += calls
            if calls > 0:
                self._shared += 1
            else:
                self._changed.wait_for(lambda: self._shared > 0)
                self._shared -= 1
            self._changed.notify_all()

    @contextmanager
    def _file_locked(self, stop: threading.Event | None) -> Iterator[None]:
        """Hold a lane among the processes that share the lease."""
        with ExitStack() as stack:
            try:
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                    lanes = [self._folder / f"lane-{lane}" for lane in range(self.count)]
                    is_stopped = stop.is_set if stop is not None else lambda: False
                    stack.enter_context(hold_any_lock(lanes, is_stopped))
            except OSError as error:
                logger.warning("lanes are not shared with other processes: %s", error)
                self._folder = None
            yield


# Weak references, because os.register_at_fork cannot be undone: semaphores can be collected.
_semaphores: weakref.WeakSet[LaneSemaphore] = weakref.WeakSet()


def _reset_all() -> None:
    for semaphore in list(_semaphores):
        semaphore._reset()


os.register_at_fork(after_in_child=_reset_all)


def lane_semaphore(count: int, folder: Path | None) -> LaneSemaphore:
    """Return this process's semaphore for a lease's folder; a new one if there is no folder."""
    return LaneSemaphore(count) if folder is None else _semaphore_of(count, folder)


# One per folder: two semaphores in a process would each count this process's tasks from zero.
@functools.cache
def _semaphore_of(count: int, folder: Path) -> LaneSemaphore:
    return LaneSemaphore(count, folder)
