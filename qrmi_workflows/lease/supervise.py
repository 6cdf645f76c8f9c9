"""Run a command under leases: pass signals on, stop it in time, and always release the leases.

Slurm sends SIGTERM, and SIGKILL after KillWait. A supervisor that waited for a command that ignores
SIGTERM would be killed with its leases open. So the command gets one share of KillWait
(`killwait`), and the release gets the rest.

Processes that a command leaves behind are ended too: one that outlived the lease could go on using
the QPU after another job has been granted it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from qrmi_workflows.config.variables import QPU_GRACE
from qrmi_workflows.lease.abandoned import stop_if_abandoned
from qrmi_workflows.lease.killwait import (
    KillWait,
    current_kill_wait,
    learn_kill_wait,
    start_kill_wait,
)
from qrmi_workflows.lease.prepared import PreparedProcess
from qrmi_workflows.schedulers import this_job, this_scheduler

if TYPE_CHECKING:
    import psutil

__all__ = ["run_supervised"]

logger = logging.getLogger(__name__)

_Process = subprocess.Popen[bytes] | PreparedProcess

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_STOPPING = frozenset({signal.SIGTERM, signal.SIGHUP})
_PASSED_ON = (*_STOPPING, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run_supervised(
    command: Sequence[str] | PreparedProcess,
    *,
    environ: Mapping[str, str],
    release: Callable[[], None],
    grace: float | None = None,
    alive: Path | None = None,
    spare: Collection[int] = (),
) -> int:
    """Run a command, end the processes that it leaves behind, and call `release`, on every path.

    Args:
        command: The command and its arguments, without a shell; or a process that is ready.
        environ: Its environment.
        release: Releases the leases; it may be called from another thread.
        grace: Seconds between SIGTERM and SIGKILL; the command's share of KillWait if `None`.
        alive: A file that the submitting process keeps touching. If it has not been touched for
            `ALIVE_SECONDS`, or is deleted, the command is stopped as by SIGTERM.
        spare: Child processes of this one that belong to the leases, not to the command.

    Returns:
        The command's exit code; 128 + N if signal N ended it.

    Raises:
        OSError: The command could not be started; `release` has been called.
    """
    # Orphans of the command become children of this process, which can then find them. With ctypes,
    # because the standard library has no prctl.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopper = _Stopper(release, grace, spare)
    seconds = min(stopper.grace, current_kill_wait().total)
    variables = {**environ, QPU_GRACE: f"{seconds:g}"}  # the command may hold leases too
    with _signals_passed_to(stopper) as wait_for_signal:
        try:
            # In this process's own group: Slurm may track a job by its process group
            # (proctrack/pgid), and a terminal sends signals to a group.
            # The stopper keeps signals that arrive before `watch`.
            child = _start(command, variables)
            stopper.watch(child)
            if alive is not None:
                stop_if_abandoned(alive)
            while (code := child.poll()) is None:
                wait_for_signal()
            stopper.end_orphans()
        finally:
            release()
    return code if code >= 0 else 128 - code


def _start(command: Sequence[str] | PreparedProcess, environ: Mapping[str, str]) -> _Process:
    if isinstance(command, PreparedProcess):
        command.start(environ)
        return command
    return subprocess.Popen(_tied_to_this_process(command), env=environ)


def _tied_to_this_process(argv: Sequence[str]) -> list[str]:
    """Have the kernel send a command SIGTERM if its supervisor is killed."""
    setpriv = shutil.which("setpriv")  # util-linux, which every distribution installs by default
    return [setpriv, "--pdeathsig", "TERM", *argv] if setpriv else list(argv)


class _Stopper:
    """Passes signals on to a command; the first one that asks it to stop starts a time limit."""

    def __init__(
        self, release: Callable[[], None], grace: float | None, spare: Collection[int]
    ) -> None:
        self._release = release
        self._spare = frozenset(spare)
        self._given_grace = grace
        self._child: _Process | None = None
        self._early: list[int] = []
        self._stopped: float | None = None

    @property
    def _budget(self) -> KillWait:
        return current_kill_wait()

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL for the command."""
        return self._budget.command if self._given_grace is None else self._given_grace

    def watch(self, child: _Process) -> None:
        """Take charge of the command, and pass on signals that arrived before it started."""
        self._child = child
        for number in self._early:
            self(number, None)
        if this_job() is not None:
            threading.Thread(target=self._check_job, name="job", daemon=True).start()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPPING:
            start_kill_wait()
        if self._child is None:
            self._early.append(number)
            return
        if number == signal.SIGINT and sys.stdin.isatty():
            return  # the terminal has sent it to the command too
        self._child.send_signal(number)
        if number in _STOPPING and self._stopped is None:
            self._stopped = time.monotonic()
            self._after(self.grace, self._kill)

    def end_orphans(self) -> None:
        """End the processes that the command left behind, in the rest of its grace period."""
        if not _has_children():
            return
        import psutil

        orphans = self._orphans()
        _signal(orphans, signal.SIGTERM)
        used = 0.0 if self._stopped is None else time.monotonic() - self._stopped
        psutil.wait_procs(orphans, timeout=max(0.0, self.grace - used))
        limit = time.monotonic() + self._budget.kill
        # Kill those that ignore SIGTERM, and any that they have started in the meantime.
        while orphans and time.monotonic() < limit:
            orphans = self._orphans()
            _signal(orphans, signal.SIGKILL)
            psutil.wait_procs(orphans, timeout=max(0.0, limit - time.monotonic()))

    def _orphans(self) -> list[psutil.Process]:
        import psutil

        children = psutil.Process().children()
        own = [child for child in children if child.pid not in self._spare]
        return [process for child in own for process in _family(child.pid)]

    def _check_job(self) -> None:
        started = time.monotonic()
        if self._given_grace is None:
            learn_kill_wait()
        # A job that is cancelled while it starts gets no SIGTERM, only SIGKILL after KillWait (seen
        # with Slurm 22.05). So check the job's state once, early enough to release the lease. Short
        # commands have ended by then, so a fan-out of them causes no queries.
        time.sleep(min(self.grace, self._budget.command))
        job = this_job()
        running = None if job is None else this_scheduler().running_job(job.id)
        if running is not None and running.is_ending:
            logger.warning("the job was cancelled before it had started")
            start_kill_wait(since=started)
            os.kill(os.getpid(), signal.SIGTERM)

    def _kill(self) -> None:
        if self._child is None or self._child.returncode is not None:
            return
        # First, because all the rest may hang on a dead file system, the import of psutil included.
        self._after(self._budget.kill, self._exit)
        _signal(_family(self._child.pid), signal.SIGKILL)

    def _exit(self) -> None:
        if self._child is not None and self._child.returncode is not None:
            return
        # The kernel cannot end the command (it hangs on a dead file system, say). Do not let it
        # keep the lease open.
        self._release()
        os._exit(128 + signal.SIGTERM)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        # A thread rather than SIGALRM: the main thread is blocked in wait().
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()


def _has_children() -> bool:
    """Return whether this process has children: most commands leave none behind."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _family(pid: int) -> list[psutil.Process]:
    import psutil  # takes 10 ms, which most commands do not need

    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.Error:
        return []


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


@contextmanager
def _signals_passed_to(
    handler: Callable[[int, FrameType | None], None],
) -> Iterator[Callable[[], None]]:
    """Call `handler` on signals; yield a function that waits for one, or for a child's end.

    Python handles a signal after the system call that it interrupts. One that arrives just before
    the call would be handled after it, which for `waitpid` is when the command has ended. But every
    signal also writes to the wakeup file, whenever it arrives.
    """
    ours, pythons = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wait_for_signal() -> None:
        select.select([ours], [], [])
        os.read(ours, 4096)

    with ExitStack() as opened:
        for end in (ours, pythons):
            opened.callback(os.close, end)
        file = signal.set_wakeup_fd(pythons, warn_on_full_buffer=False)
        # Not SIGTSTP and the like, which the shell handles for each process.
        before = {number: signal.signal(number, handler) for number in _PASSED_ON}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        try:
            yield wait_for_signal
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)
            signal.set_wakeup_fd(file)
