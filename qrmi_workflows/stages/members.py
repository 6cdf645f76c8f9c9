"""Which processes of a stage are alive, as its keeper sees them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from qrmi_workflows.lease.membership import is_member_alive
from qrmi_workflows.lease.stage_folder import StageFolder

__all__ = ["Members"]

_LOOKS_PAUSE = 20.0  # between two looks, in times that a look takes


class Members:
    """The members of one stage.

    Args:
        folder: The stage's folder.
        report: Called with what happened to a member.
    """

    def __init__(self, folder: StageFolder, *, report: Callable[[str], None]) -> None:
        self._folder = folder
        self._report = report
        self._last: list[str] = []
        self._have_left = False
        self._next_look = float("-inf")

    def alive(self) -> list[str]:
        """Return the members that are alive; forget those that have died.

        On a network file system, a look at hundreds of locks takes a while: it is not repeated so
        soon that looking would take more than 5 % of the time.
        """
        start = time.monotonic()
        if self._last and start < self._next_look:
            return self._last
        alive = []
        for file in list(self._folder.members.glob("[!.]*")):
            if is_member_alive(file):
                alive.append(file.name)
            elif file.exists():
                self._report(f"has lost a process: {file.name} has died")
                with suppress(OSError):
                    file.unlink(missing_ok=True)
        now = time.monotonic()
        self._have_left = not alive and (self._have_left or bool(self._last))
        self._last, self._next_look = alive, now + _LOOKS_PAUSE * (now - start)
        return alive

    def have_left(self) -> bool:
        """Return whether the last member has left since this was last asked."""
        have_left, self._have_left = self._have_left, False
        return have_left
