"""One step's tasks in the journal: claimed, written, and put aside when the step has ended well.

Who holds a record is told by a lock, which ends with its process: a run of a step, on any host,
takes over what no other run holds. Claiming and settling happen under a lock of the step's folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from qrmi_workflows.errors import JournalError, SchedulerError
from qrmi_workflows.locks import is_locked, lock, locked
from qrmi_workflows.owner import Owner
from qrmi_workflows.results import QuantumResult, write_whole
from qrmi_workflows.schedulers.slurm import live_jobs
from qrmi_workflows.task_record import RecordState, TaskRecord

__all__ = ["Entry", "Step", "forget", "read_records", "unusable"]

_RUN = ".run"
_PROCESS = uuid.uuid4().hex[:16]  # this process, and its forks
_SCHEDULER_SECONDS = 5.0
_CLOSE_SECONDS = 1.0


@dataclass(slots=True)
class Entry:
    """A task's place in the journal, held by this process as long as its step is."""

    path: Path
    record: TaskRecord
    step: Step = field(repr=False)

    def submitted(self, task_id: str) -> None:
        """Record the vendor's id, as soon as it is known."""
        self._write(state=RecordState.SUBMITTED, task_id=task_id, reason=None)

    def completed(self, result: QuantumResult) -> None:
        """Record the result."""
        self._write(state=RecordState.COMPLETED, result=result)

    def failed(self, reason: str, *, retryable: bool) -> None:
        """Record that there will be no result, and whether a rerun may submit it again."""
        self._write(state=RecordState.FAILED, reason=reason, retryable=retryable)

    def renewed(self) -> None:
        """Record the intent to submit it again."""
        self._write(state=RecordState.INTENT, task_id=None, reason=None, retryable=False)

    def write(self) -> None:
        """Record it as it is.

        Raises:
            JournalError: The journal could not be written.
        """
        with unusable(self.path):
            # The vendor has the result as long as it knows the id, so that one can be lost.
            durable = not self.record.state.ended
            write_whole(self.path, self.record.to_json(), mode=0o600, durable=durable)
        self.step._note(self.path, self.record.state)

    def _write(self, **changes: Any) -> None:
        self.record = replace(self.record, since=_now(), **changes)
        self.write()


