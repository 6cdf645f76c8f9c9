"""Records that other processes have lent to the one that submits a task for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.record import Portion, RecordState, TaskRecord
from qrmi_workflows.journal.record_files import hold_step, read_record, read_record_alone
from qrmi_workflows.journal.step import Entry, Step

__all__ = ["LentEntry", "TakenOverError"]


class TakenOverError(JournalError):
    """A rerun of the payload's step has taken its record over; nothing was submitted for it."""


class LentEntry(Entry):
    """The place in the journal of another process's payload.

    That process may die, and a rerun of its step take the record over at any time. What is written
    here then counts for the rerun only if its record still names this coalesced task.
    """

    _portion: Portion | None = None

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the place of a payload that was not submitted yet.

        Raises:
            JournalError: The record could not be read, or its task is not new.
        """
        record = read_record(path)
        if record is None or record.state is not RecordState.CLAIMED:
            raise TakenOverError(f"{path}: not the record of a new task")
        return cls(path, record, Step(path.parent, record.step, named=record.named))

    def share(self, portion: Portion) -> None:
        """See `Entry.share`.

        Raises:
            TakenOverError: The record is that of another run by now.
        """
        with self._found() as found:
            if found is None or found.run != self.record.run:
                raise TakenOverError(f"{self.path}: another run of the step has taken over")
            self._portion = portion
            super().share(portion)

    def write(self, *, durable: bool = False) -> None:
        """Write the record, unless it is no longer about this task."""
        with self._found() as found:
            if found is None:
                return  # its step has been archived: it has its result
            is_shared = self._portion is not None and found.portion == self._portion
            if found.run == self.record.run or is_shared:
                self.record = replace(
                    self.record, run=found.run, owner=found.owner, part=found.part
                )
                super().write(durable=durable)

    @contextmanager
    def _found(self) -> Iterator[TaskRecord | None]:
        if not self.path.exists():
            yield None
            return
        with hold_step(self.path.parent):
            yield read_record_alone(self.path)
