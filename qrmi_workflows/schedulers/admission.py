"""Keep jobs pending while their QPU is away, and tell how much of a QPU is free.

`Admission` is what a scheduler implements for this, if it can. A plan is pure of any commands: it
names what has to be changed to get from what the scheduler shows to what is wanted, so that it can
be made again at any time, by anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT, require_success, run_command

__all__ = ["Admission", "AdmissionPlan", "Capacity", "Change", "carry_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change at the scheduler.

    Attributes:
        qpu: The QPU's name.
        argv: The command.
        text: What it does, for messages: `reserve licence qpu_ibm_fez`.
    """

    qpu: str
    argv: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPlan:
    """What has to be changed at the scheduler.

    Attributes:
        changes: The changes; none if all is as wanted.
        marks: What this software will have closed at the scheduler, and may open again, where the
            scheduler itself does not tell. To be kept before the changes are made.
        ways: By which means each QPU that is away keeps its jobs pending.
        unsupported: Why jobs of a QPU that is away cannot be kept pending, by QPU.
    """

    changes: tuple[Change, ...] = ()
    marks: frozenset[str] = frozenset()
    ways: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many units of a QPU there are.

    Attributes:
        free: Those that no job holds.
        total: All.
        waiting: How many jobs wait for one; `None` if that is not known.
    """

    free: int
    total: int
    waiting: int | None = None


class Admission(Protocol):
    """How a scheduler keeps jobs pending, and what it has free; the number of jobs is no matter."""

    def plan(
        self,
        away: Collection[str],
        site: SitePolicy,
        marks: Collection[str] = (),
        *,
        timeout: float = COMMAND_TIMEOUT,
    ) -> AdmissionPlan:
        """Plan how jobs of these QPUs, and of no others, are kept pending.

        Args:
            away: The QPUs that start no job.
            site: The site policy.
            marks: Those of the last plan.
            timeout: Seconds that each command may take.

        Raises:
            SchedulerError: The scheduler did not answer.
        """

    def capacities(
        self, site: SitePolicy, *, timeout: float = COMMAND_TIMEOUT
    ) -> Mapping[str, Capacity]:
        """Return how much of each QPU is free, without those that the scheduler does not count.

        Raises:
            SchedulerError: The scheduler did not answer.
        """


def carry_out(change: Change, *, timeout: float = COMMAND_TIMEOUT) -> str | None:
    """Make a change; return why it failed, or `None`."""
    try:
        require_success(run_command(change.argv, timeout=timeout))
    except SchedulerError as error:
        return str(error)
    return None
