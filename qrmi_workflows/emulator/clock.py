"""The emulator's clock: the machine's, plus a skew that a fault may set."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock"]


class Clock:
    """A wall clock that a fault can set wrong."""

    def __init__(self) -> None:
        self.skew_seconds = 0.0

    def now(self) -> float:
        """Return the time in seconds since the epoch, as precise as `iso` formats it."""
        return round(time.time() + self.skew_seconds, 6)

    @staticmethod
    def iso(moment: float | None) -> str | None:
        """Format a time as ISO 8601 in UTC with microseconds; pass `None` through."""
        if moment is None:
            return None
        return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
