"""Which tasks of a lease are still wanted: a session with such a task is never closed.

For some resource types, releasing the QPU cancels the tasks that are queued or running. A process
that was killed, or stopped with `on_stop="leave"`, leaves such tasks for the next run of its step,
so their lease must outlive it: the next run takes it over, and whoever finds that the tasks have
ended releases it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import TaskUnknownError
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.journal.record_files import read_record
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.process import Owner
from qrmi_workflows.tasks.usage import read_submissions
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["RunningTasks", "find_running_tasks"]

_SHORTEST_CALL = 0.5  # seconds
_SUBMISSION_SECONDS = 120.0
"""How long a submission by a process that may be alive counts as under way; it has a deadline."""


class _Resource(Protocol):
    def task_status(self, task_id: str, *, deadline: float | None = None) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTasks:
    """Tasks that have not ended, and that a rerun of their step would wait for.

    Attributes:
        qpu: The QPU's name.
        records: Their records in the journal; at least one. Those of submissions that are under way
            have no task id yet.
        session_seconds: How long the vendor's session may last at most, if known.
    """

    qpu: str
    records: tuple[TaskRecord, ...]
    session_seconds: float | None

    @property
    def task_ids(self) -> list[str]:
        """The vendor's ids of those that are known to run."""
        return [record.task_id for record in self.records if record.task_id is not None]

    def __str__(self) -> str:
        """Say which tasks they are, how long they may keep the lease, and what to do."""
        count = len(self.records)
        tasks = "1 task is" if count == 1 else f"{count} tasks are"
        steps = list(dict.fromkeys(record.step for record in self.records))
        more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
        limit = ""
        if self.session_seconds is not None:
            limit = (
                "; at the latest, the vendor ends it "
                f"{_hours(self.session_seconds)} after its first task has started"
            )
        return (
            f"the lease of QPU {self.qpu!r} stays open: {tasks} still running for step "
            f"{steps[0]!r}{more}. Rerun the step to wait for the results, or run `qpu reap "
            f"--cancel-tasks` to cancel them. Once they have ended, the next lease or `qpu reap` "
            f"releases it{limit}."
        )


def find_running_tasks(
    opened: OpenLease,
    resource: _Resource,
    *,
    environment: Mapping[str, str],
    seconds: float | None = None,
    ignored: Iterable[Path] = (),
) -> RunningTasks | None:
    """Find the tasks for which a lease must stay open; the vendor is asked for their states.

    Args:
        opened: The lease.
        resource: A handle to its QPU.
        environment: The QPU's settings, without the `NAME_` prefix.
        seconds: How long all requests together may take; each has its own deadline if `None`.
        ignored: Records of tasks that nobody wants, because they were to be cancelled.

    Returns:
        The tasks; `None` if there are none, or releasing the QPU does not cancel them.

    Raises:
        ResourceError: The vendor did not tell a task's state.
        JournalError: A record could not be read.
    """
    registered = registered_type(opened.type)
    if registered is None or not registered.release_cancels:
        return None
    unwanted = set(ignored)
    # There is no record if the step has been archived or forgotten.
    wanted = [
        record
        for path in read_submissions(opened.usage_path)
        if path not in unwanted and (record := read_record(path)) is not None and _is_wanted(record)
    ]
    limit = None if seconds is None else time.monotonic() + seconds
    # Several payloads may share a task.
    tasks = {record.task_id: record for record in wanted}.values()
    running = tuple(record for record in tasks if _is_running(record, resource, limit))
    if not running:
        return None
    longest = registered.longest_session(environment)
    return RunningTasks(qpu=opened.qpu, records=running, session_seconds=longest)


def _is_wanted(record: TaskRecord) -> bool:
    if record.state is RecordState.INTENT:
        return _is_being_submitted(record)
    if record.state is not RecordState.SUBMITTED or record.retryable:
        return False  # it is not known to run, or its cancellation was requested
    # A step without a name cannot be run again: only its own process wants the task.
    return record.named or record.owner.is_alive() is not False


def _is_being_submitted(record: TaskRecord) -> bool:
    """Return whether another process is about to submit a task, or waits for the answer."""
    if record.owner.is_alive() is False or record.owner == Owner.this_process(this_job()):
        return False
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(record.since)
    except (TypeError, ValueError):
        return False
    return abs(age.total_seconds()) < _SUBMISSION_SECONDS


def _is_running(record: TaskRecord, resource: _Resource, limit: float | None) -> bool:
    if record.state is RecordState.INTENT:
        return True
    deadline = None if limit is None else max(_SHORTEST_CALL, limit - time.monotonic())
    try:
        state = resource.task_status(str(record.task_id), deadline=deadline)
    except TaskUnknownError:
        return False
    return not TaskState.of(state).is_final


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
