"""Signals that raise exceptions, but not while a lock is being taken or released.

Python runs a signal's handler between any two instructions of the main thread. If it raises an
exception when a lock has just been taken, and the code that releases it is not yet entered, nobody
ever releases the lock, and other threads wait for it without end. A `with` statement on a lock
written in C is safe; what is written in Python is not, such as the locks of the import system,
of conditions and events (https://github.com/python/cpython/issues/74174).
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from contextlib import suppress
from types import FrameType

__all__ = ["handle_ctrl_c", "is_ctrl_c_default", "is_postponed"]

_PAUSE_SECONDS = 0.005
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_ENTERING = frozenset({"__enter__", "__exit__"})
_LOCKING = ("/threading.py", "/contextlib.py", "/concurrent/futures/_base.py")


def handle_ctrl_c() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt` as before, but never while a lock is being taken."""
    with suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def is_ctrl_c_default() -> bool:
    """Return whether Ctrl-C raises `KeyboardInterrupt`: the program does not handle it itself."""
    return signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _interrupt)


def is_postponed(number: int, frame: FrameType | None) -> bool:
    """Return whether a handler must not raise an exception now; if so, the signal comes again.

    Args:
        number: The signal.
        frame: What it has interrupted, as the handler got it.
    """
    if frame is None or not _takes_locks(frame):
        return False
    with suppress(RuntimeError):  # the process is ending
        _thread.start_new_thread(_send_again, (number,))
    return True


def _takes_locks(frame: FrameType) -> bool:
    # Only the innermost frame counts: a program may run in an import from its start to its end.
    code = frame.f_code
    if code.co_filename == _IMPORT_SYSTEM:
        return True
    return code.co_name in _ENTERING and code.co_filename.endswith(_LOCKING)


def _send_again(number: int) -> None:
    time.sleep(_PAUSE_SECONDS)
    os.kill(os.getpid(), number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not is_postponed(number, frame):
        raise KeyboardInterrupt
