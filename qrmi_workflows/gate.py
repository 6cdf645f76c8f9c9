"""The gate to a QPU's lanes: all processes that share a lease pass it, so many at once as it has.

A lane is a locked file in the lease's folder: whatever becomes of a process, the lane that it held
is free again.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

__all__ = ["LaneGate", "lane_gate"]

logger = logging.getLogger(__name__)

_FRACTION, _LEAST, _MOST = 0.02, 0.0005, 0.05  # of the time waited so far; seconds
_LOOK_SECONDS = 0.1  # how soon a stopped task is noticed that waits for its own process's lanes


class LaneGate:
    """Lets `count` tasks or calls to the QPU at once.

    Args:
        count: How many lanes the QPU has.
        folder: Where the processes that share the lease lock lanes; made when it is absent. When it
            cannot be used, or is `None`, only this process's tasks are counted.
    """

    def __init__(self, count: int, folder: Path | None = None) -> None:
        self.count = count
        self._folder = folder
        self._begin()
        _gates.add(self)

    def _begin(self) -> None:
        """Count from the start; so does a forked child, where its parent's tasks do not run."""
        self._change = threading.Condition()
        self._free = self.count
        self._lent = 0
        self._calls = 0
        self._inside = threading.local()

    @contextmanager
    def lane(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Hold a lane for one task: one that this process holds for a call, where there is one.

        Args:
            stop: When it is set, the wait for a lane ends without one.
        """
        lent = self._take(stop)
        if lent is None:
            yield
            return
        try:
            if lent:
                yield
            else:
                with self._locked(stop):
                    yield
        finally:
            self._put_back(lent=lent)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold a lane for all that is done inside; this process's tasks share it meanwhile."""
        if getattr(self._inside, "call", False):
            yield
            return
        with self._change:
            self._change.wait_for(lambda: self._free > 0)
            self._free -= 1
        try:
            with self._locked(None):
                self._lend(+1)
                self._inside.call = True
                try:
                    yield
                finally:
                    self._inside.call = False
                    self._lend(-1)
        finally:
            self._put_back(lent=False)

    def _take(self, stop: threading.Event | None) -> bool | None:
        """Wait for a lane of this process; return whether it is one lent by a call."""
        with self._change:
            while not self._change.wait_for(self._is_free, timeout=_LOOK_SECONDS):
                if stop is not None and stop.is_set():
                    return None
            if self._calls:
                self._lent -= 1
                return True
            self._free -= 1
            return False

    def _is_free(self) -> bool:
        return (self._lent if self._calls else self._free) > 0

    def _put_back(self, *, lent: bool) -> None:
        with self._change:
            if lent:
                self._lent += 1
            else:
                self._free += 1
            self._change.notify_all()

    def _lend(self, calls: int) -> None:
        with self._change:
            self._calls += calls
            if calls > 0:
                self._lent += 1
            else:
                self._change.wait_for(lambda: self._lent > 0)
                self._lent -= 1
            self._change.notify_all()

    @contextmanager
    def _locked(self, stop: threading.Event | None) -> Iterator[None]:
        """Lock a lane among the processes that share the lease."""
        with ExitStack() as stack:
            try:
                self._lock(stop, stack)
            except OSError as error:
                logger.warning("lanes are not shared with other processes, for %s", error)
                self._folder = None
            yield

    def _lock(self, stop: threading.Event | None, stack: ExitStack) -> None:
        """Wait for a lane; `stack` holds it."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as opened:
            files = [
                opened.enter_context(FileIO(self._folder / f"lane-{lane}", "a"))
                for lane in range(self.count)
            ]
            before = time.monotonic()
            while not (stop is not None and stop.is_set()):
                for file in files:
                    if _try_lock(file):
                        # The lock lasts as long as a duplicate of its file is open.
                        held = stack.enter_context(FileIO(os.dup(file.fileno()), "a"))
                        stack.callback(fcntl.flock, held, fcntl.LOCK_UN)  # a fork has one as well
                        return
                time.sleep(min(max(_FRACTION * (time.monotonic() - before), _LEAST), _MOST))


_gates: weakref.WeakSet[LaneGate] = weakref.WeakSet()


def _begin_all() -> None:
    for gate in list(_gates):
        gate._begin()


os.register_at_fork(after_in_child=_begin_all)


def lane_gate(count: int, folder: Path | None) -> LaneGate:
    """Return this process's one gate of a lease, by its folder; without one, a gate of its own."""
    return LaneGate(count) if folder is None else _gate_of(count, folder)


@functools.cache
def _gate_of(count: int, folder: Path) -> LaneGate:
    return LaneGate(count, folder)


def _try_lock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
