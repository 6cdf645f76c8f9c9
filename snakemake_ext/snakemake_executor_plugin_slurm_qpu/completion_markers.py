"""Completion markers: files that jobs write when their command has ended.

A marker decides *when* Slurm is asked about a job; Slurm's answer decides how the job ended. So a
marker that cannot be seen (no shared file system, a full disk) costs only time: the job is then
checked on the stock executor's schedule. Only where Slurm has forgotten the job does the exit
status in its marker decide.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic

__all__ = ["POLL_SECONDS", "CompletionMarkers", "render_marker_suffix"]

POLL_SECONDS = 0.1
"""Seconds between two scans of the folder. Each costs one `scandir`, and no query to Slurm."""

_FIRST_PAUSE = 0.2
"""Seconds from a marker to the first check: slurmctld needs them to notice a batch script's end."""

_LONGEST_FIRST_PAUSE = 0.8
"""Limit of the first pause, which doubles for all later jobs when it was too short for one."""

_LONGEST_PAUSE = 30.0
"""Limit of the pause, which doubles while Slurm reports the job as running (a long epilog)."""

_MAX_HOLD = 10.0
"""Seconds after which a job is checked even if the workflow cannot go on with the answer."""


class CompletionMarkers:
    """The markers of one run's jobs, in a folder of their own.

    Args:
        parent: Where the folder is created, when the first job is submitted.
    """

    # Threads that submit jobs use `folder` and `expect`; the one that checks jobs uses the rest.
    # The dictionaries need no lock: `expect` is a single assignment, which is atomic, and the loop
    # over `_expected` runs over a copy.

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self._folder_lock = threading.Lock()
        self._expected: dict[str, str] = {}
        self._check_at: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._first_pause = _FIRST_PAUSE

    @property
    def folder(self) -> Path:
        """The folder, created on first use; it must be visible on all nodes."""
        with self._folder_lock:  # the first two jobs are submitted at the same time
            if self._folder is None:
                self._parent.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(dir=self._parent.resolve()))
            return self._folder

    def expect(self, job_id: str, marker: str | None = None) -> None:
        """Look for a job's marker from now on.

        Args:
            job_id: The Slurm job's id.
            marker: The marker's name; the job's id if `None`.
        """
        self._expected[job_id] = marker or job_id

    def discard(self, job_id: str) -> None:
        """Remove the marker of a job whose outcome is known."""
        if marker := self._expected.pop(job_id, None):
            self._check_at.pop(job_id, None)
            self._pause.pop(job_id, None)
            with suppress(OSError):
                (self.folder / marker).unlink()

    def back_off(self, job_id: str) -> None:
        """Double the pause before the next check of a job that Slurm reports as not ended."""
        if job_id in self._check_at:
            # On a busy machine slurmctld is slow for every job, not only for this one.
            if self._pause[job_id] == self._first_pause:
                self._first_pause = min(2 * self._first_pause, _LONGEST_FIRST_PAUSE)
            pause = min(2 * self._pause[job_id], _LONGEST_PAUSE)
            self._pause[job_id], self._check_at[job_id] = pause, monotonic() + pause

    def jobs_to_check(self) -> frozenset[str]:
        """Return the jobs that have left a marker and whose pause is over."""
        if not self._expected:
            return frozenset()
        now, found = monotonic(), self._list_folder()
        for job_id, marker in list(self._expected.items()):
            if marker in found and job_id not in self._check_at:
                self._pause[job_id] = self._first_pause
                self._check_at[job_id] = now + self._first_pause
        return frozenset(job_id for job_id, check_at in self._check_at.items() if now >= check_at)

    def _list_folder(self) -> set[str]:
        try:
            return {entry.name for entry in self.folder.iterdir()}
        except OSError:
            return set()  # the stock schedule applies

    def is_check_overdue(self) -> bool:
        """Return whether the check of a job with a marker has been held back for too long."""
        return any(monotonic() >= check_at + _MAX_HOLD for check_at in self._check_at.values())

    def exit_status(self, job_id: str) -> str | None:
        """Return the exit status that a job's marker holds.

        Empty if it cannot be read; `None` if `jobs_to_check` has not seen a marker of the job.
        """
        if job_id not in self._check_at:
            return None
        try:
            return (self.folder / self._expected[job_id]).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def close(self) -> None:
        """Remove the folder, unless jobs may still write to it."""
        if not self._expected and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def render_marker_suffix(marker: Path) -> str:
    """Render what leaves a marker after a command, as `COMMAND && SUFFIX` for a POSIX shell.

    The exit status stays that of the command, whether or not the marker can be written; a failure
    becomes 1.
    """
    # Without `$`: the stock executor puts the text between double quotes of a shell.
    # `COMMAND && A || B`: B runs if COMMAND fails, because A never does.
    path, part = shlex.quote(str(marker)), shlex.quote(f"{marker}.part")
    good, bad = (f"echo {status} > {part} && mv {part} {path}" for status in (0, 1))
    return f"{{ {good} || :; }} 2>/dev/null || {{ {{ {bad}; }} 2>/dev/null; exit 1; }}"
