"""The write-ahead record of tasks: nothing that was paid for is lost, or paid for twice.

One file for each task, on a file system that all hosts of a job share: *intent* before the vendor
is asked, *submitted* with the vendor's id, *completed* with the result, or *failed* with the
reason. Each is written whole (temporary file, fsync, rename), so that whatever ends the process,
a rerun of the same step finds where it was.

A task's key is its step, its QPU, its payload's digest and its number among the equal ones. A rerun
asks in the same order and finds the same keys; two identical tasks on purpose have two numbers. A
step is named by who runs it (`$QPU_STEP`, set by the engines; the output file of `qpu run`);
without a name it is the Slurm job, which a requeue runs again under the same id, or just this
process.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from qrmi_workflows.config import state_folder
from qrmi_workflows.errors import JournalError
from qrmi_workflows.owner import Owner
from qrmi_workflows.results import QuantumResult, write_whole

__all__ = ["STEP_VARIABLE", "Journal", "RecordState", "Step", "TaskRecord", "step_name"]

STEP_VARIABLE = "QPU_STEP"
FORMAT = "qrmi-workflows-task"
VERSION = 1


_held: set[Path] = set()
"""The records that steps of this process hold open."""


class RecordState(StrEnum):
    """How far a task has come, as far as is known for certain."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task, as the journal has it.

    Attributes:
        step: The name of the step that it belongs to.
        digest: SHA-256 of its payload.
        number: Which of the step's tasks with that payload, from 0 on.
        qpu: The QPU's name.
        program: `sampler`, `estimator`, `pulser`.
        state: How far it has come.
        task_id: The vendor's id, once it is known.
        owner: The process that runs it.
        since: When this state was written, ISO 8601 in UTC.
        reason: Why it failed.
        retryable: Whether a rerun submits it again after its failure.
        result: The result, once it is there.
    """

    step: str
    digest: str
    number: int
    qpu: str
    program: str
    state: RecordState
    owner: Owner
    since: str
    task_id: str | None = None
    reason: str | None = None
    retryable: bool = False
    result: QuantumResult | None = field(default=None, repr=False)

    def to_json(self) -> str:
        """Render the record's file."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read a record's file.

        Raises:
            JournalError: It is no record, or of a newer version.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise JournalError(f"{where}: not a task's record: {error}. Remove it.") from error
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise JournalError(f"{where}: not a task's record. Remove it.")
        if document["version"] != VERSION:
            raise JournalError(
                f"{where}: a journal of version {document['version']!r}; this release reads "
                f"version {VERSION}. Install a newer qrmi-workflows, or name another $QPU_STATE."
            )
        values = {key: value for key, value in document.items() if key not in ("format", "version")}
        values["state"] = RecordState(values["state"])
        values["owner"] = Owner.from_document(values["owner"])
        values["result"] = values["result"] and QuantumResult(**values["result"])
        return cls(**values)


@dataclass(slots=True)
class Entry:
    """A task's place in the journal, held by this process."""

    path: Path
    record: TaskRecord

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

    def _write(self, **changes: Any) -> None:
        self.record = replace(self.record, since=_now(), **changes)
        _write(self.path, self.record)


class Step:
    """The tasks of one step; safe to use from any thread.

    Args:
        folder: Where its records lie.
        name: Its name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._owner = Owner.this_process()
        self._given: Counter[tuple[str, str]] = Counter()
        self._mine: set[Path] = set()
        self._lock = threading.Lock()

    def claim(self, digest: str, *, qpu: str, program: str) -> tuple[Entry, TaskRecord | None]:
        """Take the next task with that payload.

        Returns:
            Its entry, in state *intent* and owned by this process when it is new, and what an
            earlier run of the step had recorded of it.

        Raises:
            JournalError: The journal could not be read or written.
        """
        with self._lock, _locked(self.folder):
            while True:
                number = self._given[digest, qpu]
                self._given[digest, qpu] += 1
                path = self.folder / f"{digest[:32]}-{qpu}-{number}.json"
                before = _read(path)
                if before is None:
                    return self._new(path, digest, number, qpu, program), None
                if self._is_taken(path, before):
                    continue  # a task of the same step, made on purpose and under way
                self._hold(path)
                entry = Entry(path, replace(before, owner=self._owner))
                _write(path, entry.record)
                return entry, before

    def close(self) -> None:
        """Let the step's tasks go: who opens it next in this process takes them over."""
        _held.difference_update(self._mine)

    def records(self) -> list[TaskRecord]:
        """Read all of the step's records."""
        return list(_records_of(self.folder))

    def settle(self, settled: Path) -> None:
        """Put the step's records aside: it has ended well, and running it again means afresh."""
        if not self.folder.exists():
            return
        settled.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.folder.rename(settled / f"{self.folder.name}-{stamp}")

    def _is_taken(self, path: Path, record: TaskRecord) -> bool:
        if record.owner == self._owner:
            return path in _held
        return bool(record.owner.lives())

    def _hold(self, path: Path) -> None:
        self._mine.add(path)
        _held.add(path)

    def _new(self, path: Path, digest: str, number: int, qpu: str, program: str) -> Entry:
        record = TaskRecord(
            step=self.name,
            digest=digest,
            number=number,
            qpu=qpu,
            program=program,
            state=RecordState.INTENT,
            owner=self._owner,
            since=_now(),
        )
        _write(path, record)
        self._hold(path)
        return Entry(path, record)


