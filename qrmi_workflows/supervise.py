"""Run a command under leases: pass signals on, stop it in time, and let the leases go whatever.

Slurm sends SIGTERM, and SIGKILL after KillWait (30 s by default). A supervisor that waited for a
command which ignores SIGTERM would be killed with the lease still open; so the command has a
grace, and what is left of KillWait belongs to the release. What a command leaves behind ends with
it: a process that outlived the lease would go on using a QPU that is another's by then.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import run_command
from qrmi_workflows.schedulers.slurm import job_now, kill_wait_of

__all__ = ["ALIVE_SECONDS", "GRACE_SECONDS", "grace_inside", "run_supervised"]

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""Seconds that a command has between SIGTERM and SIGKILL, well inside Slurm's KillWait of 30."""

RELEASE_SECONDS = 8.0
"""What of KillWait is kept for the release, where a site's is short."""

ALIVE_SECONDS = 30.0
"""Seconds without a touch after which the side that wants the result counts as dead."""

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_LOOK_SECONDS = 5.0
_STUCK_SECONDS = 2.0
_STOPPING = frozenset({signal.SIGTERM, signal.SIGHUP})
_PASSED_ON = (*_STOPPING, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run_supervised(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    release: Callable[[], None],
    grace: float | None = None,
    alive: Path | None = None,
) -> int:
    """Run a command to its end, end what it left running, and call `release`; on every path.

    Args:
        argv: The command and its arguments; no shell.
        environ: Its environment.
        release: Gives the leases back; safe to call from another thread.
        grace: Seconds between SIGTERM and SIGKILL; when it is `None` as many as Slurm's KillWait
            leaves, at most `GRACE_SECONDS`.
        alive: A file that whoever wants the result keeps touching; the command is stopped as by
            SIGTERM when nobody has for `ALIVE_SECONDS`.

    Returns:
        Its exit code; 128 + N when signal N ended it.

    Raises:
        OSError: The command could not be started; `release` has been called.
    """
    # Orphans of the command become this process's children, and can be found.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopper = _Stopper(release, grace)
    with _signals_passed_on(stopper):
        try:
            # In this process's own group: Slurm may track a job by it, a terminal signals it.
            child = subprocess.Popen(_ending_with_this(argv), env=dict(environ))
            stopper.watch(child)
            if alive is not None:
                _stop_when_abandoned(alive)
            code = child.wait()
            stopper.end_orphans()
        finally:
            release()
    return code if code >= 0 else 128 - code


def grace_inside(kill_wait: float | None) -> float:
    """Return a command's grace, in seconds, where SIGKILL follows SIGTERM after `kill_wait`."""
    if kill_wait is None:
        return GRACE_SECONDS
    return min(GRACE_SECONDS, max(0.5, kill_wait - RELEASE_SECONDS))


def _ending_with_this(argv: Sequence[str]) -> list[str]:
    """Let a command get SIGTERM when its supervisor is killed: nobody else would tell it."""
    setpriv = shutil.which("setpriv")  # util-linux, on every Linux that has not removed it
    return [setpriv, "--pdeathsig", "TERM", *argv] if setpriv else list(argv)


class _Stopper:
    """Passes signals on to a command; from the first that asks it to stop, its time is short."""

    def __init__(self, release: Callable[[], None], grace: float | None) -> None:
        self._release = release
        self._grace = GRACE_SECONDS if grace is None else grace
        self._learns_grace = grace is None
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._stopped: float | None = None

    def watch(self, child: subprocess.Popen[bytes]) -> None:
        """Take charge of the command, and pass on what arrived before it had started."""
        self._child = child
        for number in self._early:
            self(number, None)
        if job := os.environ.get("SLURM_JOB_ID"):
            threading.Thread(target=self._ask_slurm, args=(job,), name="slurm", daemon=True).start()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._child is None:
            self._early.append(number)
            return
        if number == signal.SIGINT and sys.stdin.isatty():
            return  # the terminal has sent it to the command as well
        self._child.send_signal(number)
        if number in _STOPPING and self._stopped is None:
            self._stopped = time.monotonic()
            self._after(self._grace, self._kill)

    def end_orphans(self) -> None:
        """End what the ended command left running, within what remains of its grace."""
        orphans = psutil.Process().children(recursive=True)
        for orphan in orphans:
            with suppress(psutil.Error):
                orphan.terminate()
        used = 0.0 if self._stopped is None else time.monotonic() - self._stopped
        psutil.wait_procs(orphans, timeout=max(0.0, self._grace - used))
        limit = time.monotonic() + _STUCK_SECONDS
        # Those that ignore SIGTERM, and what they have started meanwhile.
        while orphans and time.monotonic() < limit:
            orphans = psutil.Process().children(recursive=True)
            for orphan in orphans:
                with suppress(psutil.Error):
                    orphan.kill()
            psutil.wait_procs(orphans, timeout=max(0.0, limit - time.monotonic()))

    def _ask_slurm(self, job: str) -> None:
        if self._learns_grace:
            with suppress(SchedulerError):
                shown = run_command(["scontrol", "show", "config"], timeout=5).stdout
                self._grace = grace_inside(kill_wait_of(shown))
        # A job that is cancelled while it starts gets no SIGTERM, and SIGKILL after KillWait: so
        # it asks, once. Most have ended by then, and a fan-out of short ones asks nothing.
        time.sleep(min(self._grace, GRACE_SECONDS))
        now = job_now(job)
        if now is not None and now.ending:
            logger.warning("job %s was cancelled before it had started", job)
            os.kill(os.getpid(), signal.SIGTERM)

    def _kill(self) -> None:
        if self._child is None or self._child.returncode is not None:
            return
        for process in _family(self._child.pid):
            with suppress(psutil.Error):
                process.kill()
        self._after(_STUCK_SECONDS, self._leave)

    def _leave(self) -> None:
        if self._child is not None and self._child.returncode is not None:
            return
        # The kernel holds the command (a dead file system): the lease need not wait for it.
        self._release()
        os._exit(128 + signal.SIGTERM)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()


def _stop_when_abandoned(alive: Path) -> None:
    threading.Thread(target=_watch, args=(alive,), name="alive", daemon=True).start()


def _watch(alive: Path) -> None:
    # Only changes of the file's time count: the clocks of two hosts need not agree.
    last, since = _touched(alive), time.monotonic()
    while time.monotonic() - since < ALIVE_SECONDS:
        time.sleep(_LOOK_SECONDS)
        now = _touched(alive)
        if now != last:
            last, since = now, time.monotonic()
    logger.warning("%s is touched no more: the submit side is dead; giving the QPU back", alive)
    os.kill(os.getpid(), signal.SIGTERM)


def _touched(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.Error:
        return []


@contextmanager
def _signals_passed_on(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