class Step:
    """The tasks of one step; safe to use from any thread.

    Args:
        folder: Where its records lie.
        name: Its name.
        named: Whether somebody may run it again under that name.
        attempt: Which attempt at the step this is, of those who find its name in their environment
            (empty when that is not known): what another command of it, another rank, or another
            lease of this process has completed is theirs, and an equal task here is meant anew.
    """

    def __init__(
        self, folder: Path, name: str, *, named: bool = True, attempt: str | None = None
    ) -> None:
        self.folder = folder
        self.name = name
        self.named = named
        self._part = None if attempt is None else (attempt, _command(), _PROCESS)
        self._given: Counter[tuple[str, str]] = Counter()
        self._open: set[Path] = set()
        self._run: tuple[str, FileIO] | None = None
        self._lock = threading.Lock()
        _steps.add(self)

    def claim(self, digest: str, *, qpu: str, program: str) -> tuple[Entry, TaskRecord | None]:
        """Take the next task with that payload.

        Returns:
            Its entry, in state *intent* when it is new, held by this step until it is closed; and
            what an earlier run of the step had recorded of it.

        Raises:
            JournalError: The journal could not be read or written.
        """
        with self._lock, unusable(self.folder), locked(self.folder / ".lock"):
            run = self._begin()
            while True:
                number = self._given[digest, qpu]
                self._given[digest, qpu] += 1
                path = self.folder / f"{digest[:32]}-{qpu}-{number}.json"
                before = _read(path)
                if before is not None and (self._is_held(before) or self._is_anothers(before)):
                    continue  # a task of the same step, made on purpose
                owner = Owner.this_process()
                record = (
                    replace(before, run=run, owner=owner, part=self._part)
                    if before
                    else TaskRecord(
                        step=self.name,
                        digest=digest,
                        number=number,
                        qpu=qpu,
                        program=program,
                        state=RecordState.INTENT,
                        run=run,
                        owner=owner,
                        since=_now(),
                        part=self._part,
                    )
                )
                entry = Entry(path, record, self)
                entry.write()
                return entry, before

    @property
    def done(self) -> bool:
        """Whether all tasks that were claimed have ended, and that is recorded."""
        return not self._open

    def close(self) -> None:
        """Let the step's tasks go: who runs it next takes them over."""
        if not self._lock.acquire(timeout=_CLOSE_SECONDS):
            return  # a claim hangs with its file system; its lock ends with the process
        try:
            if self._run is not None:
                run, file = self._run
                self._run = None
                with suppress(OSError):
                    (self.folder / f"{run}{_RUN}").unlink()
                file.close()
        finally:
            self._lock.release()

    def settle(self, settled: Path) -> None:
        """Put aside what no other run of the step holds: it has ended well.

        Args:
            settled: The folder of settled steps.

        Raises:
            JournalError: The journal could not be written.
        """
        if not self.folder.exists():
            return
        now = datetime.now(UTC)
        target = settled / f"{now:%Y-%m-%d}" / f"{self.folder.name}-{now:%H%M%S%f}"
        with unusable(self.folder), locked(self.folder / ".lock"):
            others = self._other_runs()
            for path in sorted(self.folder.glob("*.json")):
                if not others or (found := _read(path)) is None or found.run not in others:
                    target.mkdir(parents=True, exist_ok=True)
                    path.rename(target / path.name)
            if not others:
                forget(self.folder)

    def records(self) -> list[TaskRecord]:
        """Read all of the step's records."""
        return list(read_records(self.folder))

    def is_running(self) -> bool:
        """Return whether a run of it holds its tasks, here or on another host."""
        return bool(self._other_runs())

    def _note(self, path: Path, state: RecordState) -> None:
        if state.ended:
            self._open.discard(path)
        else:
            self._open.add(path)

    def _begin(self) -> str:
        if self._run is None:
            run = uuid.uuid4().hex
            self._run = run, lock(self.folder / f"{run}{_RUN}")
        return self._run[0]

    def _is_held(self, record: TaskRecord) -> bool:
        return is_locked(self.folder / f"{record.run}{_RUN}") and not _gone(record.owner)

    def _is_anothers(self, record: TaskRecord) -> bool:
        """Whether another part of this attempt at the step has had the task's result."""
        if self._part is None or record.part is None or record.state is not RecordState.COMPLETED:
            return False
        attempt, command, process = self._part
        their_attempt, their_command, their_process = record.part
        if their_process == process:
            return True
        return attempt != "" and their_attempt == attempt and their_command != command

    def _other_runs(self) -> set[str]:
        own = self._run and self._run[0]
        runs = self.folder.glob(f"*{_RUN}")
        return {path.stem for path in runs if path.stem != own and is_locked(path)}

    def _forked(self) -> None:
        """Leave the run to the parent: a child would hold its tasks beyond the parent's death."""
        if self._run is not None:
            self._run[1].close()
            self._run = None
        self._lock = threading.Lock()


def _command(environ: Mapping[str, str] = os.environ) -> str:
    """Identify what this process runs: started again in the same attempt, it is a retry."""
    ranks = [environ.get(name) for name in ("SLURM_PROCID", "PMIX_RANK", "PMI_RANK")]
    return hashlib.sha256(os.fsencode(repr([sys.argv, ranks]))).hexdigest()[:16]


_steps: weakref.WeakSet[Step] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for step in list(_steps):
        step._forked()


os.register_at_fork(after_in_child=_leave_to_parent)


def read_records(
    folder: Path, unread: Callable[[JournalError], None] | None = None
) -> Iterator[TaskRecord]:
    """Read the records of one folder.

    Args:
        folder: The folder.
        unread: Called with the error of each that cannot be read; else it is raised.

    Raises:
        JournalError: One of them could not be read.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            record = _read(path)
        except JournalError as error:
            if unread is None:
                raise
            unread(error)
        else:
            if record is not None:
                yield record


def forget(folder: Path) -> int:
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
def unusable(path: Path) -> Iterator[None]:
    """Say of the journal what fails inside.

    Raises:
        JournalError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"the journal cannot be used: {error.filename or path}: {error.strerror or error}. "
            "Make room, mend its permissions, or have its file system mounted with locks; or name "
            "another folder in $QPU_STATE."
        ) from error


def _gone(owner: Owner) -> bool:
    """Return whether a lock is of a host that has died, and that nobody has told so.

    The scheduler knows: the file system may keep such a lock for minutes, or for ever.
    """
    if owner.here or owner.job is None:
        return False
    if owner.requeued():
        return True
    try:
        return owner.job not in live_jobs(owner.cluster, timeout=_SCHEDULER_SECONDS)
    except SchedulerError:
        return False


def _read(path: Path) -> TaskRecord | None:
    with unusable(path):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
    return TaskRecord.from_json(text, str(path))


def _now() -> str:
    return datetime.now(UTC).isoformat()
