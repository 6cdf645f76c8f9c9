"""A limit on the calls that use the QPU, in blocks that also run classical apps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

__all__ = ["CallLimiter"]


class CallLimiter:
    """Start calls in order, up to a limit at once; queue the others.

    Calls are queued here, on the submit side, so that they do not occupy workers while they wait.

    Args:
        limit: Returns how many calls may be running; called before each start.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._queue: deque[tuple[Future[Any], Callable[[], Future[Any]]]] = deque()
        self._running = 0

    @property
    def queued(self) -> int:
        """The number of calls that have not been started."""
        return len(self._queue)

    def submit(self, start: Callable[[], Future[Any]]) -> Future[Any]:
        """Call `start` as soon as the limit allows; return a future that follows its future."""
        future: Future[Any] = Future()
        self._queue.append((future, start))
        self._start_queued()
        return future

    def _start_queued(self) -> None:
        while (call := self._take_next()) is not None:
            future, start = call
            # No lock is held here, because `start` may complete immediately and call `_finish`.
            try:
                started = start()
            except BaseException as error:  # raised to the caller, through the future
                self._count_finished()
                future.set_exception(error)
            else:
                started.add_done_callback(partial(self._finish, future))

    def _take_next(self) -> tuple[Future[Any], Callable[[], Future[Any]]] | None:
        with self._lock:
            if not self._queue or self._running >= self._limit():
                return None
            self._running += 1
            return self._queue.popleft()

    def _finish(self, future: Future[Any], done: Future[Any]) -> None:
        self._count_finished()
        self._start_queued()
        if (error := done.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())

    def _count_finished(self) -> None:
        with self._lock:
            self._running -= 1
