"""Run schedulers' commands: an argv list, a timeout, never a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qrmi_workflows.errors import SchedulerError

__all__ = ["BRIEF_TIMEOUT", "COMMAND_TIMEOUT", "Completed", "require_success", "run_command"]

COMMAND_TIMEOUT = 30.0
"""Seconds: Slurm's clients retry three times, with a message timeout of 10 s (slurm.conf(5))."""

_QUERIES = frozenset(("squeue", "sacct", "sinfo", "scontrol"))

BRIEF_TIMEOUT = 2.0
"""Seconds for a query whose answer is only nice to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A completed command: its exit status and its output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def run_command(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = COMMAND_TIMEOUT,
    environ: Mapping[str, str] | None = None,
) -> Completed:
    """Run a scheduler's command to its end, without a shell.

    Args:
        argv: The command and its arguments.
        stdin: Its standard input; empty if `None`.
        timeout: Seconds after which it is killed.
        environ: Its environment; this process's if `None`.

    Raises:
        SchedulerError: The command is not installed, or did not end in time.
    """
    command = tuple(argv)
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=_without_preferences(command[0], environ),
            check=False,
        )
    except FileNotFoundError as error:
        raise SchedulerError(
            f"command {command[0]!r} not found on PATH. Install the scheduler's client, or run "
            "inside `qpu sandbox shell`.",
            command,
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(
            f"`{command[0]}` did not end within {timeout:g} s. Check the scheduler's state and try "
            "again.",
            command,
            retryable=True,
        ) from error
    return Completed(
        argv=command, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr
    )


def _without_preferences(name: str, environ: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return an environment in which a query prints what its arguments say.

    With `SQUEUE_PARTITION`, for example, squeue would list no jobs of other partitions, which would
    then be taken for ended. Times are seconds since the epoch, see `slurm_times`.
    """
    if name not in _QUERIES:
        return environ  # a job may inherit the environment of its submission
    prefix, source = f"{name.upper()}_", os.environ if environ is None else environ
    kept = {key: value for key, value in source.items() if not key.startswith(prefix)}
    return kept | {"SLURM_TIME_FORMAT": "%s"}


def require_success(done: Completed) -> Completed:
    """Return a completed command; raise if it failed.

    Raises:
        SchedulerError: Its exit status is not 0; the message quotes its output.
    """
    if done.returncode == 0:
        return done
    output = done.stderr.strip() or done.stdout.strip() or "no output"
    raise SchedulerError(
        f"`{' '.join(done.argv[:2])}` failed with exit status {done.returncode}: {output}",
        done.argv,
        done.returncode,
        done.stderr,
    )
