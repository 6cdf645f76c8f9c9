"""The QPU's share of a pool that runs classical apps too."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

__all__ = ["Window"]


class Window:
    """Starts as many calls at once as fit; the others wait here, and so fill no workers.

    Args:
        size: How many fit; asked before each start.
    """

    def __init__(self, size: Callable[[], int]) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Future[Any]]]] = deque()
        self._started = 0

    @property
    def waiting(self) -> int:
        """How many calls have not been started."""
        return len(self._waiting)

    def submit(self, start: Callable[[], Future[Any]]) -> Future[Any]:
        """Call `start` as soon as there is room; return a future of what its future will be."""
        future: Future[Any] = Future()
        self._waiting.append((future, start))
        self._fill()
        return future

    def _fill(self) -> None:
        while (call := self._next()) is not None:
            future, start = call
            try:
                started = start()
            except BaseException as error:  # it belongs to the caller
                self._make_room()
                future.set_exception(error)
            else:
                started.add_done_callback(partial(self._end, future))

    def _next(self) -> tuple[Future[Any], Callable[[], Future[Any]]] | None:
        with self._lock:
            if not self._waiting or self._started >= self._size():
                return None
            self._started += 1
            return self._waiting.popleft()

    def _end(self, future: Future[Any], done: Future[Any]) -> None:
        self._make_room()
        self._fill()
        if (error := done.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())

    def _make_room(self) -> None:
        with self._lock:
            self._started -= 1
