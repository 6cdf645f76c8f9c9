"""Tell a stage's own tasks from those with which its keeper warms the session up."""

from __future__ import annotations

import sqlite3
from pathlib import Path

__all__ = ["count_warm_ups", "without_warm_ups"]


def count_warm_ups(emulator: Path, state: str | None = None, qpu: str | None = None) -> int:
    """Count the tasks of an emulator that only measure one qubit, once.

    Args:
        emulator: The emulator's state folder.
        qpu: Only tasks on this QPU.
        state: Only tasks in this state, as the store has it: it learns of ends, not of starts.
    """
    query = (
        "SELECT count(*) FROM tasks WHERE request LIKE '%c[0] = measure $0;%'"
        " AND json_extract(request, '$.pubs[0][2]') = 1"
        " AND state = coalesce(?, state) AND qpu = coalesce(?, qpu)"
    )
    with sqlite3.connect(emulator / "emulator.db") as database:
        return int(database.execute(query, (state, qpu)).fetchone()[0])


def without_warm_ups(
    tasks: dict[str, int], emulator: Path, qpu: str | None = None
) -> dict[str, int]:
    """Return an emulator's counters of tasks, without the warm-up tasks of keepers.

    Args:
        tasks: The counters.
        emulator: The emulator's state folder.
        qpu: The QPU of the counters, if they are not those of all QPUs.
    """
    own = {"accepted": count_warm_ups(emulator, qpu=qpu)}
    own |= {state: count_warm_ups(emulator, state, qpu) for state in ("completed", "cancelled")}
    own["finished"] = own["completed"] + own["cancelled"]
    return {key: count - own.get(key, 0) for key, count in tasks.items()}
