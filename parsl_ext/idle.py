"""How long an executor has been idle."""

from __future__ import annotations

import time

__all__ = ["IdleTimer"]


class IdleTimer:
    """Tells when an executor has been idle for some time; asked regularly.

    Parsl has one such time for all executors (`max_idletime` in `Config`). A QPU's must be shorter,
    because others wait for the QPU while an idle block holds it.

    Args:
        seconds: The time; forever if `None`.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def is_over(self, *, is_busy: bool) -> bool:
        """Return whether the executor is idle now, and has been for that time."""
        if is_busy:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        idle = 0.0 if self._since is None else time.monotonic() - self._since
        return self._seconds is not None and self._since is not None and idle >= self._seconds
