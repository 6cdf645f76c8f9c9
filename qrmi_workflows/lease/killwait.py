"""KillWait: the seconds between the scheduler's SIGTERM and its SIGKILL, and who may use how many.

A lease must be released before SIGKILL. Two kinds of processes have to manage that:

- A program that holds a lease stops its tasks (twice: the one that it waits for, then the rest),
  releases the QPU and records the lease.
- A supervisor (`qpu lease exec`) lets its command end, kills what is left, releases and records.

Every wait on these paths takes its length from the shares here; no other module has a time-out for
the end of a process.

Shares are of the time that is left. So several leases that a process releases in turn fit into
KillWait too, and what one of them did not use is for the next.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Self

from qrmi_workflows.config.variables import kill_wait_seconds
from qrmi_workflows.schedulers import this_job, this_scheduler

__all__ = [
    "DEFAULT_SECONDS",
    "KillWait",
    "current_kill_wait",
    "learn_kill_wait",
    "start_kill_wait",
]

DEFAULT_SECONDS = 30.0
"""Slurm's default (slurm.conf(5), KillWait); assumed where the scheduler does not say."""

# Seconds of the default, in the order of the paths above. What is not given to anyone is for what
# takes time without waiting: starting threads, writing files, a busy node.
_TASKS, _COMMAND, _KILL, _RELEASE, _RECORD = 4.0, 5.0, 2.0, 15.0, 3.0

# A vendor that hangs on one call to release must leave time for another.
_RELEASE_CALL = _RELEASE / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KillWait:
    """KillWait, divided. All attributes are in seconds.

    Attributes:
        total: KillWait itself, or what is left of it.
        tasks: How long to wait for tasks to stop.
        command: How long a supervised command may take to end after SIGTERM.
        kill: How long to wait for killed processes to disappear.
        release: How long to try to release the QPU.
        release_call: How long each call of that may take.
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

        A KillWait longer than the default is not used up: nobody waits longer for a QPU than need
        be. A shorter one is divided in the same proportions.
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
    def program_needs(self) -> float:
        """What a program that holds a lease may take from SIGTERM to its end."""
        return 2 * self.tasks + self.release + self.record

    @property
    def supervisor_needs(self) -> float:
        """What a supervisor may take from SIGTERM to its end."""
        return self.command + self.kill + self.release + self.record


_learned: float | None = None
_started: float | None = None
_lock = threading.Lock()
_has_asked = False


def current_kill_wait() -> KillWait:
    """Return what is left of KillWait, divided.

    KillWait is what `$QPU_KILL_WAIT` or the scheduler says, else the default.
    """
    seconds = _full_seconds()
    left = seconds - _seconds_used()
    # A process that has outlived KillWait was not told to end by the scheduler.
    return KillWait.divide(left if left > 0 else seconds)


def start_kill_wait(since: float | None = None) -> None:
    """Count KillWait from now, because SIGTERM has arrived; do nothing if it is being counted.

    Args:
        since: When it started, by the monotonic clock, if that was earlier.
    """
    global _started  # it belongs to the process, as its end does
    if not 0.0 < _seconds_used() < _full_seconds():
        _started = time.monotonic() if since is None else since


def learn_kill_wait() -> None:
    """Ask the scheduler for KillWait, once for this process.

    Nothing is asked outside jobs, or if `$QPU_KILL_WAIT` is set.
    """
    global _has_asked, _learned  # they belong to the process, as its end does
    with _lock:
        if _has_asked or kill_wait_seconds() is not None or this_job() is None:
            return
        _has_asked = True
    _learned = this_scheduler().kill_wait()


def _full_seconds() -> float:
    seconds = kill_wait_seconds()
    if seconds is not None:
        return seconds
    return DEFAULT_SECONDS if _learned is None else _learned


def _seconds_used() -> float:
    return 0.0 if _started is None else time.monotonic() - _started
