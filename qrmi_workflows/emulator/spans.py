"""Spans of time that a vendor may bill: a task's execution, and a session's hold of the device.

They have a table of their own in the emulator's database, beside the tasks and sessions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["SessionTime", "Spans", "TaskTime"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (subject TEXT, kind TEXT, qpu TEXT, started REAL, ended REAL);
CREATE INDEX IF NOT EXISTS spans_by_subject ON spans (subject);
"""
_TASKS = """
SELECT tasks.id, tasks.session, tasks.state, count(spans.ended), total(spans.ended - spans.started)
FROM tasks LEFT JOIN spans ON spans.subject = tasks.id AND spans.kind = 'execution'
WHERE {condition} GROUP BY tasks.id ORDER BY tasks.rowid
"""
_SESSIONS = """
SELECT sessions.id, sessions.mode, sessions.state, sessions.activated, sessions.closed,
    total(coalesce(spans.ended, ?) - spans.started)
FROM sessions LEFT JOIN spans ON spans.subject = sessions.id AND spans.kind = 'session'
WHERE {condition} GROUP BY sessions.id ORDER BY min(sessions.rowid)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTime:
    """A task's time on the device.

    Attributes:
        id: The vendor's task id.
        session: The id of its session, if any.
        state: Its state.
        executions: How often it occupied the device: 0 if it ended before.
        seconds: How long it occupied the device, in all.
    """

    id: str
    session: str | None
    state: str
    executions: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTime:
    """A session's time on the device.

    Attributes:
        id: The vendor's session id.
        mode: `dedicated`, `batch` or `shared`.
        state: Its state.
        activated: When its first task started.
        closed: When it was closed.
        seconds: How long it was active, in all.
    """

    id: str
    mode: str
    state: str
    activated: float | None
    closed: float | None
    seconds: float


class Spans:
    """The spans in the emulator's database.

    Args:
        database: The open database.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database
        self._db.executescript(_SCHEMA)

    def add_execution(self, task: str, qpu: str, started: float, ended: float) -> None:
        """Record that a task occupied the device."""
        self._db.execute(
            "INSERT INTO spans VALUES (?, 'execution', ?, ?, ?)",
            (task, qpu, started, max(started, ended)),  # the clock may be set back by a fault
        )

    def begin_session(self, session: str, qpu: str, started: float) -> None:
        """Record that a session became active, unless it was active already."""
        self._db.execute(
            "INSERT INTO spans SELECT ?1, 'session', ?2, ?3, NULL WHERE NOT EXISTS"
            " (SELECT 1 FROM spans WHERE subject=?1 AND ended IS NULL)",
            (session, qpu, started),
        )

    def end_session(self, session: str, ended: float) -> None:
        """Record that a session is no longer active."""
        self._db.execute(
            "UPDATE spans SET ended=max(started, ?) WHERE subject=? AND ended IS NULL",
            (ended, session),
        )

    def task(self, task_id: str) -> TaskTime | None:
        """Return the time of a task, which may have been deleted; `None` if the id is unknown."""
        return next(self._tasks("tasks.id=?", task_id), None)

    def tasks(self, qpu: str) -> Iterator[TaskTime]:
        """Return the time of each task of a QPU, including deleted ones."""
        return self._tasks("tasks.qpu=?", qpu)

    def tasks_of_session(self, session_id: str) -> Iterator[TaskTime]:
        """Return the time of each task of a session, including deleted ones."""
        return self._tasks("tasks.session=?", session_id)

    def session(self, session_id: str, now: float) -> SessionTime | None:
        """Return the time of a session; `None` if the id is unknown."""
        return next(self._sessions("sessions.id=?", session_id, now), None)

    def sessions(self, qpu: str, now: float) -> Iterator[SessionTime]:
        """Return the time of each session of a QPU."""
        return self._sessions("sessions.qpu=?", qpu, now)

    def _tasks(self, condition: str, value: str) -> Iterator[TaskTime]:
        names = TaskTime.__slots__
        for row in self._db.execute(_TASKS.format(condition=condition), (value,)).fetchall():
            yield TaskTime(**dict(zip(names, row, strict=True)))

    def _sessions(self, condition: str, value: str, now: float) -> Iterator[SessionTime]:
        names = SessionTime.__slots__
        query = _SESSIONS.format(condition=condition)
        for row in self._db.execute(query, (now, value)).fetchall():
            yield SessionTime(**dict(zip(names, row, strict=True)))
