"""The write-ahead journal of tasks: nothing paid for is lost, or paid for twice.

Each task has one file, on a file system that all hosts of a job share. Its state is *claimed* until
the request to submit it is about to go out, then *intent* until the vendor has answered, then
*submitted* with the vendor's id, and finally *completed* with the result or *failed* with the
reason. Each state is written atomically and synced, so that a rerun of the step finds out how far a
killed process had got.

A task's key is its step, its QPU, its payload's digest and its number among equal tasks. The QPU is
its name, its type and its endpoints, so that no emulated QPU passes for a real one. A rerun claims
tasks in the same order and so finds the same keys; identical tasks submitted on purpose have
different numbers. A step is named by the program that runs it (`$QPU_STEP`, which the engines set;
the output file of `qpu run`). Without a name, the step is the scheduler's job, which a requeue runs
again under the same id. Outside a job, it is this process alone, which cannot be run again.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path

from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.variables import QPU_ATTEMPT, QPU_STEP, journal_days
from qrmi_workflows.errors import ConfigError, JournalError
from qrmi_workflows.journal.record import TaskRecord
from qrmi_workflows.journal.record_files import raising_journal_errors, read_records, remove_step
from qrmi_workflows.journal.step import Step
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.locks import hold_lock

__all__ = ["Journal"]

logger = logging.getLogger(__name__)

_DAY = 86400.0


class Journal:
    """All steps of one user.

    Args:
        folder: The journal's folder; in `state_folder()` if `None`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder() / "journal"

    def step(self, name: str) -> Step:
        """Return the step with that name."""
        return Step(self._folder_of(name), name)

    def this_step(self, environ: Mapping[str, str] = os.environ) -> Step:
        """Return the step that this process runs: `$QPU_STEP`, its job, or the process itself.

        A requeued job runs its commands again: the n-th run of a command finds the tasks of its
        n-th run before the requeue. A command that a job runs twice on purpose is two steps.

        Raises:
            JournalError: The journal could not be written.
        """
        if named := environ.get(QPU_STEP):
            attempt = environ.get(QPU_ATTEMPT, "")
            return Step(self._folder_of(named), named, attempt=attempt)
        job = this_job(environ)
        if job is None:
            name = f"process {uuid.uuid4()}"
            return Step(self._folder_of(name), name, named=False)
        # Not the host: a requeued job may run elsewhere.
        place = "/".join((job.cluster or "", job.job_step, job.rank))
        name = f"job {job.id} {place} {' '.join(sys.argv)}"
        return self.step(f"{name} #{self._count_run(name, attempt=str(job.restart))}")

    def close(self, step: Step, *, seconds: float = 1.0) -> None:
        """Close a step; archive it if it cannot be run again and all its tasks have ended.

        Args:
            step: The step.
            seconds: How long to wait for a claim that hangs on its file system.
        """
        step.close(seconds)
        if not step.named and step.is_done:
            try:
                self._archive(step)
            except JournalError as error:
                logger.info("%s", error)

    def archive(self, name: str) -> None:
        """Archive a step's records: the step has succeeded, and its next run starts afresh.

        Raises:
            JournalError: The journal could not be written.
        """
        self._archive(self.step(name))

    def records(
        self, *, archived: bool = False, on_error: Callable[[JournalError], None] | None = None
    ) -> Iterator[TaskRecord]:
        """Read the records of all open steps, or of all archived ones.

        Args:
            archived: Read the records of archived steps.
            on_error: Called with the error of each record that cannot be read; raised if `None`.

        Raises:
            JournalError: A record could not be read.
        """
        for folder in sorted((self.folder / ("archived" if archived else "open")).glob("*/*")):
            yield from read_records(folder, on_error)

    def find(
        self, task: str, *, on_error: Callable[[JournalError], None] = lambda _: None
    ) -> TaskRecord | None:
        """Find a task, in open steps first.

        Args:
            task: The vendor's id, or the beginning of the payload's digest.
            on_error: Called with the error of each record that cannot be read.

        Raises:
            JournalError: It is the id of a task that several payloads share.
        """
        for archived in (False, True):
            found = [
                record
                for record in self.records(archived=archived, on_error=on_error)
                if task and (record.task_id == task or record.digest.startswith(task))
            ]
            digests = list(dict.fromkeys(record.digest[:12] for record in found))
            if len(digests) > 1 and any(record.task_id == task for record in found):
                raise JournalError(
                    f"task {task} was shared by {len(digests)} payloads; name one of them by the "
                    f"beginning of its digest: {', '.join(digests)}."
                )
            if found:
                return found[0]
        return None

    def prune(self, *, older_than_days: float, open_too: bool = False) -> int:
        """Forget archived steps that have not changed for a number of days.

        Args:
            older_than_days: The number of days.
            open_too: Also forget open steps that no process is running. Their results, already paid
                for, are lost.

        Returns:
            How many tasks were forgotten.
        """
        limit = max(0.0, time.time() - older_than_days * _DAY)  # the days may be infinite
        tasks = sum(remove_step(folder) for folder in self._archived_before(limit))
        if not open_too:
            return tasks
        self._remove_coalesced(limit)
        for markers in self.folder.glob("jobs/*"):
            if _modified(markers) <= limit:
                remove_step(markers)
        return tasks + sum(
            self._remove_unless_running(Step(folder, ""))
            for folder in self.folder.glob("open/*/*")
            if _modified(folder) <= limit
        )

    def _remove_coalesced(self, limit: float) -> None:
        """Remove the records of coalesced tasks that a crash has left."""
        for path in self.folder.glob("coalesced/*"):
            if _modified(path) <= limit:
                with suppress(OSError):
                    path.unlink()

    def forget(self, name: str) -> int:
        """Forget an open step in any state: its next run submits all of its tasks again.

        Returns:
            How many tasks were forgotten.
        """
        return remove_step(self.step(name).folder)

    def _folder_of(self, name: str) -> Path:
        # Names may be long and contain any character. Two levels keep directories small: parallel
        # file systems are slow with many entries in one directory.
        key = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        return self.folder / "open" / key[:2] / key

    def _count_run(self, name: str, *, attempt: str) -> int:
        """Return the index of this run among those with its name since the job's last start."""
        folder = self.folder / "jobs" / hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        with raising_journal_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count():
                # Exclusive creation is atomic across hosts, so each run gets a number of its own.
                with suppress(FileExistsError), (folder / f"{attempt}-{number}").open("x"):
                    return number
        raise AssertionError("unreachable")

    def _archive(self, step: Step) -> None:
        step.archive(self.folder / "archived")
        with suppress(OSError):
            self._prune_daily()

    def _prune_daily(self) -> None:
        """Prune steps that are older than `$QPU_JOURNAL_DAYS`, at most once a day."""
        marker = self.folder / "pruned"
        # The absolute value, because the clock may have been set back.
        if abs(time.time() - _modified(marker, absent=0.0)) < _DAY:
            return
        marker.touch()
        try:
            self.prune(older_than_days=journal_days(), open_too=True)
        except (ConfigError, JournalError) as error:
            logger.warning("old task records were not pruned: %s", error)

    def _archived_before(self, limit: float) -> Iterator[Path]:
        for day in self.folder.glob("archived/????-??-??"):
            # The folder may belong to someone else, be gone, or still hold newer steps.
            with suppress(ValueError, OSError):
                if date.fromisoformat(day.name) <= date.fromtimestamp(limit + _DAY):
                    yield from (folder for folder in day.iterdir() if _modified(folder) <= limit)
                    day.rmdir()

    def _remove_unless_running(self, step: Step) -> int:
        with raising_journal_errors(step.folder), hold_lock(step.folder / ".lock"):
            return 0 if step.is_running() else remove_step(step.folder)


def _modified(path: Path, absent: float = float("inf")) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return absent
