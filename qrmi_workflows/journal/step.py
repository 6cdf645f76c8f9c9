"""One step's tasks in the journal: claimed, written, and archived once the step has succeeded.

A *run* of a step is one process's hold on the step's tasks, backed by a lock that ends with the
process. A later run, on any host, takes over the records that no other run holds. Claiming and
archiving happen under a lock on the step's folder.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrmi_workflows.journal.commands import PROCESS, command_digest
from qrmi_workflows.journal.cost import Amount, Cost
from qrmi_workflows.journal.crashes import has_crashed
from qrmi_workflows.journal.record import Move, Portion, RecordState, TaskRecord
from qrmi_workflows.journal.record_files import (
    hold_step,
    read_record,
    read_records,
    remove_step,
    write_record,
)
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.locks import create_locked, is_locked
from qrmi_workflows.state.process import Owner

if TYPE_CHECKING:
    from qrmi_workflows.results import QuantumResult

__all__ = ["Entry", "Step"]

logger = logging.getLogger(__name__)

_RUN = ".run"


@dataclass(slots=True)
class Entry:
    """A task's place in the journal, held by this process until its step is closed."""

    path: Path
    record: TaskRecord
    step: Step = field(repr=False)

    def intend(self) -> None:
        """Record that the request to submit the task is about to go out."""
        self._write(state=RecordState.INTENT, portion=None)

    def share(self, portion: Portion) -> None:
        """Record that a coalesced task, about to be submitted, has the payload's PUBs.

        The caller syncs the folder, once for all payloads.

        Args:
            portion: Which PUBs of that task they are.
        """
        self.record = replace(self.record, state=RecordState.INTENT, since=_now(), portion=portion)
        write_record(self.path, self.record, durable=False)
        self.step._track(self.path, self.record.state)

    def follow(self, task: TaskRecord) -> None:
        """Take note, without writing, of how far the coalesced task has come."""
        if task.state is RecordState.COMPLETED:  # until it has its part of the result
            task = replace(task, state=RecordState.SUBMITTED, result=None)
        self.record = self.record.continued_as(task)
        self.step._track(self.path, self.record.state)

    def lend(self) -> None:
        """Take note that another process may submit the task, and writes the record meanwhile."""
        self.step._track(self.path, RecordState.INTENT)

    def take_back(self) -> TaskRecord:
        """Hold the task as another process has left it; return the record that it has left."""
        self.record = read_record(self.path) or self.record
        self.write()
        return self.record

    def submitted(self, task_id: str) -> None:
        """Record the vendor's id as soon as it is known."""
        self._write(state=RecordState.SUBMITTED, task_id=task_id, reason=None)

    @contextmanager
    def holding(self, state: RecordState) -> Iterator[bool]:
        """Keep other runs from claiming the task, for a record that is written after the run.

        Yields:
            Whether the record still has this state, and no other live run holds it.

        Raises:
            JournalError: The journal could not be read.
        """
        with self.step.holding(self.path, state, self.record.run) as is_held:
            yield is_held

    def stopping(self, reason: str) -> None:
        """Record that the task's cancellation was requested: a rerun may submit it again."""
        self._write(since=self.record.since, reason=reason, retryable=True)

    def expect(self, cost: Cost) -> None:
        """Take note, without writing, of what the task is expected to take."""
        self.record = replace(self.record, cost=cost)

    def completed(
        self, result: QuantumResult, *, durable: bool = False, spent: Amount | None = None
    ) -> None:
        """Record the result, and what the task has taken, unless that is recorded.

        Args:
            result: The result, which need not be decoded.
            durable: Whether the record must survive a crash of the host, because the result cannot
                be fetched again.
            spent: What the task has taken.
        """
        cost = self._cost(spent)
        self._write(durable=durable, state=RecordState.COMPLETED, result=result, cost=cost)

    def deleted(self) -> None:
        """Record that the ended task was deleted at its vendor."""
        self._write(since=self.record.since, deleted=True)

    def failed(self, reason: str, *, retryable: bool, spent: Amount | None = None) -> None:
        """Record that there will be no result.

        Args:
            reason: Why.
            retryable: Whether a rerun may submit the task again.
            spent: What the task has taken all the same.
        """
        cost = self._cost(spent)
        self._write(state=RecordState.FAILED, reason=reason, retryable=retryable, cost=cost)

    def moved(self, move: Move) -> None:
        """Record that the task goes to another QPU: it cannot be paid for at this one any more."""
        self._write(state=RecordState.MOVED, reason=move.reason, retryable=True, moved_to=move)

    def came(self, move: Move) -> None:
        """Take note, without writing, of the QPU that the task came from."""
        self.record = replace(self.record, moved_from=move)

    def _cost(self, spent: Amount | None) -> Cost | None:
        if spent is None:
            return self.record.cost
        return replace(self.record.cost or Cost(estimate=Amount()), spent=spent)

    def reset(self) -> None:
        """Record that the vendor does not have the task, and has not been asked again."""
        cost = self.record.cost
        self._write(
            state=RecordState.CLAIMED,
            task_id=None,
            reason=None,
            retryable=False,
            deleted=False,
            portion=None,
            moved_to=None,
            cost=None if cost is None else replace(cost, spent=None),
        )

    def write(self, *, durable: bool = False) -> None:
        """Write the record as it is.

        Args:
            durable: Whether it must survive a crash of the host in any state.

        Raises:
            JournalError: The journal could not be written.
        """
        # A lost result can be fetched again while the vendor knows the id; a lost id cannot.
        durable = durable or self.record.state.is_at_vendor
        write_record(self.path, self.record, durable=durable)
        self.step._track(self.path, self.record.state)

    def _write(self, *, durable: bool = False, **changes: Any) -> None:
        self.record = replace(self.record, **{"since": _now(), **changes})
        self.write(durable=durable)


