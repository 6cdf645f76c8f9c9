"""The files of task records in a step's folder: read, and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.record import TaskRecord

__all__ = ["raising_journal_errors", "read_record", "read_records", "remove_step"]


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


def read_record(path: Path) -> TaskRecord | None:
    """Read one record; return `None` if the file does not exist.

    Raises:
        JournalError: The record could not be read.
    """
    with raising_journal_errors(path):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
    return TaskRecord.from_json(text, str(path))
