"""Usage: how long each task of a lease occupied the QPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from qrmi_workflows.state.files import append_line

__all__ = ["TaskUsage", "read_usage"]


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


def read_usage(path: Path) -> Iterator[TaskUsage]:
    """Read a lease's usage file; skip lines that a crash has truncated."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(TypeError, ValueError):
            yield TaskUsage(**json.loads(line))
