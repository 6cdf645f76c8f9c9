"""A limit on the computing time of a simulation, which kills its process."""

from __future__ import annotations

import signal

__all__ = ["TOO_LONG", "start_clock", "stop_clock"]

TOO_LONG = -signal.SIGPROF
"""The exit status of a process that was killed."""


def start_clock(seconds: float | None) -> None:
    """Let the kernel kill this process after a computing time, unless the clock runs already.

    Aer cannot be interrupted and does not say in advance how long it takes. Computing time, unlike
    wall-clock time, does not depend on other processes.

    Args:
        seconds: The limit; `None`: there is none.
    """
    if seconds is not None and not signal.getitimer(signal.ITIMER_PROF)[0]:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def stop_clock() -> None:
    """Stop the clock, if it runs."""
    signal.setitimer(signal.ITIMER_PROF, 0)
