"""Coalesced tasks in the journal: one record for a task that several payloads share.

The record is in the folder `coalesced` of the journal. Each write of it counts for all of the
payloads at once. A payload's own record names it and the payload's PUBs (`Portion`) before the
request goes out, and stays in state *intent* until the payload has its result or a failure; until
then, `TaskRecord.continued_as` tells how far it has come.

Once all payloads' records have that, the task's record is removed. If it is missing all the same,
that proves nothing: the task may have been submitted.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.record import Portion, RecordState, TaskRecord
from qrmi_workflows.journal.record_files import (
    hold_step,
    raising_journal_errors,
    read_record,
    read_record_alone,
    task_file,
    write_record,
)
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.state.files import sync_folder
from qrmi_workflows.state.locks import is_locked

if TYPE_CHECKING:
    from qrmi_workflows.results import QuantumResult

__all__ = [
    "CoalescedEntry",
    "discard_if_done",
    "is_awaited_by_others",
    "keep_result",
    "leader_file",
]


class CoalescedEntry(Entry):
    """The place in the journal of a task that several payloads share.

    Args:
        members: The payloads' own places.
        counts: The numbers of their PUBs.
        digest: The digest of the payload that has the PUBs of all.
        name: The task's name in the journal; a new one if empty.
    """

    def __init__(
        self, members: Sequence[Entry], counts: Sequence[int], digest: str, name: str = ""
    ) -> None:
        first = members[0]
        name, total = name or uuid.uuid4().hex, sum(counts)
        # If any of the steps can be run again, that run may want the task.
        step = next((member.step for member in members if member.step.named), first.step)
        record = replace(
            first.record,
            digest=digest,
            number=0,
            state=RecordState.CLAIMED,
            cost=None,
            shared_by=tuple(_relative(member.path) for member in members),
        )
        super().__init__(task_file(first.path, name), record, step)
        self.members = tuple(members)
        self._portions = [
            Portion(task=name, first=sum(counts[:rank]), count=count, of=total)
            for rank, count in enumerate(counts)
        ]
        self._is_shared = False

    def intend(self) -> None:
        """Record in all places that the request to submit the task is about to go out."""
        if not self._is_shared:
            with raising_journal_errors(self.path):
                self.path.parent.mkdir(mode=0o700, exist_ok=True)
            self.write(durable=True)  # first: a payload's record must never name a missing file
            for member, portion in zip(self.members, self._portions, strict=True):
                member.share(portion)
            self._sync_members()
            self._is_shared = True
        super().intend()

    def write(self, *, durable: bool = False) -> None:
        """Write the task's record, which counts for all of its payloads."""
        super().write(durable=durable)
        if self._is_shared:
            for member in self.members:
                member.follow(self.record)

    def failed(self, reason: str, *, retryable: bool, spent: Amount | None = None) -> None:
        """Record that there will be no result for any of the payloads.

        A rerun may submit them again in any case: which one the vendor could not run is not known.
        If that is why, their records keep their portions, for a rerun to submit each of them alone.
        """
        super().failed(reason, retryable=True, spent=spent)
        for member in self.members:
            cost = member.record.cost  # with its part, since it follows
            own = None if cost is None else cost.spent
            # A rerun may have taken the record over, and have another task by now.
            with member.holding(member.record.state) as is_held:
                if is_held and (self._names_this(member.path) or not self._is_shared):
                    if retryable:
                        member.reset()
                    member.failed(reason, retryable=True, spent=own)
        self._sync_members()
        if not any(_waits(member.path, self._portions[0].task) for member in self.members):
            self.discard()

    def completed(
        self, result: QuantumResult, *, durable: bool = True, spent: Amount | None = None
    ) -> None:
        """Record the result of the whole task, from which each payload takes its part."""
        super().completed(result, durable=durable, spent=spent)

    def hand_out(self, results: Sequence[QuantumResult]) -> None:
        """Record each payload's own part of the result."""
        for member, result in zip(self.members, results, strict=True):
            member.completed(result)
        self._sync_members()

    def discard(self) -> None:
        """Remove the task's record: each payload's own tells the rest."""
        with suppress(OSError):
            self.path.unlink()

    @contextmanager
    def holding(self, state: RecordState) -> Iterator[bool]:
        """See `Entry.holding`; the record counts only while a payload's record names it."""
        with ExitStack() as held:
            # Those of all payloads, in one order: two such tasks may have the same steps.
            for folder in sorted({member.path.parent for member in self.members}):
                if folder.exists():
                    held.enter_context(hold_step(folder))
            is_held = held.enter_context(super().holding(state))
            yield is_held and any(self._names_this(member.path) for member in self.members)

    def _names_this(self, path: Path) -> bool:
        found = read_record_alone(path)
        return found is not None and found.portion in self._portions

    def _sync_members(self) -> None:
        for folder in {member.path.parent for member in self.members}:
            # It is gone if the step of another process's payload was archived meanwhile.
            with raising_journal_errors(folder), suppress(FileNotFoundError):
                sync_folder(folder)


def keep_result(record: Path, portion: Portion, result: QuantumResult) -> None:
    """Keep the result of a whole task for those of its payloads that do not have theirs yet.

    Args:
        record: A record of one of its payloads.
        portion: The payload's portion.
        result: The result.

    Raises:
        JournalError: The journal could not be used.
    """
    path = task_file(record, portion.task)
    task = read_record(path)
    if task is not None and task.state is not RecordState.COMPLETED:
        changed = replace(task, state=RecordState.COMPLETED, result=result, task_id=result.task_id)
        write_record(path, changed, durable=True)


def leader_file(record: Path, task: str) -> Path:
    """Return the file that is locked while a process runs a task for payloads of others.

    Args:
        record: The record of any of the payloads.
        task: The task's name.
    """
    return task_file(record, task).with_suffix(".leader")


def discard_if_done(record: Path, portion: Portion) -> bool:
    """Remove the record of a coalesced task if none of its other payloads needs it any more.

    Args:
        record: The record of one of its payloads, which has its own result or failure.
        portion: The payload's portion.

    Returns:
        Whether all others have a result or a failure, too.
    """
    path = task_file(record, portion.task)
    try:
        task = read_record(path)
        others = {path.parents[1] / each for each in task.shared_by} - {record} if task else ()
        if any(_waits(each, portion.task) for each in others):
            return False
    except JournalError:
        return False
    with suppress(OSError):
        path.unlink()
    return True


def is_awaited_by_others(record: TaskRecord, path: Path) -> bool:
    """Return whether another live process waits for the coalesced task of a payload.

    Args:
        record: The payload's record.
        path: The record's file.
    """
    if record.portion is None:
        return False
    file = task_file(path, record.portion.task)
    try:
        task = read_record(file)
        others = [] if task is None else [file.parents[1] / each for each in task.shared_by]
        return any(_is_awaited(other, record) for other in others)
    except (JournalError, OSError):
        return False


def _is_awaited(other: Path, record: TaskRecord) -> bool:
    found = read_record_alone(other)
    if found is None or found.owner == record.owner or record.portion is None:
        return False
    return _waits(other, record.portion.task) and is_locked(other.parent / f"{found.run}.run")


def _waits(record: Path, task: str) -> bool:
    found = read_record_alone(record)
    # It is gone, or has another task, if its step was archived, forgotten or run again.
    if found is None or found.portion is None or found.portion.task != task:
        return False
    return found.state.is_at_vendor


def _relative(record: Path) -> str:
    return str(record.relative_to(record.parents[3]))
