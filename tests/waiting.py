"""Wait, with a deadline, for conditions that no event announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

__all__ = ["WAIT_SECONDS", "is_waiting_for_a_lock", "suspend", "wait_until"]

WAIT_SECONDS = 110.0
"""For `sbatch --wait`: Slurm 22.05 looks whether the job has ended after 2, 10 and 42 seconds."""

_FRACTION, _SHORTEST, _LONGEST = 0.02, 0.002, 0.1  # pauses: of the time waited; seconds
_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], what: str, seconds: float = 100.0) -> _T:
    """Poll until a condition holds; return what it returned.

    Args:
        condition: Returns a true value once it holds.
        what: The condition in words, for the message (`the end of the job`).
        seconds: The deadline. It allows for a loaded machine: only a failing test reaches it.

    Raises:
        AssertionError: The condition did not hold in time.
    """
    start = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - start
        assert waited < seconds, f"timed out after {seconds:g} s waiting for {what}"
        time.sleep(min(max(_FRACTION * waited, _SHORTEST), _LONGEST))
    return value


def suspend(process: psutil.Process) -> None:
    """Stop a process with SIGSTOP, and return when it has stopped."""
    process.suspend()
    stopped = psutil.STATUS_STOPPED
    wait_until(lambda: process.status() == stopped, f"process {process.pid} to stop")


def is_waiting_for_a_lock(pid: int) -> bool:
    """Return whether a process is waiting for a file lock, according to `/proc/locks`."""
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)
