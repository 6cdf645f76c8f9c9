"""An estimate of what the vendor bills for a lease, from what the lease has seen of its tasks.

QRMI passes on no bill: a task has a state, a result and a log, and a session only an id (read in
0.26.4). The estimate follows the vendors' published rules, which `ResourceType` has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qrmi_workflows.tasks.usage import TaskUsage
from qrmi_workflows.vendors.base import ResourceType

__all__ = [
    "BY_SESSION",
    "BY_TASK",
    "NOTHING",
    "Bill",
    "active_seconds",
    "estimate_bill",
    "total_seconds",
]

BY_SESSION = "dedicated session: wall clock"
BY_TASK = "QPU seconds"

_Span = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """An estimated bill.

    Attributes:
        seconds: How many seconds are billed; `None` if the site's session is billed, not the lease.
        rule: The rule by which they are billed.
    """

    seconds: float | None
    rule: str


NOTHING = Bill(seconds=0.0, rule="emulated: nothing is billed")


def estimate_bill(
    tasks: Sequence[TaskUsage],
    *,
    traits: ResourceType,
    mode: str | None,
    closed: float,
    adopted: bool = False,
) -> Bill:
    """Estimate what the vendor bills for a lease.

    The time that a task occupied the QPU is taken to be the time from when it was last seen queued,
    or from its submission, to when its end was seen. Tasks that ran at the same time count once,
    because the device executes one at a time. So the estimate is rather too high than too low. On
    IBM Quantum System API and IQM Server it includes the wait in the vendor's queue: QRMI 0.26.4
    does not show when a task leaves it.

    Args:
        tasks: The lease's tasks.
        traits: The rules of the QPU's resource type.
        mode: The mode of the lease's session; `None` if the type has no modes.
        closed: When the session was closed, in seconds since the epoch.
        adopted: Whether the session is the site's.
    """
    spans = [span for task in tasks if (span := _span(task)) is not None]
    if mode == "dedicated":
        if adopted:
            return Bill(seconds=None, rule=f"{BY_SESSION}, until the site closes it")
        seconds = active_seconds(spans, closed=closed, interactive_ttl=traits.interactive_ttl)
        return Bill(seconds=round(seconds, 3), rule=BY_SESSION)
    seconds = total_seconds(spans) + traits.task_overhead * len(spans)
    overhead = f" and {traits.task_overhead:g} s a task" if traits.task_overhead else ""
    return Bill(seconds=round(seconds, 3), rule=f"{BY_TASK}{overhead}")


def active_seconds(spans: Iterable[_Span], *, closed: float, interactive_ttl: float) -> float:
    """Return how long a session is active whose tasks run in these spans of time.

    Args:
        spans: The start and the end of each task, in seconds since any moment.
        closed: When the session is closed.
        interactive_ttl: The idle time after which a session is no longer active.
    """
    total, since, until = 0.0, None, float("-inf")
    for start, end in sorted(spans):
        if since is None or start > until + interactive_ttl:
            total += 0.0 if since is None else until + interactive_ttl - since
            since = start
        until = max(until, end)
    if since is None:
        return total
    return total + max(until, min(closed, until + interactive_ttl)) - since


def total_seconds(spans: Iterable[_Span]) -> float:
    """Return the total length of spans of time, counting overlaps once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _span(task: TaskUsage) -> _Span | None:
    """Return when a task occupied the QPU; `None` if it was cancelled in the queue."""
    if task.running is None and task.state == "Cancelled":
        return None
    start = task.started if task.running is None else task.running
    return start, max(start, task.ended)
