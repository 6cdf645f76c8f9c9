"""Usage: which tasks a lease has, and how long each of them occupied the QPU.

A lease's usage file has a line for each task that is about to be submitted, which names its record
in the journal, another one for each task that has ended, and one for each result that says for how
long the QPU executed its task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.state.files import append_line

__all__ = [
    "TaskTimes",
    "TaskUsage",
    "note_report",
    "note_submission",
    "read_reports",
    "read_submissions",
    "read_usage",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUsage:
    """The time that one task occupied a QPU, as observed by the process that ran it.

    Attributes:
        qpu: The QPU's name.
        task_id: The vendor's id.
        started: When it was submitted, in seconds since the epoch.
        ended: When its end was observed, in seconds since the epoch.
        state: Its final state (`Completed`).
        running: When it was known to be queued for the last time, or was submitted; `None` if it
            was only seen queued.
        shots: How many shots its payload asks for in total; `None` if that is not known.
    """

    qpu: str
    task_id: str
    started: float
    ended: float
    state: str
    running: float | None = None
    shots: int | None = None

    def append_to(self, path: Path) -> None:
        """Append a line to a lease's usage file.

        Raises:
            OSError: The file could not be written.
        """
        append_line(path, json.dumps(asdict(self)))


@dataclass(slots=True)
class TaskTimes:
    """The times of one task, as the process that runs it observes them.

    Attributes:
        is_partial: Whether it may have started before this process looked.
    """

    _started: float = 0.0
    _last_queued: float = 0.0
    _asked: float | None = None
    _has_run: bool = False
    _ended: float | None = None
    is_partial: bool = False

    def start(self) -> None:
        """Note that the task is about to be submitted, or attached to."""
        self._started = self._last_queued = time.time()

    def submitted(self, *, is_partial: bool = False) -> None:
        """Note that the vendor has the task.

        Args:
            is_partial: Whether another process has submitted it.
        """
        self._last_queued = time.time()
        self.is_partial = is_partial

    def asks(self) -> None:
        """Note that the vendor is about to be asked for the task's state."""
        self._asked = time.time()

    def saw(self, state: TaskState) -> None:
        """Note the task's state."""
        if state is TaskState.QUEUED:
            # It may have started while the answer was on its way.
            self._last_queued = self._asked or time.time()
            self.is_partial = False
        elif state is not TaskState.CANCELLED:
            self._has_run = True
        if state.is_final:
            self._ended = time.time()

    def ended(self) -> str:
        """Return when the task's end was observed, in ISO 8601, UTC."""
        return datetime.fromtimestamp(self._ended or time.time(), UTC).isoformat()

    def seconds_on_qpu(self) -> float | None:
        """Return for how many seconds it was observed on the QPU; `None` if it was only queued."""
        if not self._has_run:
            return None
        return max(0.0, (self._ended or time.time()) - self._last_queued)

    def usage(
        self, qpu: str, task_id: str, state: TaskState, *, shots: int | None = None
    ) -> TaskUsage:
        """Return the usage of the task, which has ended now.

        Args:
            qpu: The QPU's name.
            task_id: The vendor's id.
            state: The task's final state.
            shots: How many shots it took, if known.
        """
        return TaskUsage(
            qpu=qpu,
            task_id=task_id,
            started=self._started,
            ended=self._ended or time.time(),
            state=state,
            running=self._last_queued if self._has_run else None,
            shots=shots,
        )


def note_submission(path: Path, record: Path) -> None:
    """Note in a lease's usage file that a task is about to be submitted under the lease.

    Args:
        path: The usage file.
        record: The task's record in the journal.

    Raises:
        OSError: The file could not be written.
    """
    append_line(path, json.dumps({"record": str(record.absolute())}))


def read_submissions(path: Path) -> list[Path]:
    """Return the records of the tasks that were submitted under a lease, or were about to be."""
    documents = (line for line in _read_lines(path) if isinstance(line, dict))
    return list(dict.fromkeys(Path(one["record"]) for one in documents if "record" in one))


def note_report(path: Path, task_id: str, seconds: float) -> None:
    """Note in a lease's usage file for how long the QPU executed a task, as its result says.

    Args:
        path: The usage file.
        task_id: The vendor's id of the task.
        seconds: What the result says.

    Raises:
        OSError: The file could not be written.
    """
    append_line(path, json.dumps({"reported": task_id, "seconds": seconds}))


def read_reports(path: Path) -> dict[str, float]:
    """Return the seconds of execution that results have reported, by task."""
    documents = (line for line in _read_lines(path) if isinstance(line, dict))
    return {
        str(one["reported"]): one["seconds"]
        for one in documents
        if "reported" in one and isinstance(one.get("seconds"), int | float)
    }


def read_usage(path: Path) -> Iterator[TaskUsage]:
    """Read the tasks that have ended from a lease's usage file."""
    for line in _read_lines(path):
        with suppress(TypeError):
            usage = TaskUsage(**line)
            if isinstance(usage.started, int | float) and isinstance(usage.ended, int | float):
                yield usage


def _read_lines(path: Path) -> Iterator[Any]:
    """Read the lines of a usage file; skip those that a crash has truncated."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, RecursionError):
            yield json.loads(line)
