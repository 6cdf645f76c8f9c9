"""Usage: which tasks a lease has, and how long each of them occupied the QPU.

A lease's usage file has a line for each task that is about to be submitted, which names its record
in the journal, and another one for each task that has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qrmi_workflows.state.files import append_line

__all__ = ["TaskUsage", "note_submission", "read_submissions", "read_usage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUsage:
    """The time that one task occupied a QPU, as observed by the process that ran it.

    Attributes:
        qpu: The QPU's name.
        task_id: The vendor's id.
        started: When it was submitted, in seconds since the epoch.
        ended: When its end was observed, in seconds since the epoch.
        state: Its final state (`Completed`).
    """

    qpu: str
    task_id: str
    started: float
    ended: float
    state: str

    def append_to(self, path: Path) -> None:
        """Append a line to a lease's usage file.

        Raises:
            OSError: The file could not be written.
        """
        append_line(path, json.dumps(asdict(self)))


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


def read_usage(path: Path) -> Iterator[TaskUsage]:
    """Read the tasks that have ended from a lease's usage file."""
    for line in _read_lines(path):
        with suppress(TypeError):
            yield TaskUsage(**line)


def _read_lines(path: Path) -> Iterator[Any]:
    """Read the lines of a usage file; skip those that a crash has truncated."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, RecursionError):
            yield json.loads(line)
