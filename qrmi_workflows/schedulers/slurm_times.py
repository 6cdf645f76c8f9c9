"""Slurm's times: seconds since the epoch, because its local times have no UTC offset.

In the hour that is repeated when daylight saving time ends, a local time stands for two moments.
`run_command` has queries print `SLURM_TIME_FORMAT=%s`; options take `uts` and the seconds (both in
22.05: `slurm_make_time_str` and `parse_time` in src/common/parse_time.c).
"""

from __future__ import annotations

from datetime import datetime

__all__ = ["parse_time", "render_time"]


def parse_time(text: str) -> float:
    """Parse a time as queries print it.

    A local time, as of a wrapper that sets the format, is taken for the first of two moments, and
    one that clocks skip as if they did not.

    Raises:
        ValueError: It is none (`Unknown`, `None`, `N/A`).
    """
    return float(text) if text.isdecimal() else datetime.fromisoformat(text).timestamp()


def render_time(seconds: float) -> str:
    """Render a time for an option (`--starttime`, `EndTime`)."""
    return f"uts{int(seconds)}"
