"""Release leases when their process ends: at exit, on SIGTERM and on Ctrl-C."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from qrmi_workflows.lease.killwait import start_kill_wait
from qrmi_workflows.state.signals import is_ctrl_c_default, is_postponed

__all__ = [
    "exit_deferred",
    "exit_on_sigterm",
    "forget_at_exit",
    "release_at_exit",
    "run_uninterrupted",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# With the pid, because a forked child inherits the registrations but owns none of the leases.
_to_release: dict[int, tuple[int, Callable[[], None]]] = {}
_deferred: list[int] | None = None
_last_sigterm = float("-inf")
_REPEAT_SECONDS = 1.0


def release_at_exit(owned: object, release: Callable[[], None]) -> None:
    """Call `release` when this process exits, but not when a fork of it exits.

    Functions are called in the order in which they were registered.
    """
    _to_release[id(owned)] = (os.getpid(), release)


def forget_at_exit(owned: object) -> None:
    """Cancel `release_at_exit` for a lease that has been released."""
    _to_release.pop(id(owned), None)


def exit_on_sigterm() -> None:
    """Make SIGTERM exit the process through `SystemExit`, unless the program handles it."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_on_signal)


@contextmanager
def exit_deferred() -> Iterator[None]:
    """Defer SIGTERM and Ctrl-C until the block has ended; the block must be bounded in time."""
    global _deferred  # one per process, like signal handlers
    if threading.current_thread() is not threading.main_thread() or _deferred is not None:
        yield
        return
    # SIGTERM's handler is already ours (exit_on_sigterm); Ctrl-C's raises KeyboardInterrupt
    # wherever the main thread happens to be.
    arrived: list[int] = []
    _deferred = arrived
    on_ctrl_c = signal.getsignal(signal.SIGINT) if is_ctrl_c_default() else None
    if on_ctrl_c is not None:
        signal.signal(signal.SIGINT, _exit_on_signal)
    try:
        yield
    finally:
        if on_ctrl_c is not None:
            signal.signal(signal.SIGINT, on_ctrl_c)
        _deferred = None
    if signal.SIGINT in arrived:
        raise KeyboardInterrupt
    if arrived:
        sys.exit(128 + arrived[0])


def run_uninterrupted(
    work: Callable[[threading.Event], _T], undo: Callable[[_T], None], *, late_seconds: float
) -> _T:
    """Run work in a thread, where no signal can interrupt it.

    Args:
        work: Does the work. If a signal arrives, the event is set and the caller stops waiting.
        undo: Called with a result that arrives after the caller has stopped waiting.
        late_seconds: How long an interrupted process waits for the work, in order to undo it before
            the process ends.
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
        # Either the work failed, or a signal handler raised here while the work goes on.
        stop.set()
        if not done.done() or done.exception() is None:  # interrupted, and likely about to end
            wait([done], timeout=late_seconds)
            done.add_done_callback(lambda late: None if late.exception() else undo(late.result()))
        raise


def _fulfil(done: Future[_T], work: Callable[[threading.Event], _T], stop: threading.Event) -> None:
    try:
        done.set_result(work(stop))
    except BaseException as error:  # raised to the waiting thread by the future
        done.set_exception(error)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    global _last_sigterm  # one per process, like signal handlers
    if number == signal.SIGTERM:
        start_kill_wait()
    if _deferred is None and is_postponed(number, frame):
        return
    if number == signal.SIGTERM:
        # Slurm signals all processes of a job, and a supervisor passes its own signal on. A second
        # SystemExit could cut off what the first one has begun, wherever that happens to be. A
        # later one counts: Python loses exceptions that a handler raises in a destructor.
        before, _last_sigterm = _last_sigterm, time.monotonic()
        if _last_sigterm - before < _REPEAT_SECONDS:
            return
    if _deferred is not None:
        _deferred.append(number)
    else:
        sys.exit(128 + number)


# atexit runs after the main thread has ended, also by SystemExit from a signal handler, but not
# after SIGKILL or os._exit: `qpu reap` is for those.
@atexit.register
def _release_all() -> None:
    owned = [release for pid, release in _to_release.values() if pid == os.getpid()]
    is_ended_by_sigterm = _last_sigterm > float("-inf")
    in_main_thread = threading.current_thread() is threading.main_thread()
    if (owned or is_ended_by_sigterm) and in_main_thread:
        # Another signal would only cut a release off, or replace the exit code: Python restores
        # the default handlers before it has ended.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    for release in owned:
        _try_to_release(release)


def _try_to_release(release: Callable[[], None]) -> None:
    """Release one lease; a failure must not keep the others from being released."""
    try:
        with suppress(SystemExit, KeyboardInterrupt):  # the process is ending anyway
            release()
    except Exception as error:
        logger.warning("%s", error)
