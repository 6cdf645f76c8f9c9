"""QRMI's handles to a QPU, each owned by its own thread.

A QRMI handle works in one thread only and does not survive a fork, and most of its calls have no
timeout (measured with qrmi 0.26.4: calls to a silent server were still blocked after 15 minutes).
So each call runs in the thread that owns the handle; if the vendor does not answer in time, both
are abandoned and replaced.

A fork waits for the calls in progress. While a call waits for the vendor, its thread is listed in
QRMI's runtime (by parking_lot, in qrmi 0.26.4). A forked child inherits the list but not the
thread, so its own first call may crash (seen with Python 3.13).
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Call", "Handle", "HandlePool", "failure_of"]

_STOP_LATENCY = 0.1  # seconds within which a wait for an answer notices its stop
_FORK_SECONDS = 1.0  # how long a fork waits for calls; a silent vendor must not prevent it


class Call(Future[Any]):
    """A call of a handle: a future of what the method returns.

    Attributes:
        was_made: Whether the method was called; if not, the handle could not be created.
    """

    was_made = False


_Request = tuple[Call, str, tuple[Any, ...], Callable[[Call], None] | None]


class _CallsInProgress:
    """The calls of this process that are in progress."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._forks = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a call; it does not begin during a fork."""
        with self._changed:
            self._changed.wait_for(lambda: not self._forks, _FORK_SECONDS)
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._count, _FORK_SECONDS)

    def after_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        self.__init__()  # type: ignore[misc]  # the child has none of the threads


_calls = _CallsInProgress()
os.register_at_fork(
    before=_calls.before_fork,
    after_in_parent=_calls.after_fork,
    after_in_child=_calls.after_fork_in_child,
)


class Handle:
    """One handle and its thread, a daemon: a silent vendor must not delay the process's exit.

    Args:
        make: Creates the handle, in the thread, at the first call; it may call the vendor.
        name: The thread's name.
        generation: See `HandlePool.replace`.

    Attributes:
        was_used: Whether it has been called before.
    """

    def __init__(self, make: Callable[[], Any], name: str, generation: int) -> None:
        self.generation = generation
        self.was_used = False
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        arguments = (self._inbox, make)
        threading.Thread(target=_serve, args=arguments, name=name, daemon=True).start()

    def call(
        self, method: str, args: tuple[Any, ...], after: Callable[[Call], None] | None = None
    ) -> Call:
        """Call a method; one call at a time.

        Args:
            method: The method.
            args: Its arguments.
            after: Called in the handle's thread when it is ready for another call, which it is not
                yet in the callbacks of the future.
        """
        self.was_used = True
        future = Call()
        self._inbox.put((future, method, args, after))
        return future

    def dismiss(self) -> None:
        """End the thread once any call in progress has returned."""
        self._inbox.put(None)


class HandlePool:
    """The idle handles to one QPU; safe to use from any thread and after a fork.

    Args:
        make: Creates a handle. It must not refer to the pool's owner, or a waiting thread would
            keep the owner from being garbage-collected.
        name: The name of their threads.
    """

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self._make = make
        self._name = name
        self._idle: list[Handle] = []
        self._pid = os.getpid()
        self._generation = 0

    def take(self) -> Handle:
        """Return a handle for exclusive use: an idle one, or a new one."""
        if self._pid != os.getpid():
            # A forked child inherits no threads, and a call to an inherited handle hangs.
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return Handle(self._make, self._name, self._generation)

    def put_back(self, handle: Handle) -> None:
        """Keep a handle whose call has returned, for the next call."""
        if handle.generation == self._generation:
            self._idle.append(handle)
        else:
            handle.dismiss()

    def prepare(self) -> None:
        """Start a thread for the next call, if none is idle."""
        self.put_back(self.take())

    def replace(self) -> None:
        """Use only new handles from now on: the settings for making them have changed."""
        self._generation += 1
        self.close()

    def close(self) -> None:
        """End the idle threads and their connections; the next call opens new ones."""
        while self._idle:
            self._idle.pop().dismiss()

    def __del__(self) -> None:
        self.close()


def _serve(inbox: queue.SimpleQueue[_Request | None], make: Callable[[], Any]) -> None:
    handle: Any = None
    while (item := inbox.get()) is not None:
        future, method, args, after = item
        try:
            with _calls.one_more():
                if handle is None:
                    handle = make()
                future.was_made = True
                result = getattr(handle, method)(*args)
            future.set_result(result)
            del result
        except BaseException as error:  # raised to the caller by the future
            future.set_exception(error)
        if after is not None:
            after(future)
        # Otherwise this frame would keep the last result alive until the next call.
        del item, future, args, after


def failure_of(call: Call, seconds: float, stop: threading.Event | None) -> BaseException | None:
    """Wait for a call's end, and return its error.

    Raises:
        TimeoutError: It takes longer, or `stop` was set.
    """
    if stop is None:
        return call.exception(timeout=seconds)
    end = time.monotonic() + seconds
    while time.monotonic() + _STOP_LATENCY < end and not stop.is_set():
        with suppress(TimeoutError):
            return call.exception(timeout=_STOP_LATENCY)
    return call.exception(timeout=0.0 if stop.is_set() else max(0.0, end - time.monotonic()))
