"""A limit on the calls that use the QPU, in blocks that also run classical apps."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

__all__ = ["CallLimiter"]


class CallLimiter:
    """Start calls in order of priority, up to a limit at once; queue the others.

    Calls are queued here, on the submit side, so that they do not occupy workers while they wait.
    Parsl's interchange sorts by priority only the calls that it has.

    Args:
        limit: Returns how many calls may be running; called before each start.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # Priority, number in order of submission, future, start.
        self._queue: list[tuple[float, int, Future[Any], Callable[[], Future[Any]]]] = []
        self._running = 0
        self._starting = 0

    @property
    def queued(self) -> int:
        """The number of calls that have not been started, or are just being started."""
        with self._lock:
            return len(self._queue) + self._starting

    def submit(
        self, start: Callable[[], Future[Any]], *, priority: float = math.inf
    ) -> Future[Any]:
        """Call `start` as soon as the limit allows; return a future that follows its future.

        Args:
            start: Starts the call.
            priority: Lower numbers start first, and equal ones in order of submission.
        """
        future: Future[Any] = Future()
        with self._lock:
            heapq.heappush(self._queue, (priority, next(self._numbers), future, start))
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
            finally:
                with self._lock:
                    self._starting -= 1

    def _take_next(self) -> tuple[Future[Any], Callable[[], Future[Any]]] | None:
        with self._lock:
            if not self._queue or self._running >= self._limit():
                return None
            self._running += 1
            self._starting += 1
            _, _, future, start = heapq.heappop(self._queue)
            return future, start

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