class Journal:
    """All steps of one user.

    Args:
        folder: The journal's folder; in `state_folder()` when it is `None`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder() / "journal"

    def step(self, name: str) -> Step:
        """Return the step of that name."""
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        return Step(self.folder / "open" / key[:2] / key, name)

    def count_run(self, name: str, *, attempt: str) -> int:
        """Return which run of that name this is, from 0 on, within one attempt of its job.

        Raises:
            JournalError: The journal could not be written.
        """
        folder = self.folder / "jobs" / hashlib.sha256(name.encode()).hexdigest()[:32]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count():
                with suppress(FileExistsError), (folder / f"{attempt}-{number}").open("x"):
                    return number
        except OSError as error:
            raise _unusable(folder, error) from error
        raise AssertionError("counted to the end")

    def settle(self, name: str) -> None:
        """Put a step's records aside: it has ended well, and running it again means afresh.

        Raises:
            JournalError: The journal could not be written.
        """
        try:
            self.step(name).settle(self.folder / "settled")
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def records(self, *, settled: bool = False) -> Iterator[TaskRecord]:
        """Read the records of all open steps, or of all settled ones."""
        pattern = "settled/*" if settled else "open/*/*"
        for folder in sorted(self.folder.glob(pattern)):
            yield from _records_of(folder)

    def prune(self, *, older_than_days: float) -> int:
        """Forget settled steps that have not changed for so long.

        Returns:
            How many tasks were forgotten.
        """
        limit = datetime.now(UTC).timestamp() - older_than_days * 86400
        return sum(_forget(one) for one in self.folder.glob("settled/*") if _age(one) <= limit)

    def forget(self, step: str) -> int:
        """Forget an open step, whatever its state: its next run submits everything anew.

        Returns:
            How many tasks were forgotten.
        """
        return _forget(self.step(step).folder)


def step_name(journal: Journal, environ: Mapping[str, str] = os.environ) -> str:
    """Return the name of the step that this process runs: `$QPU_STEP`, its Slurm job, or itself.

    A job that Slurm requeues runs the same commands again: the n-th run of a command finds the
    tasks of the n-th run before, while a command that a job runs twice on purpose is two steps.

    Raises:
        JournalError: The journal could not be written.
    """
    if named := environ.get(STEP_VARIABLE):
        return named
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return f"process {uuid.uuid4()}"
    variables = ("SLURM_CLUSTER_NAME", "SLURM_STEP_ID", "SLURM_PROCID")
    place = "/".join(environ.get(name, "") for name in variables)
    name = f"job {job} {place} {' '.join(sys.argv)}"
    restart = environ.get("SLURM_RESTART_COUNT", "0")
    return f"{name} #{journal.count_run(name, attempt=restart)}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a step against other processes, on this host or another, while a task is claimed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise _unusable(folder, error) from error


def _read(path: Path) -> TaskRecord | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    return TaskRecord.from_json(text, str(path))


def _write(path: Path, record: TaskRecord) -> None:
    try:
        write_whole(path, record.to_json(), mode=0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"the journal cannot be used: {path}: {error.strerror or error}. Make room or mend its "
        "permissions, or name another folder in $QPU_STATE."
    )


def _records_of(folder: Path) -> Iterator[TaskRecord]:
    for path in sorted(folder.glob("*.json")):
        record = _read(path)
        if record is not None:
            yield record


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _forget(folder: Path) -> int:
    files = list(folder.iterdir())
    for file in files:
        with suppress(FileNotFoundError):
            file.unlink()
    with suppress(OSError):
        folder.rmdir()
    return sum(file.suffix == ".json" for file in files)


def _now() -> str:
    return datetime.now(UTC).isoformat()
