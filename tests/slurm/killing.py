"""Kill processes as the crash of a node does."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil

__all__ = ["kill_at_once"]


def kill_at_once(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; none of them sees that another one has ended."""
    doomed = list(processes)
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                act(process)
