"""The emulator's persistent state: tasks, sessions, batches and objects, in SQLite.

Every accepted request is committed before it is answered. With the write-ahead log a commit
survives the process's death (`kill -9`); only a power cut may lose the most recent ones.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrmi_workflows.emulator.conditions import where
from qrmi_workflows.emulator.spans import Spans

__all__ = ["FINAL_STATES", "Batch", "Session", "Store", "Task"]

FINAL_STATES: tuple[str, ...] = ("completed", "failed", "cancelled")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, qpu TEXT, program TEXT, session TEXT, batch TEXT, state TEXT,
    accepted REAL, started REAL, finished REAL, reason TEXT, details TEXT,
    deleted INTEGER DEFAULT 0, request TEXT, result TEXT, logs TEXT);
CREATE INDEX IF NOT EXISTS tasks_by_state ON tasks (qpu, state);
CREATE INDEX IF NOT EXISTS tasks_by_session ON tasks (session) WHERE session IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_by_batch ON tasks (batch) WHERE batch IS NOT NULL;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, qpu TEXT, mode TEXT, max_ttl INTEGER, state TEXT, accepting INTEGER,
    created REAL, activated REAL, closed REAL, last_started REAL, last_finished REAL,
    owner TEXT, reason TEXT);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, qpu TEXT, created REAL, details TEXT);
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT, key TEXT, body BLOB, type TEXT, modified REAL, PRIMARY KEY (bucket, key));
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT);
"""
_TASK_COLUMNS = (
    "id, qpu, program, session, batch, state, accepted, started, finished, reason, details, deleted"
)


@dataclass(slots=True, kw_only=True)
class Task:
    """One payload executing on a QPU. Times are seconds since the epoch.

    Attributes:
        id: The vendor's task id.
        qpu: The QPU's name.
        program: The kind of program (`sampler`, `estimator`, `sequence`, …).
        session: The id of its session, if any.
        batch: The id of its batch, if any.
        state: `queued`, `running`, `completed`, `failed` or `cancelled`.
        accepted: When it was accepted.
        started: When it got a lane.
        finished: When it reached a final state.
        reason: Why it failed or was cancelled.
        details: The dialect's own data.
        deleted: Whether its owner has deleted it: it still counts but is no longer listed.
    """

    id: str
    qpu: str
    program: str
    session: str | None = None
    batch: str | None = None
    state: str = "queued"
    accepted: float = 0.0
    started: float | None = None
    finished: float | None = None
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    deleted: bool = False

    @property
    def is_final(self) -> bool:
        """Whether the task has completed, failed or been cancelled."""
        return self.state in FINAL_STATES


