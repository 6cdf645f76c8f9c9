"""The interface that every scheduler implements (`Scheduler`), and the data it exchanges.

A scheduler is one file with one class, and one entry point in the group
`qrmi_workflows.schedulers`. There are three kinds of hooks: those that read a process's
environment; pure pairs of an argv builder and a parser of that command's output; and queries to the
scheduler, which have a timeout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.command import BRIEF_TIMEOUT, COMMAND_TIMEOUT
from qrmi_workflows.state.process import JobIdentity

__all__ = ["JobState", "JobStatus", "QPURequest", "RunningJob", "Scheduler"]


class JobState(StrEnum):
    """A job's state, under any scheduler.

    A held job waits for somebody to release it, and a suspended one has been stopped while it ran.
    """

    PENDING = "pending"
    HELD = "held"
    RUNNING = "running"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        ended = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT)
        return self in ended

    @property
    def may_have_processes(self) -> bool:
        """Whether processes of the job may be alive; a pending, held or requeued job has none."""
        return not self.is_final and self not in (JobState.PENDING, JobState.HELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class QPURequest:
    """A step's request for a QPU.

    Attributes:
        qpu: The QPU's name.
        count: The number of the scheduler's units of the QPU, at least 1.
    """

    qpu: str
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse a count that no scheduler could grant."""
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise RequestError(
                f"qpu={self.count!r} for QPU {self.qpu!r}: must be a positive integer. Ask for "
                "qpu=1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job as its scheduler lists it.

    Attributes:
        state: Its state.
        word: The scheduler's own word for the state (`OUT_OF_MEMORY`), for messages.
        job_id: The id that the job's own processes see. Slurm lists a task of a job array under a
            different one (`17_3`).
        name: Its name.
        comment: Its comment; empty if it has none.
        exit_code: Its exit code, 128 + N if signal N ended it; `None` if not known.
        reason: Why it is pending (`Resources`), or why it ended; empty if not known.
        is_completing: Whether its commands have ended, so that the exit code is final, but some
            process or the site's epilog still runs.
    """

    state: JobState
    word: str = ""
    job_id: str = ""
    name: str = ""
    comment: str = ""
    exit_code: int | None = None
    reason: str = ""
    is_completing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job that has started.

    Attributes:
        is_ending: Whether the scheduler is ending it.
        used: Seconds that it has been running.
        left: Seconds until its time limit; `None` if it has no limit.
    """

    is_ending: bool
    used: int
    left: int | None


class Scheduler(Protocol):
    """One scheduler's hooks."""

    @property
    def name(self) -> str:
        """Its name in a site policy (`slurm`)."""

    @property
    def request_options(self) -> tuple[str, ...]:
        """The options that a request for a QPU sets, and that users must not set (`gres`)."""

    # The environment of a job's processes

    def this_job(self, environ: Mapping[str, str]) -> JobIdentity | None:
        """Return the job that a process with this environment runs in."""

    # Requests for a QPU

    def check_offered(self, request: QPURequest, site: SitePolicy) -> None:
        """Ask the scheduler whether it offers the QPU.

        Raises:
            UnknownQPUError: The site policy does not offer it.
            RequestError: The scheduler does not offer it, or fewer units of it than requested.
            SchedulerError: The scheduler did not answer.
        """

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        """Render the options that request the QPU and exclude other jobs from it."""

    def granted_qpus(
        self, site: SitePolicy, environ: Mapping[str, str], *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        """Return the QPUs that a process's job holds.

        Args:
            site: The site policy, which says how each QPU is granted.
            environ: The process's environment.
            timeout: Seconds that each command may take.

        Returns:
            Their names, of QPUs of the policy; `None` if the scheduler does not know the job.

        Raises:
            SchedulerError: The scheduler did not answer.
        """

    # Commands, and the parsers of their output

    def name_options(self, name: str, *, stdout: Path, stderr: Path) -> list[str]:
        """Render the options that name a job and its output files."""

    def directive(self, option: str) -> str:
        """Render an option as a line of a job script (`#SBATCH --gres=…`)."""

    def submit_argv(self, script: Path) -> list[str]:
        """Build the command that submits a script."""

    def parse_job_id(self, output: str) -> str | None:
        """Parse the job's id from the output of the submission; `None` if it has none."""

    def status_argv(self, *, name: str | None = None) -> list[str]:
        """Build the command that lists this user's jobs, recently ended ones included.

        Args:
            name: List only jobs of this name.
        """

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Parse the listed jobs, keyed by the id under which the scheduler lists each.

        A job that the scheduler no longer knows is not among them.
        """

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        """Build the command that looks up jobs in the accounting; `None` without accounting."""

    def cancel_argv(self, job_ids: Iterable[str]) -> list[str]:
        """Build the command that cancels jobs."""

    # Queries, each with a timeout

    def live_jobs(
        self, cluster: str | None = None, *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        """Return the ids of this user's jobs that may have processes.

        Args:
            cluster: The cluster to ask; this host's own if `None`.
            timeout: Seconds that each command may take.

        Returns:
            The ids, as `this_job` returns them; `None` if the scheduler is not installed here.

        Raises:
            SchedulerError: The scheduler did not answer, or knows no such cluster.
        """

    def running_job(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> RunningJob | None:
        """Return a started job's times; `None` if the scheduler does not know the job."""

    def queue_wait(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        """Return for how many seconds a started job was pending; `None` if not known."""

    def kill_wait(self, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        """Return the seconds between SIGTERM and SIGKILL at a job's end; `None` if not known."""
