"""What QPUs were used for: lease records summed up by user, account, QPU, type or day.

The records are read one after the other. Only what tells leases apart is kept of each, so that the
time grows with their number alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo

from qrmi_workflows.errors import RequestError
from qrmi_workflows.lease.bill import total_seconds
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.site.anomalies import Anomalies
from qrmi_workflows.site.record_files import Counted

__all__ = ["KEYS", "Group", "Period", "Summary", "Usage"]

KEYS = ("user", "account", "project", "qpu", "type", "day", "month", "job", "cluster")
"""What usage can be grouped by."""

_MONTH = re.compile(r"\d{4}-\d{2}")

_Party = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A period of time; a lease counts in the one in which it was released.

    Attributes:
        since: Its beginning; `None` if it has none.
        until: Its end, which is not part of it; `None` if it has none.
    """

    since: datetime | None = None
    until: datetime | None = None

    def __contains__(self, time: datetime) -> bool:
        return (self.since is None or time >= self.since) and (
            self.until is None or time < self.until
        )

    def has_month(self, name: str) -> bool:
        """Return whether part of a month (`2026-11`, in UTC) may be in it, whatever the clocks.

        Anything but a month may be in it.
        """
        if not _MONTH.fullmatch(name):
            return True
        # Names sort like the months. A day more at both ends allows for wrong clocks.
        return (self.since is None or name >= _month(self.since, -86400)) and (
            self.until is None or name <= _month(self.until, 86400)
        )


@dataclass(slots=True)
class Usage:
    """The usage of some leases; durations in seconds.

    Attributes:
        leases: How many leases there were.
        tasks: How many tasks.
        shots: How many shots, as far as known.
        queue: How long their jobs were pending, each job counted once.
        held: How long QPUs were held.
        busy: How long of that time they were busy.
        idle: The rest of that time.
        billed: What the vendors bill, as estimated.
        reported: For how long QPUs executed tasks, as far as their vendors say so.
    """

    leases: int = 0
    tasks: int = 0
    shots: int = 0
    queue: float = 0.0
    held: float = 0.0
    busy: float = 0.0
    idle: float = 0.0
    billed: float = 0.0
    reported: float = 0.0

    @property
    def busy_share(self) -> float | None:
        """The busy share of the time for which QPUs were held; `None` if they were not held."""
        return self.busy / self.held if self.held > 0 else None

    def add(self, record: LeaseRecord, *, queue: float, held: float, busy: float) -> None:
        """Add a lease.

        Args:
            record: Its record.
            queue: How long its job was pending; 0 if that was counted with another lease.
            held: How long it was held.
            busy: How long of that time it was busy.
        """
        self.leases += 1
        self.queue += queue
        self.held += held
        self.busy += busy
        self.idle += held - busy
        self.add_tasks(record)

    def add_tasks(self, record: LeaseRecord) -> None:
        """Add a lease's tasks alone."""
        self.tasks += record.tasks
        self.shots += record.shots or 0
        self.billed += record.billed or 0.0
        self.reported += record.reported or 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """The usage of the leases that have the same values of what usage is grouped by."""

    keys: tuple[str, ...]
    usage: Usage

    def as_dict(self, by: Sequence[str]) -> dict[str, object]:
        """Return it as plain data, rounded to milliseconds, with units in the names."""
        values = asdict(self.usage)
        plain = {name: values[name] for name in ("leases", "tasks", "shots")}
        seconds = ("queue", "held", "busy", "idle", "billed", "reported")
        return {
            **dict(zip(by, self.keys, strict=True)),
            **plain,
            **{f"{name}_seconds": round(values[name], 3) for name in seconds},
        }


@dataclass(slots=True)
class _SharedUse:
    """A lease of the site's, which several processes have used at the same time."""

    record: LeaseRecord
    keys: tuple[str, ...]
    spans: list[tuple[float, float]] = field(default_factory=list)
    busy: float = 0.0


