"""What the emulator must not forget: tasks, sessions, batches and stored objects, in SQLite.

Every accepted request is committed before it is answered. The write-ahead log makes a commit
survive the death of the process (`kill -9`); only a power cut may lose the last ones.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
_TASK = (
    "id, qpu, program, session, batch, state, accepted, started, finished, reason, details, deleted"
)


@dataclass(slots=True, kw_only=True)
class Task:
    """One payload executing on a QPU. Times are seconds since the epoch.

    Attributes:
        id: The vendor's id of it.
        qpu: The QPU's name.
        program: What to run (`sampler`, `estimator`, `sequence`).
        session: The session that it belongs to.
        batch: The batch that it belongs to.
        state: `queued`, `running`, `completed`, `failed` or `cancelled`.
        reason: Why it failed or was cancelled.
        details: What only the dialect needs to remember.
        deleted: Whether its owner deleted it: it is counted, but no longer shown.
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
        """Whether it has ended."""
        return self.state in FINAL_STATES


@dataclass(slots=True, kw_only=True)
class Session:
    """A vendor-side reservation of a QPU. Times are seconds since the epoch.

    Attributes:
        id: The vendor's id of it.
        qpu: The QPU's name.
        mode: `dedicated` (excludes other tasks while active), `batch` or `shared`.
        max_ttl: How many seconds it may last once active.
        state: `open` (waiting for its first task), `active`, `inactive` or `closed`.
        accepting: Whether it takes new tasks.
        owner: Who opened it, where the vendor cares.
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
    """Tasks that were submitted as one. `details` is the dialect's own."""

    id: str
    qpu: str
    created: float
    details: Mapping[str, Any]


