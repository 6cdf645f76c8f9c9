"""The write-ahead record of tasks: nothing that was paid for is lost, or paid for twice.

One file for each task, on a file system that all hosts of a job share: *intent* before the vendor
is asked, *submitted* with the vendor's id, *completed* with the result, or *failed* with the
reason. Each is written whole (temporary file, fsync, rename), so that whatever ends the process,
a rerun of the same step finds where it was.

A task's key is its step, its QPU, its payload's digest and its number among the equal ones. A rerun
asks in the same order and finds the same keys; two identical tasks on purpose have two numbers. A
step is named by who runs it (`$QPU_STEP`, set by the engines; the output file of `qpu run`);
without a name it is the Slurm job, which a requeue runs again under the same id, or just this
process: then nobody can run it again.
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

from qrmi_workflows.config import state_folder
from qrmi_workflows.errors import ConfigError, JournalError
from qrmi_workflows.locks import locked
from qrmi_workflows.step import Step, forget, read_records, unusable
from qrmi_workflows.task_record import TaskRecord

__all__ = ["ATTEMPT_VARIABLE", "DAYS_VARIABLE", "STEP_VARIABLE", "Journal", "days_kept"]

logger = logging.getLogger(__name__)

STEP_VARIABLE = "QPU_STEP"
ATTEMPT_VARIABLE = "QPU_ATTEMPT"
"""Which run of the step this is: `qpu lease exec` sets it for all that its command starts."""
DAYS_VARIABLE = "QPU_JOURNAL_DAYS"
_DAYS = 90.0
_DAY = 86400.0


class Journal:
    """All steps of one user.

    Args:
        folder: The journal's folder; in `state_folder()` when it is `None`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder() / "journal"

    def step(self, name: str) -> Step:
        """Return the step of that name."""
        return Step(self._folder_of(name), name)

    def this_step(self, environ: Mapping[str, str] = os.environ) -> Step:
        """Return the step that this process runs: `$QPU_STEP`, its Slurm job, or just itself.

        A job that Slurm requeues runs the same commands again: the n-th run of a command finds the
        tasks of the n-th run before, while a command that a job runs twice on purpose is two steps.

        Raises:
            JournalError: The journal could not be written.
        """
        if named := environ.get(STEP_VARIABLE):
            attempt = environ.get(ATTEMPT_VARIABLE, "")
            return Step(self._folder_of(named), named, attempt=attempt)
        job = environ.get("SLURM_JOB_ID")
        if job is None:
            name = f"process {uuid.uuid4()}"
            return Step(self._folder_of(name), name, named=False)
        variables = ("SLURM_CLUSTER_NAME", "SLURM_STEP_ID", "SLURM_PROCID")
        place = "/".join(environ.get(name, "") for name in variables)
        name = f"job {job} {place} {' '.join(sys.argv)}"
        restart = environ.get("SLURM_RESTART_COUNT", "0")
        return self.step(f"{name} #{self._count_run(name, attempt=restart)}")

    def close(self, step: Step) -> None:
        """Let a step's tasks go; settle one that nobody can run again, when all have ended."""
        step.close()
        if not step.named and step.done:
            try:
                self._settle(step)
            except JournalError as error:
                logger.info("%s", error)

    def settle(self, name: str) -> None:
        """Put a step's records aside: it has ended well, and running it again means afresh.

        Raises:
            JournalError: The journal could not be written.
        """
        self._settle(self.step(name))

    def records(
        self, *, settled: bool = False, unread: Callable[[JournalError], None] | None = None
    ) -> Iterator[TaskRecord]:
        """Read the records of all open steps, or of all settled ones.

        Args:
            settled: Those of settled steps, instead.
            unread: Called with the error of each that cannot be read; else it is raised.

        Raises:
            JournalError: One of them could not be read.
        """
        for folder in sorted((self.folder / ("settled" if settled else "open")).glob("*/*")):
            yield from read_records(folder, unread)

    def prune(self, *, older_than_days: float, open_too: bool = False) -> int:
        """Forget settled steps that have not changed for so long.

        Args:
            older_than_days: For how long.
            open_too: Forget open steps as well that nobody runs: what they have paid for is lost.

        Returns:
            How many tasks were forgotten.
        """
        limit = max(0.0, time.time() - older_than_days * _DAY)  # for ever is a time, too
        tasks = sum(forget(folder) for folder in self._settled_before(limit))
        if not open_too:
            return tasks
        for markers in self.folder.glob("jobs/*"):
            if _changed(markers) <= limit:
                forget(markers)
        return tasks + sum(
            self._forget_unused(Step(folder, ""))
            for folder in self.folder.glob("open/*/*")
            if _changed(folder) <= limit
        )

    def forget(self, name: str) -> int:
        """Forget an open step, whatever its state: its next run submits everything anew.

        Returns:
            How many tasks were forgotten.
        """
        return forget(self.step(name).folder)

    def _folder_of(self, name: str) -> Path:
        key = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        return self.folder / "open" / key[:2] / key

    def _count_run(self, name: str, *, attempt: str) -> int:
        """Return which run of that name this is, from 0 on, within one attempt of its job."""
        folder = self.folder / "jobs" / hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        with unusable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count():
                with suppress(FileExistsError), (folder / f"{attempt}-{number}").open("x"):
                    return number
        raise AssertionError("counted to the end")

    def _settle(self, step: Step) -> None:
        step.settle(self.folder / "settled")
        with suppress(OSError):
            self._prune_daily()

    def _prune_daily(self) -> None:
        """Forget, at most once a day, what is older than the site or the user wants to keep."""
        looked = self.folder / "pruned"
        if abs(time.time() - _changed(looked, absent=0.0)) < _DAY:  # a clock may have been set
            return
        looked.touch()
        try:
            self.prune(older_than_days=days_kept(), open_too=True)
        except (ConfigError, JournalError) as error:
            logger.warning("old records of tasks are not forgotten: %s", error)

    def _settled_before(self, limit: float) -> Iterator[Path]:
        for day in self.folder.glob("settled/????-??-??"):
            # It may be none of ours, be gone by now, or still hold what is younger.
            with suppress(ValueError, OSError):
                if date.fromisoformat(day.name) <= date.fromtimestamp(limit + _DAY):
                    yield from (folder for folder in day.iterdir() if _changed(folder) <= limit)
                    day.rmdir()

    def _forget_unused(self, step: Step) -> int:
        with unusable(step.folder), locked(step.folder / ".lock"):
            return 0 if step.is_running() else forget(step.folder)


def days_kept(environ: Mapping[str, str] = os.environ) -> float:
    """Return for how many days the journal keeps what does not change: `$QPU_JOURNAL_DAYS`, or 90.

    Raises:
        ConfigError: The variable is no number from 0 on.
    """
    value = environ.get(DAYS_VARIABLE) or _DAYS
    with suppress(ValueError):
        if (days := float(value)) >= 0:
            return days
    raise ConfigError(f"${DAYS_VARIABLE} = {value!r}; allowed is a number from 0 on. Correct it.")


def _changed(path: Path, absent: float = float("inf")) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return absent