@dataclass(slots=True, kw_only=True)
class Session:
    """A vendor-side reservation of a QPU. Times are seconds since the epoch.

    Attributes:
        id: The vendor's session id.
        qpu: The QPU's name.
        mode: `dedicated`, `batch` or `shared`; see `reservations.py`.
        max_ttl: The number of seconds it may last once active.
        state: `open` (waiting for its first task), `active`, `inactive` or `closed`.
        accepting: Whether it accepts new tasks.
        created: When it was opened.
        activated: When its first task started.
        closed: When it was closed.
        last_started: When its latest task started.
        last_finished: When its latest task ended.
        owner: The user it belongs to, for vendors that distinguish users.
        reason: Why it was closed.
    """

    id: str
    qpu: str
    mode: str
    max_ttl: int
    state: str = "open"
    accepting: bool = True
    created: float = 0.0
    activated: float | None = None
    closed: float | None = None
    last_started: float | None = None
    last_finished: float | None = None
    owner: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tasks that were submitted together.

    Attributes:
        id: The vendor's batch id.
        qpu: The QPU's name.
        created: When it was created, in seconds since the epoch.
        details: The dialect's own data.
    """

    id: str
    qpu: str
    created: float
    details: Mapping[str, Any]


class Store:
    """The emulator's database, one SQLite file.

    Args:
        path: The file, which is created if necessary.

    Attributes:
        spans: When tasks and sessions occupied the devices.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self.spans = Spans(self._db)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # Tasks

    def add_task(self, task: Task, request: str) -> None:
        """Insert an accepted task and its request."""
        self._db.execute(
            f"INSERT INTO tasks ({_TASK_COLUMNS}, request) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
            (*_task_row(task), request),
        )

    def add_batch(self, batch: Batch, tasks: list[Task], requests: list[str]) -> None:
        """Insert a batch with its tasks and their requests, in one transaction."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO batches VALUES (?,?,?,?)",
                (batch.id, batch.qpu, batch.created, json.dumps(batch.details)),
            )
            for task, request in zip(tasks, requests, strict=True):
                self.add_task(task, request)

    def add_tasks(self, tasks: list[Task], requests: list[str]) -> None:
        """Insert several accepted tasks and their requests, in one transaction."""
        with self._transaction():
            for task, request in zip(tasks, requests, strict=True):
                self.add_task(task, request)

    def save_task(self, task: Task, result: str | None = None, logs: str | None = None) -> None:
        """Update a task's state, and its result and logs unless these are `None`."""
        self._db.execute(
            "UPDATE tasks SET state=?, started=?, finished=?, reason=?, details=?, deleted=?,"
            " result=coalesce(?, result), logs=coalesce(?, logs) WHERE id=?",
            (
                task.state,
                task.started,
                task.finished,
                task.reason,
                json.dumps(task.details) if task.details else None,
                task.deleted,
                result,
                logs,
                task.id,
            ),
        )

    def task(self, task_id: str) -> Task | None:
        """Return a task, or `None` if the id is unknown or the task was deleted."""
        row = self._db.execute(
            f"SELECT {_TASK_COLUMNS} FROM tasks WHERE id=? AND NOT deleted",  # noqa: S608
            (task_id,),
        ).fetchone()
        return None if row is None else _task_from_row(row)

    def request(self, task_id: str) -> str:
        """Return the request that a task was submitted with."""
        return str(self._column("request", task_id))

    def result(self, task_id: str) -> str | None:
        """Return a task's result, or `None` if it has none."""
        return self._column("result", task_id)

    def logs(self, task_id: str) -> str:
        """Return a task's logs, empty if it has none."""
        return self._column("logs", task_id) or ""

    def find_tasks(
        self,
        limit: int = -1,
        offset: int = 0,
        newest_first: bool = False,
        **conditions: Any,
    ) -> list[Task]:
        """Return the tasks that match every condition, in order of acceptance.

        Args:
            limit: The maximum number of tasks; -1: no limit.
            offset: The number of matching tasks to skip.
            newest_first: Whether to reverse the order.
            conditions: As `conditions.where` takes them.
        """
        condition, values = where(**conditions)
        order = "DESC" if newest_first else "ASC"
        rows = self._db.execute(
            f"SELECT {_TASK_COLUMNS} FROM tasks WHERE {condition}"  # noqa: S608
            f" ORDER BY rowid {order} LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return [_task_from_row(row) for row in rows]

    def count_found(self, **conditions: Any) -> int:
        """Return how many tasks `find_tasks` finds without a limit and an offset."""
        condition, values = where(**conditions)
        row = self._db.execute(f"SELECT count(*) FROM tasks WHERE {condition}", values)  # noqa: S608
        return int(row.fetchone()[0])

    def count_tasks(self) -> Iterator[tuple[str, str, int]]:
        """Yield (QPU, state, number of tasks), including deleted tasks."""
        yield from self._db.execute("SELECT qpu, state, count(*) FROM tasks GROUP BY qpu, state")

    # Sessions

    def save_session(self, session: Session) -> None:
        """Insert or update a session."""
        self._db.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            tuple(getattr(session, name) for name in Session.__slots__),
        )

    def session(self, session_id: str) -> Session | None:
        """Return a session, or `None` if the id is unknown."""
        row = self._db.execute("SELECT * FROM sessions WHERE id=?", (session_id,)).fetchone()
        return None if row is None else _session_from_row(row)

    def open_sessions(self, qpu: str) -> list[Session]:
        """Return a QPU's sessions that are not closed."""
        rows = self._db.execute(
            "SELECT * FROM sessions WHERE qpu=? AND state!='closed' ORDER BY rowid", (qpu,)
        )
        return [_session_from_row(row) for row in rows]

    def count_sessions(self) -> Iterator[tuple[str, str, int]]:
        """Yield (QPU, state, number of sessions)."""
        yield from self._db.execute("SELECT qpu, state, count(*) FROM sessions GROUP BY qpu, state")

    # Batches, objects, single values

    def batch(self, batch_id: str) -> Batch | None:
        """Return a batch, or `None` if the id is unknown."""
        row = self._db.execute("SELECT * FROM batches WHERE id=?", (batch_id,)).fetchone()
        if row is None:
            return None
        return Batch(id=row[0], qpu=row[1], created=row[2], details=json.loads(row[3]))

    def batches(self) -> list[Batch]:
        """Return all batches, newest first."""
        rows = self._db.execute("SELECT id FROM batches ORDER BY rowid DESC").fetchall()
        return [batch for (batch_id,) in rows if (batch := self.batch(batch_id))]

    def save_batch(self, batch: Batch) -> None:
        """Update a batch's details."""
        self._db.execute(
            "UPDATE batches SET details=? WHERE id=?", (json.dumps(batch.details), batch.id)
        )

    def put_object(self, bucket: str, key: str, body: bytes, type_: str, modified: float) -> None:
        """Insert an object, replacing any of the same key."""
        self._db.execute(
            "INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?)",
            (bucket, key, body, type_, modified),
        )

    def get_object(self, bucket: str, key: str) -> tuple[bytes, str, float] | None:
        """Return an object's body, content type and modification time, or `None`."""
        row: tuple[bytes, str, float] | None = self._db.execute(
            "SELECT body, type, modified FROM objects WHERE bucket=? AND key=?", (bucket, key)
        ).fetchone()
        return row

    def delete_object(self, bucket: str, key: str) -> None:
        """Delete an object if it exists."""
        self._db.execute("DELETE FROM objects WHERE bucket=? AND key=?", (bucket, key))

    def next_number(self) -> int:
        """Return a task number that has not been used before."""
        return int(self._db.execute("SELECT coalesce(max(rowid), 0) + 1 FROM tasks").fetchone()[0])

    def get_value(self, name: str) -> str | None:
        """Return the value stored under a name, or `None`."""
        row = self._db.execute("SELECT value FROM notes WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_value(self, name: str, value: str) -> None:
        """Store a value under a name."""
        self._db.execute("INSERT OR REPLACE INTO notes VALUES (?,?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _column(self, column: str, task_id: str) -> str | None:
        row = self._db.execute(
            f"SELECT {column} FROM tasks WHERE id=?",  # noqa: S608
            (task_id,),
        ).fetchone()
        return None if row is None else row[0]


def _task_row(task: Task) -> tuple[object, ...]:
    values = [getattr(task, name.strip()) for name in _TASK_COLUMNS.split(",")]
    values[10] = json.dumps(task.details) if task.details else None
    return tuple(values)


def _task_from_row(row: tuple[Any, ...]) -> Task:
    values = dict(zip((name.strip() for name in _TASK_COLUMNS.split(",")), row, strict=True))
    values["details"] = json.loads(row[10]) if row[10] else {}
    values["deleted"] = bool(row[11])
    return Task(**values)


def _session_from_row(row: tuple[Any, ...]) -> Session:
    values = dict(zip(Session.__slots__, row, strict=True))
    values["accepting"] = bool(values["accepting"])
    return Session(**values)
