"""Files that a job reads when it runs: its description, and a command that is too long.

They live in the run's own folder, which only the user can read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm_qpu import job_start

__all__ = ["JobFiles"]

# Linux refuses an argument of more than 128 KiB (execve(2), MAX_ARG_STRLEN). Snakemake writes
# commands of more than half of that into a script (`shell.MAX_ARG_LEN` in 9.27.1).
_MAX_ARGUMENT_BYTES = 64 * 1024


class JobFiles:
    """The files of one attempt at a job.

    Args:
        run: The run's folder.
        name: A name that no other attempt in this run has.
    """

    def __init__(self, run: Path, name: str) -> None:
        self._folder = run / "jobs"
        self._description = self._folder / f"{name}.json"
        self._script = self._folder / f"{name}.sh"

    def start_argv(self, python: Sequence[str], description: Mapping[str, Any]) -> list[str]:
        """Return the head of a command line, which prepares the job and then runs the rest.

        Args:
            python: The interpreter.
            description: What `plain_shell.describe_job` returns.
        """
        # ASCII: file names may have bytes that are not UTF-8, which JSON can escape.
        self._write(self._description, json.dumps(description).encode("ascii"), 0o600)
        # Without site-packages, which take most of an interpreter's start, and without the folder
        # of the program, in which modules of this package would hide those of Python.
        return [*python, "-I", "-S", job_start.__file__, str(self._description)]

    def shell_argv(self, shell: str, command: str, folder: str | None = None) -> list[str]:
        """Return the command line that runs a shell command of any length.

        Args:
            shell: The shell's path.
            command: The command.
            folder: Where to run it; where the job runs if `None`.
        """
        data = os.fsencode(command)
        argv = [shell, "-c", command]
        if len(data) > _MAX_ARGUMENT_BYTES:
            self._write(self._script, data + b"\n", 0o700)
            argv = [shell, str(self._script)]
        if folder is None:
            return argv
        # `exec`, so that signals reach the command itself.
        return ["/bin/bash", "-c", 'cd -- "$1" && shift && exec "$@"', "bash", folder, *argv]

    def remove(self) -> None:
        """Remove the files of a job that has ended."""
        for path in (self._description, self._script):
            path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
