"""Waiting for what no event announces, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

_PAUSE_SECONDS = 0.005
_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], what: str, seconds: float = 60.0) -> _T:
    """Poll until a condition holds; return what it returned.

    Args:
        condition: Returns a true value once it holds.
        what: The condition in words, for the message.
        seconds: The deadline, which only a failing test reaches: a loaded machine is slow.

    Raises:
        AssertionError: The condition did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(_PAUSE_SECONDS)
    return value
