"""Slurm: sbatch options for a QPU request, and parsers of Slurm's commands.

Argv builders and parsers are pure; the methods under "Queries" run Slurm's commands. Supported:
Slurm 22.05 and later.

GRES are counted per node: with a GRES alone, one job on each node that lists the QPU can hold it at
the same time. Licences are counted across the cluster.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.admission import Admission
from qrmi_workflows.schedulers.base import (
    AccountQuery,
    Examination,
    JobAccount,
    JobLimits,
    JobStatus,
    JobTimes,
    QPURequest,
    RunningJob,
)
from qrmi_workflows.schedulers.command import (
    BRIEF_TIMEOUT,
    COMMAND_TIMEOUT,
    require_success,
    run_command,
)
from qrmi_workflows.schedulers.dependencies import (
    after_options,
    depends_on,
    release_argvs,
    waiting_options,
)
from qrmi_workflows.schedulers.gres import (
    offered_gres,
    require_gres,
    require_one_node,
    units_of,
)
from qrmi_workflows.schedulers.licences import offered_licences, require_licence, require_licences
from qrmi_workflows.schedulers.slurm_accounting import (
    account_members_argv,
    ask_job_accounts,
    parse_account_members,
    parse_job_times,
)
from qrmi_workflows.schedulers.slurm_config import (
    cluster_of,
    kill_wait_of,
    parse_duration,
    seconds_of,
)
from qrmi_workflows.schedulers.slurm_grants import ask_grants
from qrmi_workflows.schedulers.slurm_options import qpu_options
from qrmi_workflows.schedulers.slurm_states import state_of, word_of
from qrmi_workflows.state.process import JobIdentity
from qrmi_workflows.state.users import user_name

__all__ = [
    "Slurm",
    "parse_running_job",
]

_SEPARATOR = "\x1f"
"""ASCII's unit separator: names and comments may have bars and line breaks."""