class Store:
    """The emulator's memory, in one SQLite file.

    Args:
        path: The file; created when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Tasks

    def add_task(self, task: Task, request: str) -> None:
        """Remember an accepted task."""
        self._db.execute(
            f"INSERT INTO tasks ({_TASK}, request) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
            (*_task_row(task), request),
        )

    def add_batch(self, batch: Batch, tasks: list[Task], requests: list[str]) -> None:
        """Remember a batch and its tasks, all or nothing."""
        with self._all_or_nothing():
            self._db.execute(
                "INSERT INTO batches VALUES (?,?,?,?)",
                (batch.id, batch.qpu, batch.created, json.dumps(batch.details)),
            )
            for task, request in zip(tasks, requests, strict=True):
                self.add_task(task, request)

    def add_tasks(self, tasks: list[Task], requests: list[str]) -> None:
        """Remember several accepted tasks, all or nothing."""
        with self._all_or_nothing():
            for task, request in zip(tasks, requests, strict=True):
                self.add_task(task, request)

    def save_task(self, task: Task, result: str | None = None, logs: str | None = None) -> None:
        """Remember a task's new state, and its result and logs when it has ended."""
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
        """Return a task; `None` when there is none of that id or it was deleted."""
        row = self._db.execute(
            f"SELECT {_TASK} FROM tasks WHERE id=? AND NOT deleted",  # noqa: S608
            (task_id,),
        ).fetchone()
        return None if row is None else _task(row)

    def request(self, task_id: str) -> str:
        """Return what a task was asked to run."""
        return str(self._column("request", task_id))

    def result(self, task_id: str) -> str | None:
        """Return a task's result, if there is one."""
        return self._column("result", task_id)

    def logs(self, task_id: str) -> str:
        """Return a task's logs; empty when there are none."""
        return self._column("logs", task_id) or ""

    def find_tasks(
        self,
        limit: int = -1,
        offset: int = 0,
        newest_first: bool = False,
        states: tuple[str, ...] = (),
        qpus: tuple[str, ...] = (),
        **equal: str,
    ) -> list[Task]:
        """Return the tasks, in the order of their acceptance, that match every condition."""
        conditions = ["NOT deleted"] + [f"{column}=?" for column in equal]
        for column, values in (("state", states), ("qpu", qpus)):
            if values:
                conditions.append(f"{column} IN ({','.join('?' * len(values))})")
        order = "DESC" if newest_first else "ASC"
        rows = self._db.execute(
            f"SELECT {_TASK} FROM tasks WHERE {' AND '.join(conditions)}"  # noqa: S608
            f" ORDER BY rowid {order} LIMIT ? OFFSET ?",
            (*equal.values(), *states, *qpus, limit, offset),
        )
        return [_task(row) for row in rows]

    def count_tasks(self) -> Iterator[tuple[str, str, int]]:
        """Return how many tasks there are, as (QPU, state, count), deleted ones included."""
        yield from self._db.execute("SELECT qpu, state, count(*) FROM tasks GROUP BY qpu, state")

    def busy_seconds(self, qpus: Iterable[str]) -> float:
        """Return how long all tasks that ended on these QPUs took together."""
        marks = ",".join("?" * len(names := tuple(qpus)))
        row = self._db.execute(
            f"SELECT total(finished - started) FROM tasks WHERE qpu IN ({marks})",  # noqa: S608
            names,
        ).fetchone()
        return float(row[0])

    # Sessions

    def save_session(self, session: Session) -> None:
        """Remember a session's state."""
        self._db.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            tuple(getattr(session, name) for name in Session.__slots__),
        )

    def session(self, session_id: str) -> Session | None:
        """Return a session, if there is one of that id."""
        row = self._db.execute("SELECT * FROM sessions WHERE id=?", (session_id,)).fetchone()
        return None if row is None else _session(row)

    def open_sessions(self, qpu: str) -> list[Session]:
        """Return the sessions of a QPU that are not closed."""
        rows = self._db.execute(
            "SELECT * FROM sessions WHERE qpu=? AND state!='closed' ORDER BY rowid", (qpu,)
        )
        return [_session(row) for row in rows]

    def count_sessions(self) -> Iterator[tuple[str, str, int]]:
        """Return how many sessions there are, as (QPU, state, count)."""
        yield from self._db.execute("SELECT qpu, state, count(*) FROM sessions GROUP BY qpu, state")

    # Batches, objects, notes

    def batch(self, batch_id: str) -> Batch | None:
        """Return a batch, if there is one of that id."""
        row = self._db.execute("SELECT * FROM batches WHERE id=?", (batch_id,)).fetchone()
        if row is None:
            return None
        return Batch(id=row[0], qpu=row[1], created=row[2], details=json.loads(row[3]))

    def batches(self) -> list[Batch]:
        """Return all batches, the newest first."""
        rows = self._db.execute("SELECT id FROM batches ORDER BY rowid DESC").fetchall()
        return [batch for (batch_id,) in rows if (batch := self.batch(batch_id))]

    def save_batch(self, batch: Batch) -> None:
        """Remember a batch's new details."""
        self._db.execute(
            "UPDATE batches SET details=? WHERE id=?", (json.dumps(batch.details), batch.id)
        )

    def put_object(self, bucket: str, key: str, body: bytes, type_: str, modified: float) -> None:
        """Store an object, replacing one of the same key."""
        self._db.execute(
            "INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?)",
            (bucket, key, body, type_, modified),
        )

    def get_object(self, bucket: str, key: str) -> tuple[bytes, str, float] | None:
        """Return an object's body, content type and time of storage, if there is one."""
        row: tuple[bytes, str, float] | None = self._db.execute(
            "SELECT body, type, modified FROM objects WHERE bucket=? AND key=?", (bucket, key)
        ).fetchone()
        return row

    def delete_object(self, bucket: str, key: str) -> None:
        """Forget an object; not an error when there is none."""
        self._db.execute("DELETE FROM objects WHERE bucket=? AND key=?", (bucket, key))

    def next_number(self) -> int:
        """Return a number that no task has had yet."""
        return int(self._db.execute("SELECT coalesce(max(rowid), 0) + 1 FROM tasks").fetchone()[0])

    def note(self, name: str) -> str | None:
        """Return a remembered value."""
        row = self._db.execute("SELECT value FROM notes WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Remember a value under a name."""
        self._db.execute("INSERT OR REPLACE INTO notes VALUES (?,?)", (name, value))

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
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
    values = [getattr(task, name.strip()) for name in _TASK.split(",")]
    values[10] = json.dumps(task.details) if task.details else None
    return tuple(values)


def _task(row: tuple[Any, ...]) -> Task:
    values = dict(zip((name.strip() for name in _TASK.split(",")), row, strict=True))
    values["details"] = json.loads(row[10]) if row[10] else {}
    values["deleted"] = bool(row[11])
    return Task(**values)


def _session(row: tuple[Any, ...]) -> Session:
    values = dict(zip(Session.__slots__, row, strict=True))
    values["accepting"] = bool(values["accepting"])
    return Session(**values)