class Step:
    """The tasks of one step; safe to use from any thread.

    Args:
        folder: The folder of its records.
        name: Its name.
        named: Whether it can be run again under that name.
        attempt: The attempt at the step, for processes that found the step's name in their
            environment; empty if not known. A completed task of another command or rank of the
            attempt, or of another lease in this process, is not reused: an equal task here is new.
    """

    def __init__(
        self, folder: Path, name: str, *, named: bool = True, attempt: str | None = None
    ) -> None:
        self.folder = folder
        self.name = name
        self.named = named
        self._part = None if attempt is None else (attempt, command_digest(), PROCESS)
        self._claimed: Counter[tuple[str, str, str]] = Counter()
        self._unfinished: set[Path] = set()
        self._run: tuple[str, FileIO] | None = None
        self._lock = threading.Lock()
        _steps.add(self)

    def claim(
        self, digest: str, *, qpu: str, program: str, identity: str = ""
    ) -> tuple[Entry, TaskRecord | None]:
        """Claim the next task with that payload on a QPU.

        Args:
            digest: The payload's digest.
            qpu: The QPU's name.
            program: The program that the payload runs.
            identity: What tells the QPU from others of its name: the tasks of an emulated QPU are
                not those of the real one.

        Returns:
            The task's entry, held until this step is closed, in state *claimed* if the task is new;
            and the record that an earlier run of the step left of it.

        Raises:
            JournalError: The journal could not be read or written.
        """
        # Two locks: one between this process's threads, one between processes and hosts.
        with self._lock, hold_step(self.folder):
            run = self._begin_run()
            if not self._claimed:
                self._report_namesakes(qpu, identity)
            # The number is part of the file's name, so that a rerun that claims in the same order
            # finds the same records. Numbers in use by others are skipped.
            while True:
                number = self._claimed[digest, qpu, identity]
                self._claimed[digest, qpu, identity] += 1
                path = self.folder / f"{digest[:32]}-{_place(qpu, identity)}-{number}.json"
                before = read_record(path)
                if before is not None and (self._is_held(before) or self._is_anothers(before)):
                    continue  # an equal task of the same step, repeated on purpose
                record = self._record(before, digest, number, qpu, identity, program, run)
                # Write under the lock: the next claim must see that this run holds the task.
                entry = Entry(path, record, self)
                entry.write()
                return entry, before

    def _report_namesakes(self, qpu: str, identity: str) -> None:
        """Say so if an earlier run has left tasks on another QPU of the same name."""
        theirs = re.compile(rf"[0-9a-f]{{32}}-{re.escape(qpu)}-([0-9a-f]{{16}})-\d+\.json")
        found = [theirs.fullmatch(path.name) for path in self.folder.glob("*.json")]
        if identity and any(match and match[1] != identity for match in found):
            logger.warning(
                "step %r has tasks on a QPU %r of another type or endpoint; they are not used here",
                self.name,
                qpu,
            )

    def _record(
        self,
        before: TaskRecord | None,
        digest: str,
        number: int,
        qpu: str,
        identity: str,
        program: str,
        run: str,
    ) -> TaskRecord:
        owner = Owner.this_process(this_job())
        if before is not None:
            return replace(before, run=run, owner=owner, part=self._part)
        return TaskRecord(
            step=self.name,
            digest=digest,
            number=number,
            qpu=qpu,
            identity=identity,
            program=program,
            state=RecordState.CLAIMED,
            run=run,
            owner=owner,
            since=_now(),
            named=self.named,
            part=self._part,
        )

    @property
    def is_done(self) -> bool:
        """Whether the vendor has none of the claimed tasks, and this is recorded."""
        return not self._unfinished

    def close(self, seconds: float = 1.0) -> None:
        """End this run of the step; the next run takes over its tasks.

        Args:
            seconds: How long to wait for a claim that hangs on its file system; its lock ends with
                the process.
        """
        if not self._lock.acquire(timeout=seconds):
            return
        try:
            if self._run is not None:
                run, file = self._run
                self._run = None
                with suppress(OSError):
                    (self.folder / f"{run}{_RUN}").unlink()
                file.close()
        finally:
            self._lock.release()

    def archive(self, archived: Path) -> None:
        """Archive the records that no other run of the step holds: the step has succeeded.

        Args:
            archived: The folder of archived steps.

        Raises:
            JournalError: The journal could not be written.
        """
        if not self.folder.exists():
            return
        now = datetime.now(UTC)
        target = archived / f"{now:%Y-%m-%d}" / f"{self.folder.name}-{now:%H%M%S%f}"
        with hold_step(self.folder):
            # Another process may already be running the same step again; its records stay.
            others = self._other_runs()
            for path in sorted(self.folder.glob("*.json")):
                if not others or (found := read_record(path)) is None or found.run not in others:
                    target.mkdir(parents=True, exist_ok=True)
                    path.rename(target / path.name)
            if not others:
                remove_step(self.folder)

    def records(self) -> list[TaskRecord]:
        """Read all of the step's records."""
        return list(read_records(self.folder))

    def find(self, digest: str, *, qpu: str, identity: str) -> list[TaskRecord]:
        """Read the records of the tasks with that payload on a QPU, whoever holds them."""
        paths = self.folder.glob(f"{digest[:32]}-{_place(qpu, identity)}-*.json")
        return [record for path in paths if (record := read_record(path)) is not None]

    def is_running(self) -> bool:
        """Return whether another run of the step holds tasks, here or on another host."""
        return bool(self._other_runs())

    @contextmanager
    def holding(self, path: Path, state: RecordState, run: str) -> Iterator[bool]:
        """See `Entry.holding`."""
        if not path.exists():
            yield False
            return
        with hold_step(self.folder):
            found = read_record(path)
            yield (
                found is not None
                and found.state is state
                and (found.run == run or not self._is_held(found))
            )

    def _track(self, path: Path, state: RecordState) -> None:
        if state.is_at_vendor:
            self._unfinished.add(path)
        else:
            self._unfinished.discard(path)

    def _begin_run(self) -> str:
        # At the first claim, not before: a step without tasks leaves no files.
        if self._run is None:
            run = uuid.uuid4().hex
            self._run = run, create_locked(self.folder / f"{run}{_RUN}")
        return self._run[0]

    def _is_held(self, record: TaskRecord) -> bool:
        # Check the lock, not the owner's pid: a lock works across hosts, and ends with its process.
        is_held = is_locked(self.folder / f"{record.run}{_RUN}")
        return is_held and not has_crashed(record.owner)

    def _is_anothers(self, record: TaskRecord) -> bool:
        """Return whether another part of this attempt has already used the task's result."""
        if self._part is None or record.part is None or record.state is not RecordState.COMPLETED:
            return False
        # Only results are kept apart: any part may take over an unfinished task of a dead one.
        attempt, command, process = self._part
        their_attempt, their_command, their_process = record.part
        if their_process == process:
            return True
        return attempt != "" and their_attempt == attempt and their_command != command

    def _other_runs(self) -> set[str]:
        own = self._run and self._run[0]
        runs = self.folder.glob(f"*{_RUN}")
        return {path.stem for path in runs if path.stem != own and is_locked(path)}

    def _leave_to_parent(self) -> None:
        # The lock lasts until the last copy of its file is closed: a child that kept its copy
        # would hold the tasks beyond the parent's death.
        if self._run is not None:
            self._run[1].close()
            self._run = None
        self._lock = threading.Lock()


# Weak references, because os.register_at_fork cannot be undone: closed steps can be collected.
_steps: weakref.WeakSet[Step] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for step in list(_steps):
        step._leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def _place(qpu: str, identity: str) -> str:
    return f"{qpu}-{identity}" if identity else qpu


def _now() -> str:
    return datetime.now(UTC).isoformat()
