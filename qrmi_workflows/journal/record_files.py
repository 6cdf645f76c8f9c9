"""The files of task records in a step's folder: read, and removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.locks import hold_lock

__all__ = [
    "hold_step",
    "raising_journal_errors",
    "read_record",
    "read_record_alone",
    "read_records",
    "remove_step",
    "task_file",
    "write_record",
]


def read_records(
    folder: Path, on_error: Callable[[JournalError], None] | None = None
) -> Iterator[TaskRecord]:
    """Read the records of one folder.

    Args:
        folder: The folder.
        on_error: Called with the error of each record that cannot be read; raised if `None`.

    Raises:
        JournalError: A record could not be read.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_record(path)
        except JournalError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            if record is not None:
                yield record


def remove_step(folder: Path) -> int:
    """Remove a step's folder; return how many tasks it had."""
    tasks = 0
    for file in sorted(folder.glob("*")) + sorted(folder.glob(".*")):
        with suppress(OSError):
            file.unlink()
            tasks += file.suffix == ".json"
    with suppress(OSError):
        folder.rmdir()
    return tasks


@contextmanager
def raising_journal_errors(path: Path) -> Iterator[None]:
    """Raise a `JournalError` in place of an `OSError`.

    Args:
        path: The path to name if the error names none.

    Raises:
        JournalError: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"cannot use the journal: {error.filename or path}: {error.strerror or error}. Free "
            "some space, correct its permissions, or have its file system mounted with locks; or "
            "name another folder in $QPU_STATE."
        ) from error


class _Held(threading.local):
    """The folders of the steps whose locks this thread holds."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_held = _Held()


@contextmanager
def hold_step(folder: Path) -> Iterator[None]:
    """Hold the lock of a step's folder; a thread may hold it several times.

    Raises:
        JournalError: The lock could not be used.
    """
    if folder in _held.folders:
        yield
        return
    with raising_journal_errors(folder), hold_lock(folder / ".lock"):
        _held.folders.add(folder)
        try:
            yield
        finally:
            _held.folders.discard(folder)


def read_record(path: Path) -> TaskRecord | None:
    """Read one record; return `None` if the file does not exist.

    If its payload shares a task with others, that task's record tells how far it has come.

    Raises:
        JournalError: The record could not be read.
    """
    record = read_record_alone(path)
    if record is None or record.portion is None or record.state is not RecordState.INTENT:
        return record
    task = read_record_alone(task_file(path, record.portion.task))
    if task is None:
        # It is removed once each payload's record tells the rest: perhaps since this one was read.
        return read_record_alone(path)
    continued = record.continued_as(task)
    # If the task was never sent, the payload may go alone, or with others.
    return replace(continued, portion=None) if task.state is RecordState.CLAIMED else continued


def read_record_alone(path: Path) -> TaskRecord | None:
    """Read one record as it is in its own file; return `None` if the file does not exist.

    Raises:
        JournalError: The record could not be read.
    """
    with raising_journal_errors(path):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
    return TaskRecord.from_json(text, str(path))


def write_record(path: Path, record: TaskRecord, *, durable: bool) -> None:
    """Write a record's file.

    Args:
        path: The file.
        record: The record.
        durable: Whether it must survive a crash of the host.

    Raises:
        JournalError: The file could not be written.
    """
    with raising_journal_errors(path):
        write_atomically(path, record.to_json(), mode=0o600, durable=durable)


def task_file(record: Path, task: str) -> Path:
    """Return the file of a coalesced task.

    Args:
        record: A record of one of its payloads, in an open or archived step.
        task: The task's name (`Portion.task`).
    """
    return record.parents[3] / "coalesced" / f"{task}.json"
