"""The polling law: how often a vendor is asked for a task's state.

Polling may add at most 5 % of a task's own duration plus 10 ms. So the pause between two polls is a
twentieth of the time that the task has been running, at least 2 ms and at most a minute. While the
task is queued its own duration has not begun, so the pause is at most a second.
"""

from __future__ import annotations

from qrmi_workflows.client.protocol import TaskState

__all__ = ["next_pause"]

_FRACTION, _SHORTEST = 0.05, 0.002
_LONGEST_RUNNING, _LONGEST_QUEUED = 60.0, 1.0


def next_pause(state: TaskState, seconds: float) -> float:
    """Return the seconds until the next poll.

    Args:
        state: The task's last known state.
        seconds: How long it has been in that state.
    """
    longest = _LONGEST_QUEUED if state is TaskState.QUEUED else _LONGEST_RUNNING
    return min(max(_FRACTION * seconds, _SHORTEST), longest)
