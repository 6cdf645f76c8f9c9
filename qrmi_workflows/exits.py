"""The end of a process gives back what it owns: at its exit, and at SIGTERM."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["at_end", "exit_put_off", "no_longer_at_end", "sigterm_exits"]

_owned: dict[int, tuple[int, Callable[[], None]]] = {}
_put_off: list[int] | None = None


def at_end(owned: object, give_back: Callable[[], None]) -> None:
    """Call a function when this process, and not a fork of it, ends; in the order of owning."""
    _owned[id(owned)] = (os.getpid(), give_back)


def no_longer_at_end(owned: object) -> None:
    """Forget what has been given back."""
    _owned.pop(id(owned), None)


def sigterm_exits() -> None:
    """Make SIGTERM an orderly exit, unless the program has its own way with it."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_on_signal)


@contextmanager
def exit_put_off() -> Iterator[None]:
    """Let what is within finish before SIGTERM ends the process; it must be bounded in time."""
    global _put_off  # a signal's handler belongs to the process
    if threading.current_thread() is not threading.main_thread() or _put_off is not None:
        yield
        return
    arrived: list[int] = []
    _put_off = arrived
    try:
        yield
    finally:
        _put_off = None
    if arrived:
        sys.exit(128 + arrived[0])


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    if _put_off is not None:
        _put_off.append(number)
    else:
        sys.exit(128 + number)


@atexit.register
def _give_all_back() -> None:
    for pid, give_back in list(_owned.values()):
        if pid == os.getpid():
            give_back()
