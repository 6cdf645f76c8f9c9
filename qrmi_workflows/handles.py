"""Handles to a QPU, each owned by a thread of its own.

A handle of QRMI's serves one thread, does not survive a fork, and most of its calls have no
timeout. A call therefore runs in the thread that owns the handle; when the vendor is silent for too
long, both are abandoned and replaced.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["Handle", "Handles"]

_Request = tuple[Future[Any], str, tuple[Any, ...]]


class Handle:
    """One handle and its thread. A daemon: a silent vendor holds up no exit.

    Args:
        make: Makes the handle, in the thread, at the first call; that may call the vendor.
        name: The thread's name.
        generation: See `Handles.replace`.

    Attributes:
        used: Whether it has been called before.
    """

    def __init__(self, make: Callable[[], Any], name: str, generation: int) -> None:
        self.generation = generation
        self.used = False
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        arguments = (self._inbox, make)
        threading.Thread(target=_serve, args=arguments, name=name, daemon=True).start()

    def call(self, method: str, args: tuple[Any, ...]) -> Future[Any]:
        """Call a method; one call at a time."""
        self.used = True
        future: Future[Any] = Future()
        self._inbox.put((future, method, args))
        return future

    def dismiss(self) -> None:
        """Let the thread end as soon as its call, if one is under way, does."""
        self._inbox.put(None)


class Handles:
    """The handles to one QPU that are idle; safe to use from any thread and after a fork.

    Args:
        make: Makes one. It must not refer to what owns this, which could never end then.
        name: What their threads are called.
    """

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self._make = make
        self._name = name
        self._idle: list[Handle] = []
        self._pid = os.getpid()
        self._generation = 0

    def take(self) -> Handle:
        """Return one that nobody else calls: an idle one, or another."""
        if self._pid != os.getpid():  # a forked child inherits handles that hang, and no threads
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return Handle(self._make, self._name, self._generation)

    def put_back(self, handle: Handle) -> None:
        """Keep one whose call has ended for the next."""
        if handle.generation == self._generation:
            self._idle.append(handle)
        else:
            handle.dismiss()

    def replace(self) -> None:
        """Make all handles anew from now on: what they are made with has changed."""
        self._generation += 1
        self.close()

    def close(self) -> None:
        """Let the idle threads and their connections go; the next call makes new ones."""
        while self._idle:
            self._idle.pop().dismiss()

    def __del__(self) -> None:
        self.close()


def _serve(inbox: queue.SimpleQueue[_Request | None], make: Callable[[], Any]) -> None:
    handle: Any = None
    while (item := inbox.get()) is not None:
        future, method, args = item
        try:
            if handle is None:
                handle = make()
            future.set_result(getattr(handle, method)(*args))
        except BaseException as error:  # all of it belongs to the caller
            future.set_exception(error)
        del item, future, args  # or this frame keeps the last result alive
