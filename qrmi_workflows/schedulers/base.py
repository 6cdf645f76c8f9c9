"""What all schedulers share: the request for a QPU, and the one function that runs a command."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qrmi_workflows.errors import RequestError, SchedulerError

__all__ = ["COMMAND_TIMEOUT", "Completed", "QPURequest", "run_command"]

COMMAND_TIMEOUT = 30.0
"""Seconds that a scheduler's command may take: slurmctld's own message timeout is 10 s, and its
clients ask three times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QPURequest:
    """A step's request for a QPU, as the engines understand it.

    Attributes:
        qpu: The QPU's name.
        count: How many of the scheduler's units of it, at least 1.
    """

    qpu: str
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse a count that no scheduler could grant."""
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise RequestError(
                f"qpu={self.count!r} for QPU {self.qpu!r}: allowed is a whole number from 1 on. "
                "Ask for qpu=1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a scheduler's command left: its exit status and its output."""

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
        stdin: What it reads; nothing when it is `None`.
        timeout: Seconds after which it is killed.
        environ: Its environment; this process's when it is `None`.

    Raises:
        SchedulerError: It is not installed, or did not end in time.
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
            env=environ,
            check=False,
        )
    except FileNotFoundError as error:
        raise SchedulerError(
            f"the command {command[0]!r} is not on PATH. Install the scheduler's client, or run "
            "inside `qpu sandbox shell`.",
            command,
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(
            f"`{command[0]}` did not end within {timeout:g} s. Look at the scheduler's state and "
            "try again.",
            command,
            retryable=True,
        ) from error
    return Completed(
        argv=command, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr
    )
