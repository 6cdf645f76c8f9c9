"""The folder in which root leaves a job its leases: each user can read their own job's alone.

::

    STATE/                  root's, 0711: nobody can list it
      jobs/JOB/             root's, 0711: nobody else can add, replace or remove a file
        node                the node whose Epilog ends the job's leases
        environment         the user's, 0400: the job's variables, as a TaskProlog prints them
        refused             the user's, 0400, instead: why the job cannot start
        usage/              the user's, 0700: what the job's programs record about their tasks
      jobs/JOB.ended        root's: a run of the job has ended, and no Prolog has run since
      leases/open/          root's, 0700: the open leases, with their tokens
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrmi_workflows.errors import ConfigError

__all__ = ["JobFolder", "forget_ended_runs", "require_own_folder"]

_OPEN_TO_PASS = 0o711
_REQUEUE_SECONDS = 3600.0
_REMOVE_SECONDS = 10.0
_MOST_USAGE = 16 * 2**20  # bytes: 100,000 tasks


class JobFolder:
    """The folder of one job.

    Args:
        state: The folder of root's files.
        job_id: The job's id.

    Raises:
        ConfigError: It is not a job's id.
    """

    def __init__(self, state: Path, job_id: str) -> None:
        if not re.fullmatch(r"[0-9]+", job_id):
            raise ConfigError(f"job id {job_id!r}: must be a number. Correct it.")
        self._state = state
        self.path = state / "jobs" / job_id
        self._ended = state / "jobs" / f"{job_id}.ended"

    @property
    def usage(self) -> Path:
        """The folder of the files in which the job's programs record their tasks."""
        return self.path / "usage"

    @property
    def node(self) -> str:
        """The node whose Epilog ends the job's leases; empty if the job has none."""
        try:
            return (self.path / "node").read_text(encoding="utf-8")
        except OSError:
            return ""

    def create(self, node: str, uid: int, gid: int) -> None:
        """Create the folder; remove what an earlier run of the job has left.

        Raises:
            ConfigError: The folder of root's files belongs to somebody else.
            OSError: It could not be created.
        """
        for folder in (self._state, self.path.parent):
            folder.mkdir(mode=_OPEN_TO_PASS, parents=True, exist_ok=True)
            require_own_folder(folder)
            folder.chmod(_OPEN_TO_PASS)
        self.remove()
        self.path.mkdir()
        self.path.chmod(_OPEN_TO_PASS)
        self.usage.mkdir(mode=0o700)
        _give(self.usage, uid, gid)
        self._write("node", node, os.geteuid(), os.getegid())

    def refuse(self, reason: str, uid: int, gid: int) -> None:
        """Have the job's tasks fail, and print a reason.

        Raises:
            OSError: The reason could not be written.
        """
        lines = reason.splitlines() or [""]
        self._write("refused", "".join(f"print qpu: {line}\n" for line in lines), uid, gid)

    def publish(self, variables: Mapping[str, str], uid: int, gid: int) -> None:
        """Give the job's tasks their variables.

        Raises:
            ConfigError: A value has a line break, which Slurm cannot pass on.
            OSError: They could not be written.
        """
        for name, value in variables.items():
            if set(f"{name}{value}") & set("\n\r\0"):
                raise ConfigError(
                    f"the setting {name} has a line break, which Slurm cannot pass to a job. "
                    "Correct it in qrmi_config.json."
                )
        lines = "".join(f"export {name}={value}\n" for name, value in variables.items())
        self._write("environment", lines, uid, gid)
        (self.path / "refused").unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, with what the user has put into it."""
        with suppress(RecursionError):
            shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():  # folders nested too deeply for Python before 3.13
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    ["rm", "-rf", "--", str(self.path)],
                    timeout=_REMOVE_SECONDS,
                    capture_output=True,
                    check=False,
                )

    def end_run(self) -> None:
        """Remove the folder; until the next Prolog, no run of the job may start.

        A node tells two runs of a job apart by the second in which the first one ended. If both are
        in the same one, slurmd takes the Prolog for done (`slurm_cred_handle_reissue` of Slurm).
        """
        if self.path.exists():
            with suppress(OSError):
                self._ended.touch(mode=0o644)
        self.remove()

    def begin_run(self) -> None:
        """Let the job start: this is its Prolog."""
        with suppress(OSError):
            self._ended.unlink(missing_ok=True)

    def read_usage(self, qpu: str, uid: int) -> Iterator[dict[str, Any]]:
        """Read what the job's programs have recorded; skip what is not a record of a task.

        The file is the user's, who may have put anything in its place.
        """
        with suppress(OSError):
            folder = os.open(self.usage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                with os.fdopen(os.open(f"{qpu}.usage", flags, dir_fd=folder), "rb") as file:
                    status = os.fstat(file.fileno())
                    if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
                        return
                    text = file.read(_MOST_USAGE).decode(errors="replace")
            finally:
                os.close(folder)
            for line in text.splitlines():
                with suppress(ValueError, RecursionError):
                    if isinstance(task := json.loads(line), dict):
                        yield task

    def _write(self, name: str, text: str, uid: int, gid: int) -> None:
        temporary = self.path / f".{uuid.uuid4().hex}"
        # Closed to others before it has any content.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        _give(temporary, uid, gid)
        temporary.rename(self.path / name)


def forget_ended_runs(state: Path) -> None:
    """Remove what says that runs of jobs have ended, except for the last hour."""
    limit = time.time() - _REQUEUE_SECONDS
    for path in (state / "jobs").glob("*.ended"):
        with suppress(OSError):
            if path.lstat().st_mtime < limit:
                path.unlink()


def require_own_folder(folder: Path) -> None:
    """Refuse a folder that another user owns or may write to.

    Raises:
        ConfigError: It is one.
        OSError: It does not exist.
    """
    status = folder.lstat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_own or status.st_mode & 0o022:
        raise ConfigError(
            f"{folder}: must be a folder that belongs to {_name(os.geteuid())}, and that nobody "
            "else may write to. Correct its owner and mode, or move it away."
        )


def _name(uid: int) -> str:
    return "root" if uid == 0 else f"user {uid}"


def _give(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:  # a personal cluster runs its jobs as its own user
        os.chown(path, uid, gid, follow_symlinks=False)
