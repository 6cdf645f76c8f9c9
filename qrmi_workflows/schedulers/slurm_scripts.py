"""Slurm's Prolog and Epilog: what their environment says, and what they ask and tell Slurm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import make_grants
from qrmi_workflows.schedulers.slurm_grants import GrantedJob, ask_grants

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import JobTimes

__all__ = [
    "ScriptJob",
    "all_job_times",
    "ask_granted",
    "cancel_job",
    "first_node",
    "live_jobs",
    "parse_all_job_times",
    "parse_live_jobs",
    "report_failure",
]

_SEPARATOR = "\x1f"
_ENDED_OR_WAITING = frozenset(
    (
        *("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
        *("REVOKED", "COMPLETED", "CANCELLED", "FAILED", "BOOT_FAIL", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "DEADLINE", "PREEMPTED", "TIMEOUT"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptJob:
    """The job for which Slurm runs a Prolog or an Epilog.

    Attributes:
        id: The job's id.
        uid: The id of its user.
        gid: The id of the user's group.
        user: The user's name.
        account: The account that it is charged to, if Slurm says so.
        cluster: The cluster's name.
        restart: How many times it has been requeued.
        node: The node that the script runs on.
        nodes: The job's nodes, as Slurm writes lists of nodes.
        licences: Its licences, as Slurm writes them; `None` if it has none, or if this Slurm does
            not say (22.05).
        limit: Its time limit in seconds, if this Slurm says so.
        plugin_qpus: The QPUs that it requests by `--qpu`, the option of QRMI's SPANK plugin.
    """

    id: str
    uid: int
    gid: int
    user: str
    account: str | None
    cluster: str | None
    restart: int
    node: str
    nodes: str
    licences: str | None
    limit: int | None
    plugin_qpus: frozenset[str]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ScriptJob | None:
        """Read the environment of a Prolog or an Epilog; `None` if it is of neither."""
        ids = [environ.get(f"SLURM_JOB_{name}", "") for name in ("ID", "UID")]
        if not all(re.fullmatch(r"[0-9]+", each) for each in ids):
            return None
        gid = environ.get("SLURM_JOB_GID", "")
        restart = environ.get("SLURM_JOB_RESTART_COUNT", "")
        return cls(
            id=ids[0],
            uid=int(ids[1]),
            gid=int(gid) if gid.isdecimal() else -1,
            user=environ.get("SLURM_JOB_USER", ""),
            account=environ.get("SLURM_JOB_ACCOUNT") or None,
            cluster=environ.get("SLURM_CLUSTER_NAME"),
            restart=int(restart) if restart.isdecimal() else 0,
            node=environ.get("SLURMD_NODENAME", ""),
            nodes=environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST", ""),
            licences=environ.get("SLURM_JOB_LICENSES"),
            limit=_limit(environ),
            plugin_qpus=_plugin_qpus(environ),
        )

    @property
    def is_on_first_node(self) -> bool:
        """Whether this is the node on which the job's QPUs are acquired: once for each job."""
        return not self.nodes or first_node(self.nodes) == self.node

    def variables(self) -> dict[str, str]:
        """Return the variables by which this process's job is found to be this one."""
        found = {"SLURM_JOB_ID": self.id, "SLURM_RESTART_COUNT": str(self.restart)}
        return found | ({"SLURM_CLUSTER_NAME": self.cluster} if self.cluster else {})


def _limit(environ: Mapping[str, str]) -> int | None:
    started, ends = (environ.get(f"SLURM_JOB_{name}_TIME", "") for name in ("START", "END"))
    return int(ends) - int(started) if started.isdecimal() and ends.isdecimal() else None


def _plugin_qpus(environ: Mapping[str, str]) -> frozenset[str]:
    # Slurm passes options of SPANK plugins to a Prolog like this (`_opt_env_name` in spank.c).
    option = re.compile(r"SPANK__SLURM_SPANK_OPTION_\w+_qpu")
    values = [value for name, value in environ.items() if option.fullmatch(name)]
    return frozenset(name.strip() for value in values for name in value.split(",") if name.strip())


def first_node(nodes: str) -> str:
    """Return the first of a list of nodes: `n1` for `n[1-4,7],m1`."""
    head = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    return "" if head is None else "".join(part or "" for part in head.groups())


def ask_granted(job: ScriptJob, policies: Iterable[QPUPolicy], *, timeout: float) -> GrantedJob:
    """Find out what a job was granted.

    From Slurm 25.05 on, the environment names its licences. That is enough for a site policy
    without GRES; otherwise Slurm is asked.

    Raises:
        SchedulerError: Slurm does not answer, or does not know the job.
    """
    qpus = list(policies)
    is_told = job.licences is not None and qpus and not any(each.gres for each in qpus)
    if is_told and not job.plugin_qpus:
        # Of alternatives (`a|b`), only one was allocated.
        licences = [] if "|" in (job.licences or "") else [job.licences or ""]
        grants = make_grants([], licences)
        return GrantedJob(grants=grants, is_batch=False, limit=job.limit, account=job.account)
    granted = ask_grants(job.id, qpus, timeout=timeout, is_certain=True)
    if granted is None:
        raise SchedulerError(f"`squeue` does not list job {job.id}. Check slurmctld's state.")
    return granted


def cancel_job(job_id: str, *, timeout: float) -> None:
    """Cancel a job.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    require_success(run_command(["scancel", "--quiet", job_id], timeout=timeout))


def report_failure(job_id: str, reason: str, *, timeout: float) -> None:
    """Write a reason into the job's record (`AdminComment`), where `scontrol show job` shows it.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    comment = re.sub(r"\s+", " ", reason)[:500]
    argv = ["scontrol", "update", f"JobId={job_id}", f"AdminComment={comment}"]
    require_success(run_command(argv, timeout=timeout))


def live_jobs(*, timeout: float) -> set[str]:
    """Ask squeue for the jobs of all users that may have processes, or whose Prolog is running.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    argv = ["squeue", "--noheader", "--states=all", f"--Format=JobID:{_SEPARATOR},State:"]
    return parse_live_jobs(require_success(run_command(argv, timeout=timeout)).stdout)


def parse_live_jobs(squeue_output: str) -> set[str]:
    """Parse the output of squeue for `live_jobs`; a state that is not known counts as live."""
    rows = (row.split(_SEPARATOR) for row in squeue_output.splitlines() if _SEPARATOR in row)
    return {row[0].strip() for row in rows if row[1].strip() not in _ENDED_OR_WAITING}


def all_job_times(*, timeout: float) -> dict[str, JobTimes]:
    """Ask squeue when each job was submitted and started that has started.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    fields = ("JobID", "SubmitTime", "StartTime", "WCKey")
    form = f"--Format={','.join(f'{field}:{_SEPARATOR}' for field in fields)}"
    argv = ["squeue", "--noheader", "--states=all", form]
    return parse_all_job_times(require_success(run_command(argv, timeout=timeout)).stdout)


def parse_all_job_times(squeue_output: str) -> dict[str, JobTimes]:
    """Parse the output of squeue for `all_job_times`."""
    from qrmi_workflows.schedulers.slurm_accounting import parse_job_times  # no script needs it

    found = {}
    for row in squeue_output.splitlines():
        job_id, *times = (field.strip() for field in row.split(_SEPARATOR)[:4])
        with suppress(ValueError):  # it has not started
            found[job_id] = parse_job_times("|".join(times))
    return found
