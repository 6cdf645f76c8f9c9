"""Prepare a job's files as Snakemake does, then run the job's command.

A program of its own, which the batch script of a plain shell job runs by its path, before the job
has a lease. It imports no package, so it starts within milliseconds. A requeued job runs it again,
and so does the job of a rerun that had to wait for the one of a killed Snakemake: only the job
itself knows when its outputs may be removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["main", "prepare_job"]

_TMPDIR_VARIABLES = ("TMPDIR", "TMP", "TEMPDIR", "TEMP")  # as `snakemake.shell` sets them


class JobStartError(Exception):
    """The job cannot start; the message is for the job's log."""


def main(argv: list[str]) -> None:
    """Prepare the job that a JSON file describes, then become the command: `FILE COMMAND…`."""
    try:
        job = json.loads(Path(argv[1]).read_text(encoding="ascii"))
        variables = prepare_job(job)
    except (JobStartError, OSError, ValueError, KeyError) as error:
        sys.exit(f"The job cannot start: {error}")
    os.execvpe(argv[2], argv[2:], {**os.environ, **variables})  # noqa: S606 - no shell is the point


def prepare_job(job: Mapping[str, Any]) -> dict[str, str]:
    """Prepare a job's files, and return the variables that its command needs.

    Does what `Job.prepare` of snakemake 9.27.1 does for the rules that `plain_shell` accepts.

    Args:
        job: The description that `plain_shell.describe_job` returns.

    Raises:
        JobStartError: An output is write-protected, or an input is missing.
        OSError: A file or folder could not be removed or created.
    """
    folder = Path(job["folder"])

    def paths(key: str) -> list[Path]:
        return [folder / name for name in job[key]]

    outputs, logs, directories = paths("outputs"), paths("logs"), frozenset(paths("directories"))
    _refuse_protected(job["rule"], outputs)
    for path in (*outputs, *logs):
        _remove(path, is_directory=path in directories)
    variables = dict(job["variables"]) | _tmpdir_variables(job)
    for path in (*outputs, *logs):
        path.parent.mkdir(parents=True, exist_ok=True)
    _wait_for(job["rule"], paths("inputs"), job["latency_wait"])
    return variables


def _refuse_protected(rule: str, outputs: Iterable[Path]) -> None:
    for path in outputs:
        if path.exists() and not os.access(path, os.W_OK) and not path.is_symlink():
            raise JobStartError(
                f"rule {rule!r}: output {path} is write-protected. Remove it, or make it writable "
                "(`chmod -R u+w`), to let the rule create it again."
            )


def _remove(path: Path, *, is_directory: bool) -> None:
    if str(path) == os.devnull:
        return
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif is_directory:
        shutil.rmtree(path)
    else:
        with suppress(OSError):  # a folder that is not empty stays, as under Snakemake
            os.removedirs(path)


def _tmpdir_variables(job: Mapping[str, Any]) -> dict[str, str]:
    tmpdir = tempfile.gettempdir() if job["uses_system_tmpdir"] else job["tmpdir"]
    if not tmpdir:
        return {}
    Path(job["folder"], tmpdir).mkdir(parents=True, exist_ok=True)
    return dict.fromkeys(_TMPDIR_VARIABLES, tmpdir)


def _wait_for(rule: str, inputs: list[Path], seconds: float) -> None:
    # A file system may show this node a file seconds after another one has written it.
    deadline = time.monotonic() + seconds
    while missing := [str(path) for path in inputs if not path.exists()]:
        if time.monotonic() >= deadline:
            raise JobStartError(
                f"rule {rule!r}: these inputs were still missing after {seconds:g} s: "
                f"{', '.join(missing)}. If the file system is slow to show them on this node, "
                "raise --latency-wait."
            )
        time.sleep(min(1.0, max(seconds / 10, 0.05)))


if __name__ == "__main__":
    main(sys.argv)
