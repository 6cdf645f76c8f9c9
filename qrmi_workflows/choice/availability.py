"""Whether a QPU can be acquired now: what its vendor, the site and the scheduler say."""

from __future__ import annotations

from dataclasses import dataclass

from qrmi_workflows.client.states import Answer
from qrmi_workflows.config.notices import Notice
from qrmi_workflows.schedulers.admission import Capacity

__all__ = ["Availability", "availability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Three answers about a QPU, and why it cannot be acquired now.

    Attributes:
        operational: Whether its vendor says that it is operational; `None` if not known.
        free: How many units of it no job holds; `None` if the scheduler does not count them.
        units: How many units of it there are.
        available: Whether it can be acquired now; `None` if not known.
        reason: Why not, or why it is not known.
    """

    operational: bool | None
    free: int | None
    units: int | None
    available: bool | None
    reason: str


def availability(
    answer: Answer | None, notice: Notice | None, capacity: Capacity | None
) -> Availability:
    """Put the three answers about a QPU together.

    Args:
        answer: The vendor's; `None` if there was none.
        notice: Why it starts no job, if it does not.
        capacity: How much of it is free at the scheduler, if that is known.
    """
    available: bool | None = True
    reason = ""
    if notice is not None:
        available, reason = False, str(notice).removeprefix(f"QPU {notice.qpu!r} is ")
    elif answer is None:
        available, reason = None, "the vendor does not answer"
    elif not answer.is_operational:
        available, reason = False, answer.reason or f"it is {answer.state}"
    elif capacity is not None and capacity.free == 0:
        available, reason = False, "jobs hold it"
    elif answer.is_full:
        available, reason = False, "the vendor takes no more tasks now"
    return Availability(
        operational=None if answer is None else answer.is_operational,
        free=None if capacity is None else capacity.free,
        units=None if capacity is None else capacity.total,
        available=available,
        reason=reason,
    )