@dataclass(slots=True, kw_only=True)
class Summary:
    """Sums up lease records.

    Attributes:
        by: What to group by, of `KEYS`.
        period: Which leases count.
        anomalies: Finds what should not be.
        zone: The time zone of days; that of this host if `None`.
    """

    by: Sequence[str] = ()
    period: Period = field(default_factory=Period)
    anomalies: Anomalies = field(default_factory=Anomalies)
    zone: tzinfo | None = None
    _groups: dict[tuple[str, ...], Usage] = field(default_factory=dict)
    _total: Usage = field(default_factory=Usage)
    _shared: dict[_Party, _SharedUse] = field(default_factory=dict)
    _jobs: set[_Party] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Refuse unknown keys."""
        if wrong := next((each for each in self.by if each not in KEYS), None):
            raise RequestError(
                f"usage by {wrong!r}: must be one or more of: {', '.join(KEYS)}. Correct --by."
            )

    def add_all(self, records: Iterable[Counted]) -> None:
        """Add the records that are of the period."""
        for each in records:
            if each.released in self.period:
                self._add(each)
        for use in self._shared.values():
            held = total_seconds(use.spans)
            busy = min(use.busy, held)
            for usage in self._usages(use.keys):
                usage.add(use.record, queue=0.0, held=held, busy=busy)
        self._shared.clear()

    def groups(self) -> list[Group]:
        """Return the groups, in the order of their keys."""
        return [Group(keys, self._groups[keys]) for keys in sorted(self._groups)]

    @property
    def total(self) -> Usage:
        """The usage of all leases together."""
        return self._total

    def _add(self, counted: Counted) -> None:
        user, record, acquired, released = counted
        keys = tuple([self._key(name, user, record, released) for name in self.by])
        queue = self._queue_of(user, record)
        self.anomalies.see(user, record, acquired.timestamp(), released.timestamp())
        if not record.adopted:
            for usage in self._usages(keys):
                usage.add(record, queue=queue, held=record.held, busy=record.busy)
            return
        # Each process that used it has a record: the lease counts once, and its tasks all.
        for usage in self._usages(keys):
            usage.queue += queue
        use = self._shared.get(party := _shared_lease(user, record))
        if use is None:
            use = self._shared[party] = _SharedUse(record, keys)
        else:
            for usage in self._usages(keys):
                usage.add_tasks(record)
        start = acquired.timestamp()
        use.spans.append((start, start + record.held))
        use.busy += record.busy

    def _usages(self, keys: tuple[str, ...]) -> tuple[Usage, ...]:
        group = self._groups.get(keys)
        if group is None:
            group = self._groups[keys] = Usage()
        return group, self._total

    def _queue_of(self, user: str, record: LeaseRecord) -> float:
        """Return how long a lease's job was pending, for the first of its leases alone."""
        if not record.queue_wait:
            return 0.0
        if record.owner.job is not None:
            job = (user, record.owner.cluster or "", record.owner.job, str(record.owner.restart))
            if job in self._jobs:
                return 0.0
            self._jobs.add(job)
        return record.queue_wait

    def _key(self, name: str, user: str, record: LeaseRecord, released: datetime) -> str:
        if name == "user":
            return user
        if name == "qpu":
            return record.qpu
        if name == "type":
            return record.type
        if name in ("job", "cluster"):
            return (record.owner.job if name == "job" else record.owner.cluster) or ""
        if name in ("day", "month"):
            return released.astimezone(self.zone).isoformat()[: 10 if name == "day" else 7]
        return (record.account if name == "account" else record.project) or ""


def _shared_lease(user: str, record: LeaseRecord) -> _Party:
    """Return what tells a lease of the site's from others; its job, in early records."""
    owner = record.owner
    if record.acquisitions:
        return (user, record.qpu, record.acquisitions[0])
    if owner.job is not None:
        return (user, record.qpu, owner.cluster or "", owner.job, str(owner.restart))
    return (user, record.lease)


def _month(time: datetime, seconds: float) -> str:
    try:
        return (time.astimezone(UTC) + timedelta(seconds=seconds)).isoformat()[:7]
    except OverflowError:
        return time.isoformat()[:7]
