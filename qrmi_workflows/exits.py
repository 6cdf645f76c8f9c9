"""The end of a process gives back what it owns: at its exit, at SIGTERM, and at Ctrl-C."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

__all__ = ["at_end", "beyond_signals", "exit_put_off", "no_longer_at_end", "sigterm_exits"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_LATE_SECONDS = 5.0

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
    """Let what is within finish before SIGTERM or Ctrl-C ends the process; it must be bounded."""
    global _put_off  # a signal's handler belongs to the process
    if threading.current_thread() is not threading.main_thread() or _put_off is not None:
        yield
        return
    arrived: list[int] = []
    _put_off = arrived
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, _exit_on_signal)
    try:
        yield
    finally:
        if interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _put_off = None
    if signal.SIGINT in arrived:
        raise KeyboardInterrupt
    if arrived:
        sys.exit(128 + arrived[0])


def beyond_signals(work: Callable[[threading.Event], _T], undo: Callable[[_T], None]) -> _T:
    """Do what a signal must not cut off half done: in a thread, where none arrives.

    Args:
        work: What is done. While it lasts a signal ends the wait for it, and sets its event.
        undo: Called with what came of the work when nobody waits for it any more.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return work(stop)
    done: Future[_T] = Future()
    arguments = (done, work, stop)
    threading.Thread(target=_fulfil, args=arguments, name="qpu-open", daemon=True).start()
    try:
        return done.result()
    except BaseException:
        stop.set()
        if not done.done() or done.exception() is None:  # interrupted; likely the process ends
            wait([done], timeout=_LATE_SECONDS)
            done.add_done_callback(lambda late: None if late.exception() else undo(late.result()))
        raise


def _fulfil(done: Future[_T], work: Callable[[threading.Event], _T], stop: threading.Event) -> None:
    try:
        done.set_result(work(stop))
    except BaseException as error:  # all of it belongs to the one who waits
        done.set_exception(error)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    if _put_off is not None:
        _put_off.append(number)
    else:
        sys.exit(128 + number)


@atexit.register
def _give_all_back() -> None:
    for pid, give_back in list(_owned.values()):
        if pid == os.getpid():
            _give_back(give_back)


def _give_back(give_back: Callable[[], None]) -> None:
    """Give one thing back; what fails with it leaves the others their turn."""
    try:
        with suppress(SystemExit, KeyboardInterrupt):  # it is ending
            give_back()
    except Exception as error:
        logger.warning("%s", error)
