"""One user's book under one account: what is reserved for running tasks, and what was spent.

A book is one file. So reserving for a task, and settling what was reserved, are one atomic write
each, whatever budgets the task draws from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from qrmi_workflows.budgets.limits import Limit
from qrmi_workflows.state.process import Owner

__all__ = ["Book", "Reservation", "Spent"]

_FORMAT, _VERSION = "qrmi-workflows-budget", 1
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}(-[0-9]{2})?")
_LARGEST = 10**18
_MOST_OWN = 2000
_OWN_SCOPES = ("job", "stage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """An amount: shots, and milliseconds of a QPU."""

    shots: int = 0
    milliseconds: int = 0

    def __post_init__(self) -> None:
        """Refuse what could give budget back: a book may be another user's."""
        for value in (self.shots, self.milliseconds):
            if type(value) is not int or not 0 <= value <= _LARGEST:
                raise ValueError(f"an amount of {value!r:.40}")

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            shots=self.shots + other.shots, milliseconds=self.milliseconds + other.milliseconds
        )

    def of(self, unit: str) -> int:
        """Return the amount in a budget's unit."""
        return self.shots if unit == "shots" else self.milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is reserved for one task.

    Attributes:
        day: The day on which it was reserved, in UTC; it counts in the periods of that day.
        qpu: The QPU's name.
        amount: How much; nothing of a unit in which the task has no estimate.
        record: The task's record in the journal.
        owner: The process that has reserved it.
        job: The job whose own budget it draws from, if any.
        stage: The stage whose own budget it draws from, if any.
    """

    day: str
    qpu: str
    amount: Spent
    record: str
    owner: Owner
    job: str | None = None
    stage: str | None = None


@dataclass(slots=True, kw_only=True)
class Book:
    """What is reserved, and what was spent.

    Attributes:
        open: The reservations, by id.
        days: What was spent, by day (or by month, if that is over) and QPU.
        own: What was spent from the budgets of jobs and stages: by scope, then by name.
    """

    open: dict[str, Reservation] = field(default_factory=dict)
    days: dict[str, dict[str, Spent]] = field(default_factory=dict)
    own: dict[str, dict[str, Spent]] = field(
        default_factory=lambda: {scope: {} for scope in _OWN_SCOPES}
    )

    def settle(self, reservation: str, spent: Spent) -> bool:
        """Replace a reservation by what its task has taken; return whether it was open."""
        found = self.open.pop(reservation, None)
        if found is None:
            return False
        qpus = self.days.setdefault(found.day, {})
        qpus[found.qpu] = qpus.get(found.qpu, Spent()) + spent
        for scope, name in (("job", found.job), ("stage", found.stage)):
            if name is not None:
                # At the end: `compact` forgets the oldest ones.
                self.own[scope][name] = self.own[scope].pop(name, Spent()) + spent
        return True

    def spent(self, limit: Limit, day: str) -> int:
        """Return how much of a budget was spent in the period of a day."""
        if limit.scope in _OWN_SCOPES:
            return self.own[limit.scope].get(limit.name, Spent()).of(limit.unit)
        return sum(
            spent.of(limit.unit)
            for when, qpus in self.days.items()
            if _is_in(when, limit.per, day)
            for qpu, spent in qpus.items()
            if limit.qpu in (None, qpu)
        )

    def reserved(self, limit: Limit, day: str) -> int:
        """Return how much of a budget is reserved in the period of a day."""
        return sum(
            each.amount.of(limit.unit) for each in self.open.values() if _draws(each, limit, day)
        )

    def compact(self, day: str) -> None:
        """Join the days of the months before the last one: only months count from then on.

        Forget the jobs and stages that have not settled a task for the longest time: a user may
        have hundreds of thousands, and the book is written for each task.
        """
        year, month = int(day[:4]), int(day[5:7])
        last = f"{year - (month == 1)}-{month - 1 or 12:02}"
        for old in [when for when in self.days if len(when) > 7 and when[:7] < last]:
            joined = self.days.setdefault(old[:7], {})
            for qpu, spent in self.days.pop(old).items():
                joined[qpu] = joined.get(qpu, Spent()) + spent
        for scope, spent_by in self.own.items():
            in_use = {each.job if scope == "job" else each.stage for each in self.open.values()}
            for name in list(spent_by)[: max(0, len(spent_by) - _MOST_OWN)]:
                if name not in in_use:
                    del spent_by[name]

    def to_json(self) -> str:
        """Render the file."""
        document = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(document, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the file, which may be another user's.

        Raises:
            ValueError: The text is not a book.
        """
        try:
            document = json.loads(text)
            if (document["format"], document["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
            return cls(
                open={str(key): _reservation(each) for key, each in document["open"].items()},
                days={_day(day): _amounts(qpus) for day, qpus in document["days"].items()},
                own={scope: _amounts(document["own"][scope]) for scope in _OWN_SCOPES},
            )
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(repr(error)) from error


def _is_in(when: str, per: str, day: str) -> bool:
    """Return whether something of a day (or month) is in the same period as another day."""
    return per == "total" or (when == day if per == "day" else when[:7] == day[:7])


def _draws(each: Reservation, limit: Limit, day: str) -> bool:
    if limit.scope in _OWN_SCOPES:
        return limit.name == (each.job if limit.scope == "job" else each.stage)
    return _is_in(each.day, limit.per, day) and limit.qpu in (None, each.qpu)


def _day(text: str) -> str:
    if not _DAY.fullmatch(text):
        raise ValueError(f"not a day: {text!r:.40}")
    return text


def _amounts(document: Mapping[str, Any]) -> dict[str, Spent]:
    return {str(name): Spent(**each) for name, each in document.items()}


def _reservation(document: Mapping[str, Any]) -> Reservation:
    values = {
        **document,
        "day": _day(document["day"]),
        "amount": Spent(**document["amount"]),
        "owner": Owner(**document["owner"]),
    }
    names = [name for name in ("job", "stage") if values.get(name) is not None]
    if not all(isinstance(values[name], str) for name in ("qpu", "record", *names)):
        raise ValueError("a reservation with a QPU, record, job or stage that is no text")
    return Reservation(**values)
