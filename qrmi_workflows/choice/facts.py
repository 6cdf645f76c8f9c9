"""What is known of a QPU, to choose among several."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from qrmi_workflows.choice.availability import Availability, availability
from qrmi_workflows.choice.expression import Value
from qrmi_workflows.client.states import Answer
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.notices import Notice
from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.schedulers.admission import Capacity
from qrmi_workflows.vendors.capabilities import Capabilities
from qrmi_workflows.vendors.registry import find_vendor

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one QPU.

    Attributes:
        name: Its name.
        definition: How to reach it; `None` if this user can read no definition of it.
        policy: The site's policy for it, if there is one.
        answer: The vendor's answer about its state; `None` if there was none.
        silence: Why there was none.
        capabilities: What its target says.
        calibrated: When it was calibrated, in seconds since the epoch, if known.
        unknown_target: Why its target is not known; empty if it is, or if nobody has asked.
        notice: Why it starts no job, if it does not.
        capacity: How much of it is free at the scheduler, if that is known.
        is_offered: Whether the scheduler has any of it now, if that is known.
        asked: When vendor and scheduler were asked, in seconds since the epoch.
    """

    name: str
    definition: JobQPU | None = field(default=None, repr=False)
    policy: QPUPolicy | None = None
    answer: Answer | None = None
    silence: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)
    calibrated: float | None = None
    unknown_target: str = ""
    notice: Notice | None = None
    capacity: Capacity | None = None
    is_offered: bool = True
    asked: float = 0.0

    @property
    def type(self) -> str | None:
        """Its resource type, if a definition says it."""
        return None if self.definition is None else self.definition.type

    @property
    def availability(self) -> Availability:
        """Whether it can be acquired now, and why not."""
        found = availability(self.answer, self.notice, self.capacity)
        if not self.is_offered:
            return replace(found, available=False, reason="the scheduler has none of it")
        if found.available is None and self.silence:
            return replace(found, reason=self.silence)
        return found

    @property
    def tasks_ahead(self) -> float:
        """How many tasks and jobs are ahead of a new one, as far as is known."""
        jobs = 0.0
        if self.capacity is not None and self.capacity.total:
            busy = self.capacity.total - self.capacity.free
            # Jobs that share the QPU go on side by side.
            jobs = (busy + (self.capacity.waiting or 0)) / self.capacity.total
        tasks = 0 if self.answer is None or self.answer.queue is None else self.answer.queue
        return tasks + jobs

    def fields(self, now: float | None = None) -> dict[str, Value]:
        """Return the fields of `where=` expressions (`expression.FIELDS`)."""
        now = time.time() if now is None else now
        capacity, answer, policy = self.capacity, self.answer, self.policy
        return {
            "name": self.name,
            "type": self.type,
            "vendor": None if self.type is None else find_vendor(self.type).name,
            "qubits": self.capabilities.qubits,
            "gates": self.capabilities.gates,
            "lanes": None if policy is None else policy.lanes,
            "state": None if answer is None else answer.state,
            "queue": None if answer is None else answer.queue,
            "free": None if capacity is None else capacity.free,
            "waiting": None if capacity is None else capacity.waiting,
            "calibration_age": None
            if self.calibrated is None
            else max(0.0, (now - self.calibrated) / 3600),
        }