_SQUEUE_FIELDS = (
    *("JobArrayID", "JobID", "State", "exit_code", "Reason", "Comment", "Name"),
    "Dependency",
)
_UNKNOWN_REASONS = frozenset({"", "None", "(null)"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Slurm's hooks (see `Scheduler`).

    Attributes:
        clusters: The clusters to submit to, comma-separated, at a multi-cluster site.
    """

    name: ClassVar[str] = "slurm"
    request_options: ClassVar[tuple[str, ...]] = ("gres", "licenses", "qpu")

    clusters: str | None = None

    def this_job(self, environ: Mapping[str, str]) -> JobIdentity | None:
        """Read `$SLURM_JOB_ID` and related variables."""
        job_id = environ.get("SLURM_JOB_ID")
        if not job_id:
            return None
        restart = environ.get("SLURM_RESTART_COUNT", "")
        return JobIdentity(
            id=job_id,
            cluster=environ.get("SLURM_CLUSTER_NAME"),
            restart=int(restart) if restart.isdecimal() else 0,
            job_step=environ.get("SLURM_STEP_ID", ""),
            rank=environ.get("SLURM_PROCID", ""),
            account=environ.get("SLURM_JOB_ACCOUNT") or None,
        )

    # Requests for a QPU

    def check_offered(self, request: QPURequest, site: SitePolicy) -> None:
        """Ask `sinfo` and `scontrol` whether Slurm has the QPU's GRES and licence, and enough."""
        policy = site.qpu(request.qpu)
        require_gres(request, site, offered_gres(_nodes()))
        if policy.licence:
            require_licence(request, site, _licences())

    def check_together(self, requests: Sequence[QPURequest], site: SitePolicy) -> None:
        """Ask `sinfo` for a node with the GRES of all of them, and `scontrol` for the licences."""
        require_one_node(requests, site, _nodes().splitlines())
        if any(site.qpu(request.qpu).licence for request in requests):
            require_licences(requests, site, _licences())

    def qpu_units(self, qpu: str, site: SitePolicy) -> int | None:
        """Take it from the policy, or ask `sinfo` for the largest count of the GRES on a node."""
        policy = site.qpu(qpu)
        is_counted = policy.gres and policy.exclusive is None
        return units_of(policy, offered_gres(_nodes()) if is_counted else {})

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        """Render the sbatch options that request the QPU."""
        return qpu_options(request, site.qpu(request.qpu))

    def default_account(self) -> str | None:
        """Read `$SBATCH_ACCOUNT`, or ask the accounting for the user's default account."""
        return os.environ.get("SBATCH_ACCOUNT") or _default_account(user_name())

    def granted_qpus(
        self, site: SitePolicy, environ: Mapping[str, str], *, timeout: float = COMMAND_TIMEOUT
    ) -> dict[str, int] | None:
        """Ask `squeue` which GRES and licences this process's job holds.

        The environment does not tell: Slurm 22.05 sets no variable, and a job that was submitted
        from another one inherits `$SLURM_JOB_LICENSES` from it (seen with 26.05).
        """
        qpus = site.qpus.values()
        if not any(qpu.gres or qpu.licence for qpu in qpus):
            return dict.fromkeys(site.qpus, 1)
        if not (job_id := environ.get("SLURM_JOB_ID")):
            return None
        job = ask_grants(job_id, qpus, timeout=timeout, is_certain=False)
        if job is None:
            return None
        return {qpu.name: job.grants.units(qpu) for qpu in qpus if job.grants.hold(qpu)}

    def admission(self) -> Admission:
        """Return how Slurm keeps jobs pending: by reservations and states of partitions."""
        from qrmi_workflows.schedulers.slurm_admission import SlurmAdmission  # few jobs need it

        return SlurmAdmission()

    # Commands, and the parsers of their output

    def name_options(self, name: str, *, stdout: Path, stderr: Path) -> list[str]:
        """Render `--job-name`, `--output`, `--error` and `--open-mode`."""
        files = [f"--output={stdout}", f"--error={stderr}", "--open-mode=append"]
        return [f"--job-name={name}", *files]

    def comment_options(self, comment: str) -> list[str]:
        """Render `--comment`."""
        return [f"--comment={comment}"]

    def limit_options(self, limits: JobLimits) -> list[str]:
        """Render `--ntasks`, `--mem` and the rest."""
        options = ["--ntasks=1", "--cpus-per-task=1", f"--mem={limits.memory}M"]
        options += [f"--time={limits.time}"] if limits.time else []
        options += [f"--partition={limits.partition}"] if limits.partition else []
        options += [f"--account={limits.account}"] if limits.account else []
        return [*options, "--requeue" if limits.requeue else "--no-requeue"]

    def directive(self, option: str) -> str:
        """Render `#SBATCH --gres=…`; sbatch splits such a line like a shell."""
        is_plain = not set(option) & set(" \t'\"\\#")
        return f"#SBATCH {option if is_plain else shlex.quote(option)}"

    def submit_argv(self, script: Path) -> list[str]:
        """Build `sbatch --parsable SCRIPT`."""
        return ["sbatch", "--parsable", *self._clusters(), str(script)]

    def parse_job_id(self, output: str) -> str | None:
        """Parse `17` or `17;cluster`, the last line: a site's submit plugin may print others."""
        last = output.strip().rpartition("\n")[2].partition(";")[0]
        return last if last.isdigit() else None

    def status_argv(self, *, name: str | None = None) -> list[str]:
        """Build the squeue command that lists the user's jobs in all states.

        Jobs are not listed by id, because squeue fails if it does not know one of the ids.
        """
        # With `:` and text, a field is printed whole, followed by the text (squeue(1), --Format).
        form = f"--Format={','.join(f'{field}:{_SEPARATOR}' for field in _SQUEUE_FIELDS)}"
        # Do not filter by a name with a comma: `--name` would read it as several names.
        named = [] if name is None or "," in name else [f"--name={name}"]
        return ["squeue", "--me", "--noheader", "--states=all", *named, *self._clusters(), form]

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        """Build the sacct command for these jobs, with the fields of `status_argv` that it has."""
        form = "--format=JobID,JobIDRaw,State,ExitCode,Reason,Comment,JobName"
        jobs = f"--jobs={','.join(job_ids)}"
        parsable = ("--parsable", f"--delimiter={_SEPARATOR}")
        return ["sacct", "-X", "--noheader", *parsable, *self._clusters(), form, jobs]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Parse the output of `status_argv` or `history_argv`; array tasks have ids like `17_3`."""
        rows = map(_fields, output.split(f"{_SEPARATOR}\n"))
        return {row[0]: _status(*row[1:]) for row in rows if row[1].isdigit() and row[2]}

    def cancel_argv(self, job_ids: Iterable[str]) -> list[str]:
        """Build the scancel command for these jobs: SIGTERM now, SIGKILL after KillWait."""
        return ["scancel", *self._clusters(), *job_ids]

    # Jobs that wait for another job

    def after_options(self, job_ids: Iterable[str]) -> list[str]:
        """Render `--dependency=afterany:…`."""
        return after_options(job_ids)

    def waiting_options(self, job_id: str, after: Iterable[str] = ()) -> list[str]:
        """Render `--dependency=afterok:…`; Slurm cancels the job if that cannot be met any more."""
        return waiting_options(job_id, after)

    def is_waiting(self, status: JobStatus, job_id: str) -> bool:
        """Return whether a listed job depends on the success of another one."""
        return depends_on(status, job_id)

    def release_argvs(self, listed: Mapping[str, JobStatus], job_id: str) -> list[list[str]]:
        """Build `scontrol update JobId=… Dependency=`: several jobs at a time."""
        return release_argvs(listed, job_id, options=self._clusters())

    def _clusters(self) -> list[str]:
        return [f"--clusters={self.clusters}"] if self.clusters else []

    # Queries

    def examine(self, site: SitePolicy | None, *, timeout: float = COMMAND_TIMEOUT) -> Examination:
        """Ask `scontrol` and `sacctmgr`."""
        from qrmi_workflows.schedulers.slurm_checks import examine  # no job needs these modules
        from qrmi_workflows.schedulers.slurm_facts import ask_facts

        facts = ask_facts(timeout=timeout)
        return Examination(
            findings=tuple(examine(facts, site)),
            hosts=frozenset(node.host for node in facts.nodes.values()),
            kill_wait=seconds_of(facts.config.get("KillWait", "")),
        )

    def propose_policy(
        self, qpus: Iterable[str], *, timeout: float = COMMAND_TIMEOUT
    ) -> dict[str, dict[str, object]]:
        """Take it from the GRES, licences and partitions that `scontrol` shows."""
        from qrmi_workflows.schedulers.slurm_facts import ask_facts
        from qrmi_workflows.schedulers.slurm_policy import propose_settings

        return propose_settings(ask_facts(timeout=timeout), qpus)

    def live_jobs(
        self, cluster: str | None = None, *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        """Ask squeue, on another cluster if one is named."""
        if shutil.which("squeue") is None:
            return None
        is_other = cluster is not None and cluster != self.this_cluster(timeout=timeout)
        argv = Slurm(clusters=cluster if is_other else None).status_argv()
        listed = self.parse_status(require_success(run_command(argv, timeout=timeout)).stdout)
        return {status.job_id for status in listed.values() if status.state.may_have_processes}

    def this_cluster(self, *, timeout: float = COMMAND_TIMEOUT) -> str | None:
        """Read `$SLURM_CLUSTER_NAME`, or ask `scontrol show config`."""
        if named := os.environ.get("SLURM_CLUSTER_NAME"):
            return named
        argv = ["scontrol", "show", "config"]
        return cluster_of(require_success(run_command(argv, timeout=timeout)).stdout)

    def running_job(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> RunningJob | None:
        """Ask squeue."""
        with suppress(SchedulerError):
            argv = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%A|%T|%M|%L"]
            return parse_running_job(run_command(argv, timeout=timeout).stdout, job_id)
        return None

    def job_times(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> JobTimes | None:
        """Ask squeue."""
        with suppress(SchedulerError, ValueError):
            argv = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%V|%S|%w"]
            return parse_job_times(run_command(argv, timeout=timeout).stdout)
        return None

    def job_accounts(self, query: AccountQuery, site: SitePolicy) -> list[JobAccount]:
        """Ask sacct, once for all jobs."""
        return ask_job_accounts(query, site)

    def account_members(
        self, account: str, *, timeout: float = BRIEF_TIMEOUT
    ) -> frozenset[str] | None:
        """Ask `scontrol show assoc_mgr`: compute nodes need not reach slurmdbd."""
        with suppress(SchedulerError):
            shown = require_success(run_command(account_members_argv(account), timeout=timeout))
            return parse_account_members(shown.stdout, account)
        return None

    def restarts(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> int | None:
        """Ask squeue, which counts a requeue before the job's processes get their SIGTERM."""
        with suppress(SchedulerError, ValueError):
            argv = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}"]
            return int(run_command([*argv, "--Format=RestartCnt"], timeout=timeout).stdout)
        return None

    def kill_wait(self, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        """Ask `scontrol show config`."""
        with suppress(SchedulerError):
            argv = ["scontrol", "show", "config"]
            return kill_wait_of(run_command(argv, timeout=timeout).stdout)
        return None


def parse_running_job(squeue_output: str, job_id: str) -> RunningJob | None:
    """Parse `squeue --format=%A|%T|%M|%L`; for an array's first job, squeue lists all of them."""
    for line in squeue_output.splitlines():
        listed, _, rest = line.strip().partition("|")
        if listed == job_id:
            state, *times = rest.split("|")
            used, left = (None if t is None else int(t) for t in map(parse_duration, times))
            is_ending = state == "COMPLETING" or state_of(state).is_final
            return RunningJob(is_ending=is_ending, used=used or 0, left=left)
    return None


@cache
def _default_account(user: str) -> str | None:
    shown = ("show", "user", f"name={user}", "format=DefaultAccount")
    argv = ["sacctmgr", "--noheader", "--parsable2", *shown]
    with suppress(SchedulerError):  # many sites have no accounting
        return require_success(run_command(argv, timeout=BRIEF_TIMEOUT)).stdout.strip() or None
    return None


def _nodes() -> str:
    """Return the GRES of each kind of node, one a line."""
    return require_success(run_command(["sinfo", "--noheader", "--format=%G"])).stdout


def _licences() -> Mapping[str, int]:
    argv = ["scontrol", "--oneliner", "show", "licenses"]
    return offered_licences(require_success(run_command(argv)).stdout)


def _fields(row: str) -> list[str]:
    """Split a row of squeue or sacct into its eight fields; missing ones are empty."""
    fields = [field.strip() for field in row.split(_SEPARATOR)]
    fields[0] = fields[0].rpartition("\n")[2]  # a site's wrapper may print lines of its own
    return [*fields, *[""] * 8][:8]


def _status(
    job_id: str,
    state: str,
    exit_code: str,
    reason: str,
    comment: str,
    name: str,
    dependency: str,
) -> JobStatus:
    return JobStatus(
        state=state_of(state),
        word=word_of(state),
        job_id=job_id,
        name=name,
        comment="" if comment == "(null)" else comment,
        exit_code=_exit_code(exit_code),
        reason="" if reason in _UNKNOWN_REASONS else reason,
        is_completing=state == "COMPLETING",
        dependency="" if dependency == "(null)" else dependency,
    )


def _exit_code(text: str) -> int | None:
    """Translate squeue's wait status (`768`: code 3) or sacct's `code:signal` (`3:0`)."""
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        code, signal = int(match[1]), int(match[2])
    elif text.isdigit():
        code, signal = int(text) >> 8, int(text) & 0x7F
    else:
        return None
    return 128 + signal if signal else code
