"""What all schedulers share: the request for a QPU, the hooks of one, the function that runs it.

A scheduler is a file with pure pairs of hooks: an argv builder and a parser for each operation.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from qrmi_workflows.config import SitePolicy
from qrmi_workflows.errors import RequestError, SchedulerError

__all__ = [
    "COMMAND_TIMEOUT",
    "Completed",
    "JobState",
    "QPURequest",
    "Scheduler",
    "require_success",
    "run_command",
]

COMMAND_TIMEOUT = 30.0
"""Seconds that a scheduler's command may take: slurmctld's own message timeout is 10 s, and its
clients ask three times."""


class JobState(StrEnum):
    """A job's state, whatever the scheduler calls it."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    HELD = "held"
    UNKNOWN = "unknown"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        ended = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT)
        return self in ended

    @property
    def has_processes(self) -> bool:
        """Whether processes of the job may be alive; one that waits again has none left."""
        return not self.final and self is not JobState.PENDING


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


class Scheduler(Protocol):
    """One scheduler's hooks; every `…_argv` has the parser that reads what it prints."""

    def check_offered(self, request: QPURequest, site: SitePolicy) -> None:
        """Ask the scheduler whether it offers the QPU.

        Raises:
            UnknownQPUError: The site policy, or the scheduler, does not have it.
            SchedulerError: The scheduler does not answer.
        """

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        """Render the options that ask for the QPU, as the site grants it."""

    def directive(self, option: str) -> str:
        """Render an option as a line of a job script (`#SBATCH --gres=…`)."""

    def submit_argv(self, script: Path) -> list[str]:
        """Build the command that submits a script."""

    def parse_job_id(self, output: str) -> str | None:
        """Read the job's id from what the submission printed."""

    def status_argv(self) -> list[str]:
        """Build the command that lists this user's jobs, the recently ended ones included."""

    def parse_status(self, output: str) -> dict[str, tuple[JobState, str]]:
        """Read each listed job's state and name, by its id."""

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        """Build the command that asks the accounting for jobs that are listed no more."""

    def cancel_argv(self, job_ids: Iterable[str]) -> list[str]:
        """Build the command that cancels jobs."""


def require_success(done: Completed) -> Completed:
    """Return what a command left, when it succeeded.

    Raises:
        SchedulerError: It did not, with what it printed.
    """
    if done.returncode == 0:
        return done
    said = done.stderr.strip() or done.stdout.strip() or "nothing printed"
    raise SchedulerError(
        f"`{' '.join(done.argv[:2])}` failed with exit status {done.returncode}: {said}",
        done.argv,
        done.returncode,
        done.stderr,
    )


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
