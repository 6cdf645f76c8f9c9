"""KillWait, the seconds between the scheduler's SIGTERM and its SIGKILL, and how it is shared.

A lease must be released before SIGKILL. Two kinds of processes have to achieve that:

- A program that holds a lease stops its tasks (first the one that it waits for, then the rest),
  releases the QPU and records the lease.
- A supervisor (`qpu lease exec`) lets its command end, kills what is left, releases and records.

Every wait on these paths takes its length from the shares here; no other module sets a timeout for
the end of a process.

Shares are fractions of the time that is left. So several leases that a process releases one after
the other also fit into KillWait, and each can use the time that the previous ones did not need. The
command of a supervisor may hold leases too: it divides its own share in the same way.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Self

from qrmi_workflows.config.variables import kill_wait_seconds
from qrmi_workflows.schedulers import this_job, this_scheduler

__all__ = [
    "DEFAULT_SECONDS",
    "KillWait",
    "current_kill_wait",
    "learn_kill_wait",
    "release_budget",
    "start_kill_wait",
]

DEFAULT_SECONDS = 30.0
"""Slurm's default (slurm.conf(5), KillWait); assumed if the scheduler does not tell."""

# Seconds out of the default, in the order of the paths above. The rest is a reserve for work that
# takes time without waiting: starting threads, writing files, a busy node.
_TASKS, _COMMAND, _KILL, _RELEASE, _RECORD = 4.0, 5.0, 2.0, 15.0, 3.0

# If the vendor hangs on one release call, there must be time for another.
_RELEASE_CALL = _RELEASE / 2

# Longer than other queries may take: whether a release fits into a short KillWait depends on the
# answer, and nothing waits for it.
_ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KillWait:
    """KillWait, divided. All attributes are in seconds.

    Attributes:
        total: KillWait itself, or what is left of it.
        tasks: How long to wait for tasks to stop.
        command: How long a supervised command may take to end after SIGTERM.
        kill: How long to wait for killed processes to disappear.
        release: How long to try to release the QPU.
        release_call: How long each release call may take.
        record: How long the lease record and the journal may take.
    """

    total: float
    tasks: float
    command: float
    kill: float
    release: float
    release_call: float
    record: float

    @classmethod
    def divide(cls, seconds: float) -> Self:
        """Divide KillWait.

        If KillWait is longer than the default, the excess is not used, so that the next job does
        not wait for the QPU longer than necessary. A shorter KillWait is divided in the same
        proportions.
        """
        scale = min(1.0, seconds / DEFAULT_SECONDS)
        return cls(
            total=seconds,
            tasks=_TASKS * scale,
            command=_COMMAND * scale,
            kill=_KILL * scale,
            release=_RELEASE * scale,
            release_call=_RELEASE_CALL * scale,
            record=_RECORD * scale,
        )

    @property
    def adopted_tasks(self) -> float:
        """How long to wait for tasks to stop if another process releases the QPU."""
        return self.tasks + self.release / 2

    @property
    def program_needs(self) -> float:
        """The longest time that a program with a lease may take from SIGTERM to its end."""
        return 2 * self.tasks + self.release + self.record

    @property
    def supervisor_needs(self) -> float:
        """The longest time that a supervisor may take from SIGTERM to its end."""
        return self.command + self.kill + self.release + self.record


_learned: float | None = None
_started: float | None = None
_lock = threading.Lock()
_has_asked = False


def current_kill_wait() -> KillWait:
    """Return the rest of KillWait, divided.

    KillWait comes from `$QPU_KILL_WAIT` or the scheduler; otherwise it is the default.
    """
    seconds = _full_seconds()
    left = seconds - _seconds_used()
    # A process that has outlived KillWait did not get its SIGTERM from the scheduler.
    return KillWait.divide(left if left > 0 else seconds)


def release_budget() -> KillWait:
    """Return the shares for releasing a QPU now.

    Until SIGTERM has arrived they are those of the default, and one call may take all of the time.
    Otherwise releases by a vendor that is merely slow would fail wherever KillWait, or the grace of
    a supervisor, is short.
    """
    if _started is not None and _seconds_used() < _full_seconds():
        return current_kill_wait()
    return replace(KillWait.divide(DEFAULT_SECONDS), release_call=_RELEASE)


def start_kill_wait(since: float | None = None) -> None:
    """Start counting KillWait, because SIGTERM has arrived; do nothing if it is being counted.

    Args:
        since: When it started, by the monotonic clock, if that was earlier.
    """
    global _started  # a process ends only once
    if not 0.0 < _seconds_used() < _full_seconds():
        _started = time.monotonic() if since is None else since


def learn_kill_wait() -> None:
    """Ask the scheduler for KillWait, once for this process.

    Does nothing outside of jobs, or if `$QPU_KILL_WAIT` is set.
    """
    global _has_asked, _learned  # a process ends only once
    with _lock:
        if _has_asked or kill_wait_seconds() is not None or this_job() is None:
            return
        _has_asked = True
    _learned = this_scheduler().kill_wait(timeout=_ASK_SECONDS)


def _full_seconds() -> float:
    seconds = kill_wait_seconds()
    if seconds is not None:
        return seconds
    return DEFAULT_SECONDS if _learned is None else _learned


def _seconds_used() -> float:
    return 0.0 if _started is None else time.monotonic() - _started
