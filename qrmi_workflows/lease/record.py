"""The lease record, which an ended lease leaves: one line of JSON without token or credentials."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Self

from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.variables import QPU_LEASE_RECORD
from qrmi_workflows.state.files import append_line
from qrmi_workflows.state.process import Owner

__all__ = ["LeaseRecord", "acquisition_id", "records_folder"]

_MOST = 1e15
"""More than any sum of seconds or shots that a lease can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One ended lease. All durations are in seconds.

    Attributes:
        lease: The lease's own id.
        qpu: The QPU's name.
        type: QRMI's resource type.
        step: The step that the QPU was held for.
        owner: The process that held it.
        acquired: When it was acquired, ISO 8601 in UTC.
        released: When it was released, ISO 8601 in UTC.
        queue_wait: How long the job was pending; `None` outside a job.
        acquire: How long acquiring took.
        held: How long it was held, from acquire to release.
        busy: How long of that time the vendor had at least one task.
        idle: The rest of that time.
        tasks: The number of tasks.
        task_ids: The vendor's ids of the tasks.
        reaped: Whether `qpu reap` released it, because its owner had died or had left it.
        left: How many times its owner left it open for tasks that were still running.
        taken_over: How many times a later process took it over, after its owner had died or had
            left it; `owner` is the last one.
        adopted: Whether it was the site's lease; `acquired` and `released` then say when this
            process started and stopped using it.
        billed: How long the vendor bills, as an estimate (see `bill.py`); `None` if the site's
            session is billed, or in a record of an earlier release.
        billing_rule: The rule of the estimate (`QPU seconds`).
        user: The user who opened it; empty in a record of an earlier release, as are all below.
        account: The account that its job is charged to, if known.
        project: The project that its job was submitted for, if the scheduler has such (WCKey).
        acquisitions: The ids of its acquisitions (`acquisition_id`); several if it was renewed.
        chosen: What was asked for, and why this QPU was chosen; empty if it was named.
        job_created: When its job was submitted, ISO 8601 in UTC, if known.
        job_started: When its job started, ISO 8601 in UTC, if known.
        shots: How many shots its tasks asked for; those of an estimator are not known.
        reported: For how many seconds the QPU executed tasks, as far as their results say so.
        without_result: The ids of tasks that ran, and failed or were cancelled.
    """

    lease: str
    qpu: str
    type: str
    step: str
    owner: Owner
    acquired: str
    released: str
    queue_wait: float | None
    acquire: float
    held: float
    busy: float
    idle: float
    tasks: int
    task_ids: list[str]
    reaped: bool = False
    left: int = 0
    taken_over: int = 0
    adopted: bool = False
    billed: float | None = None
    billing_rule: str = ""
    user: str = ""
    account: str | None = None
    project: str | None = None
    acquisitions: list[str] = field(default_factory=list)
    chosen: str = ""
    job_created: str | None = None
    job_started: str | None = None
    shots: int | None = None
    reported: float | None = None
    without_result: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Parse a line of a file of records; leave out what only later releases know.

        Raises:
            ValueError: The line is not a lease record.
        """
        try:
            document = json.loads(line)
            if not document.keys() <= _NAMES:
                document = {name: value for name, value in document.items() if name in _NAMES}
            document["owner"] = Owner(**document["owner"])
            return cls(**document)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a lease record: {error!r}") from error

    def times(self) -> tuple[datetime, datetime]:
        """Return when the lease was acquired and released, if all values can be summed up.

        Anybody can write a line, so nothing is taken for granted.

        Raises:
            ValueError: A value has the wrong type, or is negative or infinite.
        """
        try:
            owner = self.owner
            names = (self.lease, self.qpu, self.type, self.user, self.acquired, self.released)
            others = (self.account or "", self.project or "", owner.job or "", owner.cluster or "")
            texts = (*names, *others, self.chosen)
            ids = (*self.task_ids, *self.without_result, *self.acquisitions)
            is_valid = (
                "".join((*texts, *ids)).isprintable()
                and 0 <= self.busy <= self.held < _MOST
                and 0 <= self.idle < _MOST
                and 0 <= self.tasks < _MOST
                and 0 <= (self.queue_wait or 0) < _MOST
                and 0 <= (self.billed or 0) < _MOST
                and 0 <= (self.reported or 0) < _MOST
                and 0 <= (self.shots or 0) < _MOST
            )
            if is_valid:
                return _time(self.acquired), _time(self.released)
        except (TypeError, ValueError):
            pass
        raise ValueError("not a lease record: a value of the wrong type, or out of range")

    def to_json(self) -> str:
        """Render the record as one line of JSON."""
        return json.dumps(asdict(self))

    def save(self, environ: Mapping[str, str] = os.environ) -> None:
        """Append the record to `$QPU_LEASE_RECORD`, else to this host's file in the state folder.

        Raises:
            OSError: The file could not be written.
        """
        named = environ.get(QPU_LEASE_RECORD)
        month = self.released[:7]
        default = records_folder(environ) / f"{month}-{self.owner.host}.jsonl"
        append_line(Path(named) if named else default, self.to_json())

    def describe(self) -> str:
        """Render the record as a line for a log."""
        pending = "" if self.queue_wait is None else f"job pending {self.queue_wait:.0f} s, "
        ids = ", ".join(self.task_ids) or "none"
        how = "the site's lease used" if self.adopted else "lease held"
        return (
            f"QPU {self.qpu}: {pending}{how} {self.held:.2f} s, QPU busy {self.busy:.2f} s, "
            f"idle {self.idle:.2f} s, tasks: {self.tasks} ({ids}){self._describe_bill()}"
        )

    def _describe_bill(self) -> str:
        if not self.billing_rule:
            return ""
        seconds = "" if self.billed is None else f" {self.billed:.2f} s"
        return f", estimated bill{seconds} ({self.billing_rule})"


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or not 1970 <= time.year < 9999:
        raise ValueError(text)
    return time


_NAMES = frozenset(each.name for each in fields(LeaseRecord))


def acquisition_id(token: str) -> str:
    """Return the id of an acquisition in records: the beginning of the SHA-256 of its token.

    The token may be the vendor's own session id, with which anybody under the same account could
    use the session. Whoever has the id of a session can find its lease (`sha256sum`), but a record
    gives away no token, unless the token could have been guessed anyway.
    """
    import hashlib  # slow to import, and needed only at the end of a lease

    return hashlib.sha256(token.encode()).hexdigest()[:16]


def records_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the lease records, a file for each month and host."""
    return state_folder(environ) / "leases"
