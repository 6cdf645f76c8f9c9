"""A QPU's lanes, shared by all processes that use one lease.

A lane in use is a locked file in the lease's folder (see `lane_files`): however a process dies, its
lanes become free.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from qrmi_workflows.tasks.lane_files import (
    HeldLane,
    hold_lane,
    inherited_lanes,
    lent_to_children,
)

__all__ = ["LaneSemaphore", "Stop", "lane_semaphore"]

logger = logging.getLogger(__name__)

_STOP_LATENCY = 0.1  # seconds within which a task that waits for a lane notices its stop


class Stop(Protocol):
    """What ends the wait for a lane: an event, or something like one."""

    def is_set(self) -> bool:
        """Return whether to stop waiting."""


class LaneSemaphore:
    """Limits how many tasks and calls use a QPU at once, across processes.

    A *task* holds a lane while the vendor has the task. A *call* is code that uses the QPU on its
    own: it holds a lane throughout. The tasks of its process, and of the processes that it starts,
    share that lane instead of taking another. Otherwise a call that submits a task, or runs a
    command that does, could wait for a lane that is only freed when the call ends.

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

    @property
    def offers(self) -> Path | None:
        """Where the processes that share the lease offer each other payloads, if there are any."""
        return None if self._folder is None else self._folder / "offers"

    def _reset(self) -> None:
        """Start counting from zero, as a forked child must: its parent's tasks do not run there."""
        self._changed = threading.Condition()
        self._free = self.count
        self._shared = 0  # lanes held by calls, not in use by a task at the moment
        self._calls: list[HeldLane | None] = []  # what they hold; `None` without files
        self._this_thread = threading.local()
        self._inherited = [] if self._folder is None else inherited_lanes(self._folder)

    @contextmanager
    def hold_for_task(self, stop: Stop | None = None) -> Iterator[None]:
        """Hold a lane for one task, or share one that a call holds.

        Args:
            stop: Once this event is set, the block is entered without a lane.
        """
        is_shared = self._take(stop)
        if is_shared is None:
            yield
            return
        try:
            with self._file_locked(self._calls_lanes if is_shared else self._lent_lanes, stop):
                yield
        finally:
            self._put_back(is_shared=is_shared)

    @contextmanager
    def hold_for_call(self) -> Iterator[None]:
        """Hold a lane for the whole block, shared by the tasks of this process and its children."""
        if getattr(self._this_thread, "in_call", False):
            yield  # a call within a call: the outer one holds the lane
            return
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0)
            self._free -= 1
        try:
            with self._file_locked(self._lent_lanes, for_call=True) as held, self._shares(held):
                self._this_thread.in_call = True
                try:
                    yield
                finally:
                    self._this_thread.in_call = False
        finally:
            self._put_back(is_shared=False)

    def _take(self, stop: Stop | None) -> bool | None:
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

    @contextmanager
    def _shares(self, held: HeldLane | None) -> Iterator[None]:
        """Share a call's lane, and take it back once no task of this process uses it."""
        with self._changed:
            self._calls.append(held)
            self._shared += 1
            self._changed.notify_all()
        try:
            with nullcontext() if held is None else lent_to_children(held):
                yield
        finally:
            # Wait before taking it back: a task that uses the lane must not outlive the call.
            with self._changed:
                self._changed.wait_for(lambda: self._shared > 0)
                self._shared -= 1
                self._calls.remove(held)
                self._changed.notify_all()

    @contextmanager
    def _file_locked(
        self,
        lenders: Callable[[], list[HeldLane]],
        stop: Stop | None = None,
        *,
        for_call: bool = False,
    ) -> Iterator[HeldLane | None]:
        """Hold a lane among the processes that share the lease."""
        held = None
        with ExitStack() as stack:
            try:
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                    lanes = [self._folder / f"lane-{lane}" for lane in range(self.count)]
                    is_stopped = stop.is_set if stop is not None else lambda: False
                    held = stack.enter_context(
                        hold_lane(lanes, lenders, is_stopped, for_call=for_call)
                    )
            except OSError as error:
                logger.warning("lanes are not shared with other processes: %s", error)
                self._folder = None
            yield held

    def _calls_lanes(self) -> list[HeldLane]:
        with self._changed:
            return [lane for lane in self._calls if lane is not None]

    def _lent_lanes(self) -> list[HeldLane]:
        return [lane for lane in self._inherited if lane.is_held()]


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
