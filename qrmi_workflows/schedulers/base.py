"""The interface that every scheduler implements (`Scheduler`), and the data it exchanges.

A scheduler is one file with one class, and one entry point in the group
`qrmi_workflows.schedulers`. There are three kinds of hooks: those that read a process's
environment; pure pairs of an argv builder and a parser of that command's output; and queries to the
scheduler, which have a timeout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError
from qrmi_workflows.schedulers.admission import Admission
from qrmi_workflows.schedulers.command import BRIEF_TIMEOUT, COMMAND_TIMEOUT
from qrmi_workflows.state.process import JobIdentity

__all__ = [
    "AccountQuery",
    "Examination",
    "JobAccount",
    "JobLimits",
    "JobState",
    "JobStatus",
    "JobTimes",
    "QPURequest",
    "RunningJob",
    "Scheduler",
]


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
class JobLimits:
    """What a small job of one process needs.

    Attributes:
        memory: Its memory in MB.
        time: Its time limit as the scheduler writes it (`30`, `8:00:00`); the default if `None`.
        partition: Its partition; that of the QPU, or the default, if `None`.
        account: The account that it is charged to; the default if `None`.
        requeue: Whether the scheduler may start it again if its node fails.
    """

    memory: int
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    requeue: bool = False


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
        dependency: The jobs that it waits for, in the scheduler's words; empty if none or not
            known.
    """

    state: JobState
    word: str = ""
    job_id: str = ""
    name: str = ""
    comment: str = ""
    exit_code: int | None = None
    reason: str = ""
    is_completing: bool = False
    dependency: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTimes:
    """When a job was submitted and started, for the accounts.

    Attributes:
        created: When it was submitted, in seconds since the epoch.
        started: When it started, in seconds since the epoch.
        project: The project that it was submitted for, besides its account (Slurm's WCKey).
    """

    created: float
    started: float
    project: str | None = None

    @property
    def queue_wait(self) -> float:
        """How many seconds it was pending."""
        return max(0.0, round(self.started - self.created, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What a scheduler says about itself, for `qpu doctor`.

    Attributes:
        findings: Whether it grants the QPUs as the site policy says.
        hosts: The names of the machines on which it runs jobs.
        kill_wait: The seconds between SIGTERM and SIGKILL at a job's end; `None` if not known.
    """

    findings: tuple[Finding, ...]
    hosts: frozenset[str] = frozenset()
    kill_wait: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAccount:
    """A job that has started, as the scheduler's accounting has it.

    Attributes:
        id: The job's id, as `this_job` returns it.
        cluster: Its cluster; empty if the scheduler knows only one.
        user: Its user.
        account: The account that it is charged to; empty if there is none.
        created: When it was submitted, in seconds since the epoch.
        started: When it started.
        ended: When it ended; `None` if it is running.
        state: The scheduler's own word for its state.
        elapsed: How many seconds it ran.
        qpus: How many units of each QPU of the site policy it held, by name.
    """

    id: str
    cluster: str
    user: str
    account: str
    created: float
    started: float
    ended: float | None
    state: str
    elapsed: float
    qpus: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuery:
    """Which jobs to look up in the accounting.

    Attributes:
        user: Only those of this user; those of all users if `None`.
        since: Only those that were there at this time or later, in seconds since the epoch.
        until: Only those that were there before this time.
    """

    user: str | None
    since: float | None = None
    until: float | None = None


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

    def check_together(self, requests: Sequence[QPURequest], site: SitePolicy) -> None:
        """Ask the scheduler whether one job can hold several QPUs, each of which it offers.

        Raises:
            RequestError: No job can hold all of them.
            SchedulerError: The scheduler did not answer.
        """

    def qpu_units(self, qpu: str, site: SitePolicy) -> int | None:
        """Return how many units of a QPU a job can request; `None` if the site does not count them.

        If there are several, each stands for a lane.

        Raises:
            UnknownQPUError: The site policy does not offer the QPU.
            SchedulerError: The scheduler did not answer.
        """

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        """Render the options that request the QPU and exclude other jobs from it.

        Only `schedulers.request` calls this, after it has checked the request.
        """

    def default_account(self) -> str | None:
        """Return the account that this user's jobs are charged to; `None` if it is not known."""

    def granted_qpus(
        self, site: SitePolicy, environ: Mapping[str, str], *, timeout: float = COMMAND_TIMEOUT
    ) -> Mapping[str, int] | None:
        """Return the QPUs that a process's job holds.

        Args:
            site: The site policy, which says how each QPU is granted.
            environ: The process's environment.
            timeout: Seconds that each command may take.

        Returns:
            How many units of each QPU of the policy it holds, by name, without those that it does
            not hold; `None` if the scheduler does not know the job.

        Raises:
            SchedulerError: The scheduler did not answer.
        """

    def admission(self) -> Admission | None:
        """Return how it keeps jobs of a QPU pending; `None` if it cannot."""

    # Commands, and the parsers of their output

    def name_options(self, name: str, *, stdout: Path, stderr: Path) -> list[str]:
        """Render the options that name a job and its output files, to which it appends."""

    def comment_options(self, comment: str) -> list[str]:
        """Render the options that give a job a comment, in which `parse_status` finds it again."""

    def limit_options(self, limits: JobLimits) -> list[str]:
        """Render the options of a small job of one process."""

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

    # Jobs that wait for another job

    def after_options(self, job_ids: Iterable[str]) -> list[str]:
        """Render the options of a job that starts once others have ended, in whatever state."""

    def waiting_options(self, job_id: str, after: Iterable[str] = ()) -> list[str]:
        """Render the options of a job that waits until it is released.

        The scheduler must cancel it if the job that would release it ends without success.

        Args:
            job_id: The job that releases it.
            after: Other jobs, for whose end it waits too, in whatever state they end.
        """

    def is_waiting(self, status: JobStatus, job_id: str) -> bool:
        """Return whether a listed job waits to be released by another one."""

    def release_argvs(self, listed: Mapping[str, JobStatus], job_id: str) -> list[list[str]]:
        """Build the commands that release those of the listed jobs that wait for a job.

        Their number must not grow with that of the jobs.
        """

    # Queries, each with a timeout

    def examine(self, site: SitePolicy | None, *, timeout: float = COMMAND_TIMEOUT) -> Examination:
        """Examine whether the scheduler grants the QPUs as the site policy says.

        Args:
            site: The site policy; `None` if there is none, or none that can be read.
            timeout: Seconds that each command may take.

        Raises:
            SchedulerError: The scheduler is not installed here, or did not answer.
        """

    def propose_policy(
        self, qpus: Iterable[str], *, timeout: float = COMMAND_TIMEOUT
    ) -> Mapping[str, Mapping[str, object]]:
        """Return what `site.toml` should say about each QPU that the scheduler grants.

        Args:
            qpus: The names of the QPUs that are defined; if there are none, those that it knows.
            timeout: Seconds that each command may take.

        Raises:
            ConfigError: It grants none of them.
            SchedulerError: The scheduler is not installed here, or did not answer.
        """

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

    def this_cluster(self, *, timeout: float = COMMAND_TIMEOUT) -> str | None:
        """Return the name of this host's cluster; `None` if the scheduler knows only one.

        Raises:
            SchedulerError: The scheduler did not answer.
        """

    def running_job(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> RunningJob | None:
        """Return a started job's times; `None` if the scheduler does not know the job."""

    def job_times(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> JobTimes | None:
        """Return when a started job was submitted and started; `None` if not known."""

    def job_accounts(self, query: AccountQuery, site: SitePolicy) -> list[JobAccount]:
        """Return the started jobs that held a QPU of the site, from the accounting.

        Raises:
            SchedulerError: There is no accounting, or it did not answer.
        """

    def account_members(
        self, account: str, *, timeout: float = BRIEF_TIMEOUT
    ) -> frozenset[str] | None:
        """Return the users who may charge jobs to an account, in lower case.

        `None` if that is not known, or this user is not shown all of them.
        """

    def restarts(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> int | None:
        """Return how many times a job was requeued, also one that is being ended for that.

        `None` if not known. A process of the job compares it with `JobIdentity.restart`.
        """

    def kill_wait(self, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        """Return the seconds between SIGTERM and SIGKILL at a job's end; `None` if not known."""
