"""What should not be in the accounts: wasted QPU time, lost results, leases that overlap."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.lease.record import LeaseRecord

__all__ = ["IDLE_SECONDS", "IDLE_SHARE", "Anomalies", "Anomaly", "exclusive_limits", "tasks_to_do"]

IDLE_SECONDS = 60.0
"""A lease is not worth a remark if the QPU was idle for less time than this."""

IDLE_SHARE = 0.5
"""A lease is mostly idle if the QPU was idle for a greater share of it than this."""

CLOCK_SECONDS = 1.0
"""By how much the clocks of two hosts may differ without two leases counting as overlapping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """One thing that should not be.

    Attributes:
        kind: `idle`, `reaped`, `no-result` or `overlap`.
        user: Whose lease it is.
        qpu: The QPU.
        job: The lease's job, if it has one.
        lease: The lease's id.
        released: When it was released.
        seconds: How many seconds of QPU time it concerns.
        what: What happened.
        remedy: What to do about it.
    """

    kind: str
    user: str
    qpu: str
    job: str | None
    lease: str
    released: str
    seconds: float
    what: str
    remedy: str

    def __str__(self) -> str:
        job = f"job {self.job}" if self.job else f"lease {self.lease} (outside of jobs)"
        return f"{job}, QPU {self.qpu}, user {self.user}: {self.what} {self.remedy}"


class _Span(NamedTuple):
    """The time of one lease, and who had it: leases of one job may overlap."""

    start: float
    end: float
    party: str
    user: str
    job: str
    lease: str
    released: str


@dataclass(slots=True)
class Anomalies:
    """Finds anomalies in lease records, one record after the other.

    Attributes:
        limits: How many jobs may hold each QPU at the same time; others are not checked.
        to_do: This user's recorded tasks without a result, by id.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    to_do: Mapping[str, TaskRecord] = field(default_factory=dict)
    _found: list[Anomaly] = field(default_factory=list)
    _spans: dict[str, list[_Span]] = field(default_factory=lambda: defaultdict(list))

    def see(self, user: str, record: LeaseRecord, acquired: float, released: float) -> None:
        """Look at a record.

        Args:
            user: Whose it is.
            record: The record.
            acquired: When the lease was acquired, in seconds since the epoch.
            released: When it was released.
        """
        if record.reaped and not record.adopted:
            self._note("reaped", user, record, record.idle, *_reaped(record))
        elif record.idle >= IDLE_SECONDS and record.idle > IDLE_SHARE * record.held:
            self._note("idle", user, record, record.idle, *_idle(record))
        if record.without_result or (self.to_do and any(t in self.to_do for t in record.task_ids)):
            self._see_tasks(user, record)
        if record.qpu in self.limits:
            job, owner = record.owner.job or "", record.owner
            # One string, because a tuple of strings costs the garbage collector time.
            of_job = f"{user} {owner.cluster} {job} {owner.restart}"
            party = of_job if job else f"{user} {record.lease}"
            span = _Span(acquired, released, party, user, job, record.lease, record.released)
            self._spans[record.qpu].append(span)

    def found(self) -> list[Anomaly]:
        """Return what was found, the costliest first."""
        overlaps = [
            overlap
            for qpu, spans in self._spans.items()
            for overlap in _overlaps(qpu, spans, self.limits[qpu])
        ]
        return sorted([*self._found, *overlaps], key=lambda each: -each.seconds)

    def _see_tasks(self, user: str, record: LeaseRecord) -> None:
        for task in dict.fromkeys([*record.without_result, *record.task_ids]):
            known = self.to_do.get(task)
            if known is None and task not in record.without_result:
                continue
            reason = (known.reason if known else None) or "it failed or was cancelled"
            what = f"task {task} ran without a result: {reason.removesuffix('.')}."
            remedy = "Look for the cause before it is run again; it may be billed."
            if known is not None and known.state not in (RecordState.FAILED, RecordState.MOVED):
                what = f"the result of task {task} was not fetched."
                remedy = f"Rerun step {known.step!r}, which fetches it without paying again."
            seconds = record.busy / max(1, record.tasks)
            self._note("no-result", user, record, seconds, what, remedy)

    def _note(
        self, kind: str, user: str, record: LeaseRecord, seconds: float, what: str, remedy: str
    ) -> None:
        self._found.append(
            Anomaly(
                kind=kind,
                user=user,
                qpu=record.qpu,
                job=record.owner.job,
                lease=record.lease,
                released=record.released,
                seconds=round(seconds, 3),
                what=what,
                remedy=remedy,
            )
        )


def tasks_to_do(journal: Journal) -> dict[str, TaskRecord]:
    """Return the tasks of a journal's open steps that have an id and no result, by id."""
    records = journal.records(on_error=lambda _: None)
    return {
        record.task_id: record
        for record in records
        if record.task_id is not None and record.state is not RecordState.COMPLETED
    }


def exclusive_limits(site: SitePolicy) -> dict[str, int]:
    """Return how many jobs may hold each QPU of a site at the same time."""
    return {name: 1 if qpu.exclusive else qpu.lanes for name, qpu in site.qpus.items()}


def _reaped(record: LeaseRecord) -> tuple[str, str]:
    return (
        f"its process died, and the QPU stayed held, {record.held:.0f} s in all, of which it was "
        f"idle {record.idle:.0f} s.",
        "Find out how the job ended; the site's epilog releases such leases at once.",
    )


def _idle(record: LeaseRecord) -> tuple[str, str]:
    return (
        f"the QPU was idle {record.idle:.0f} s of the {record.held:.0f} s for which it was held.",
        "Lease it for the steps that use it alone, send several tasks at a time, or share the "
        "lease between jobs in a stage.",
    )


def _overlaps(qpu: str, spans: Iterable[_Span], limit: int) -> Iterator[Anomaly]:
    """Find leases that began while as many other jobs as are allowed held the QPU."""
    active: list[tuple[float, int, _Span]] = []
    holders: Counter[str] = Counter()
    for number, span in enumerate(sorted(spans)):
        while active and active[0][0] <= span.start + CLOCK_SECONDS:
            ended = heapq.heappop(active)[2]
            holders[ended.party] -= 1
            if not holders[ended.party]:
                del holders[ended.party]
        if span.party not in holders and len(holders) >= limit:
            other = active[0][2]
            seconds = min(span.end, other.end) - span.start
            if seconds > CLOCK_SECONDS:
                yield _overlap(qpu, span, other, limit, seconds)
        holders[span.party] += 1
        heapq.heappush(active, (span.end, number, span))


def _overlap(qpu: str, span: _Span, other: _Span, limit: int, seconds: float) -> Anomaly:
    by = f"job {other.job}" if other.job else "a process outside of jobs"
    jobs = "one job" if limit == 1 else f"{limit} jobs"
    return Anomaly(
        kind="overlap",
        user=span.user,
        qpu=qpu,
        job=span.job or None,
        lease=span.lease,
        released=span.released,
        seconds=round(seconds, 3),
        what=f"it held the QPU, which {jobs} may hold at a time, for {seconds:.0f} s together with "
        f"{by} of user {other.user}.",
        remedy="Check that the QPU's licence, or its GRES on a single node, counts no more than "
        "that, and that `require_grant` is on.",
    )
