"""Completion markers: files that say that a job has ended, until Slurm has confirmed it.

A marker only decides *when* Slurm is asked; Slurm's answer decides what became of the job. A
marker that cannot be seen (no shared file system, a full disk) costs nothing: the stock schedule
asks then.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from time import monotonic

__all__ = ["POLL_SECONDS", "Markers"]

POLL_SECONDS = 0.1
"""How often the folder is looked at: one `scandir`, no scheduler."""

_FIRST_PAUSE = 0.2
"""Seconds from a marker to the question: a batch script's exit takes slurmctld that long."""

_LONGEST_FIRST_PAUSE = 0.8
"""The first pause doubles up to here, for all jobs to come, when it was too short for one."""

_LONGEST_PAUSE = 30.0
"""The pause doubles up to here while Slurm says that the job runs: a long epilog, say."""

_LONGEST_HOLD = 10.0
"""Seconds after which a job is asked about though the workflow cannot go on by the answer."""


class Markers:
    """The markers of one run's jobs, in a folder of their own.

    Args:
        parent: Where the folder is made, at the first job.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._waiting: dict[str, str] = {}
        self._ask_at: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._first_pause = _FIRST_PAUSE

    @cached_property
    def folder(self) -> Path:
        """The folder, which all nodes see."""
        self._parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._parent.resolve()))

    def expect(self, job_id: str, marker: str | None = None) -> None:
        """Look for the marker of a job from now on; it is named after the Slurm job's id."""
        self._waiting[job_id] = marker or job_id  # from the submitting threads: one atomic step

    def forget(self, job_id: str) -> None:
        """Slurm has said what became of the job: its marker is needed no more."""
        if marker := self._waiting.pop(job_id, None):
            self._ask_at.pop(job_id, None)
            self._pause.pop(job_id, None)
            with suppress(OSError):
                (self.folder / marker).unlink()

    def postpone(self, job_id: str) -> None:
        """Slurm says that the job is not over: wait twice as long before asking again."""
        if job_id in self._ask_at:
            if self._pause[job_id] == self._first_pause:
                self._first_pause = min(2 * self._first_pause, _LONGEST_FIRST_PAUSE)
            pause = min(2 * self._pause[job_id], _LONGEST_PAUSE)
            self._pause[job_id], self._ask_at[job_id] = pause, monotonic() + pause

    def due(self) -> frozenset[str]:
        """Return the jobs that have left a marker and that Slurm should be asked about by now."""
        if not self._waiting:
            return frozenset()
        now, marked = monotonic(), self._listed()
        for job_id, marker in list(self._waiting.items()):
            if marker in marked and job_id not in self._ask_at:
                self._pause[job_id] = self._first_pause
                self._ask_at[job_id] = now + self._first_pause
        return frozenset(job_id for job_id, ask_at in self._ask_at.items() if now >= ask_at)

    def _listed(self) -> set[str]:
        try:
            return {entry.name for entry in self.folder.iterdir()}
        except OSError:
            return set()  # the stock schedule asks

    def overdue(self) -> bool:
        """Whether a job's marker has waited so long that it should be asked about anyhow."""
        return any(monotonic() >= ask_at + _LONGEST_HOLD for ask_at in self._ask_at.values())

    def status(self, job_id: str) -> str:
        """Return what a job's marker holds: the exit status, or nothing."""
        try:
            return (self.folder / self._waiting[job_id]).read_text(encoding="ascii").strip()
        except (KeyError, OSError, UnicodeDecodeError):
            return ""

    def close(self) -> None:
        """Remove the folder, unless jobs are left that will write there."""
        if not self._waiting and "folder" in self.__dict__:
            shutil.rmtree(self.folder, ignore_errors=True)
