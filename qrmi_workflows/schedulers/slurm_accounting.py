"""Slurm: when jobs were submitted, started and ended, and how much CPU time they used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.schedulers.base import AccountQuery, JobAccount, JobTimes
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.slurm_config import parse_duration
from qrmi_workflows.schedulers.slurm_times import parse_time, render_time

__all__ = [
    "CPUUse",
    "account_members_argv",
    "ask_job_accounts",
    "cpu_use_argv",
    "job_accounts_argv",
    "parse_account_members",
    "parse_cpu_use",
    "parse_job_accounts",
    "parse_job_times",
]

_ACCOUNTING_SECONDS = 120.0  # a site may have millions of jobs in a year

_NONE = frozenset({"", "None", "(null)"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CPUUse:
    """The CPU time of an ended job.

    Attributes:
        elapsed: How many seconds it ran.
        cpus: How many CPUs it had.
        used: How many seconds of CPU time its processes used.
    """

    elapsed: float
    cpus: int
    used: float


def parse_job_times(squeue_output: str) -> JobTimes:
    """Parse `squeue --format=%V|%S|%w`.

    Raises:
        ValueError: The job has not started, or is not listed.
    """
    submitted, started, wckey = squeue_output.strip().split("|")
    project = wckey.strip().removeprefix("*")  # Slurm marks a default key
    return JobTimes(
        created=parse_time(submitted),
        started=parse_time(started),
        project=None if project in _NONE else project,
    )


def cpu_use_argv(name: str) -> list[str]:
    """Build the sacct command that shows the CPU time of all jobs of a name.

    Not with `-X`: then sacct (22.05) shows no CPU time.
    """
    form = "--format=JobIDRaw,ElapsedRaw,NCPUS,TotalCPU"
    return ["sacct", "--noheader", "--parsable2", f"--name={name}", form]


def parse_cpu_use(sacct_output: str) -> dict[str, CPUUse]:
    """Parse the output of `cpu_use_argv`, by job; job steps are counted in their jobs."""
    found = {}
    for line in sacct_output.splitlines():
        job, _, rest = line.partition("|")
        with suppress(ValueError):
            elapsed, cpus, used = rest.split("|")
            seconds = parse_duration(used)
            if job.isdigit() and seconds is not None:
                found[job] = CPUUse(elapsed=float(elapsed), cpus=int(cpus), used=seconds)
    return found


def ask_job_accounts(query: AccountQuery, site: SitePolicy) -> list[JobAccount]:
    """Ask sacct for the jobs that held a QPU of the site.

    Raises:
        SchedulerError: There is no accounting, or it did not answer.
    """
    done = run_command(job_accounts_argv(query), timeout=_ACCOUNTING_SECONDS)
    return parse_job_accounts(require_success(done).stdout, site)


def account_members_argv(account: str) -> list[str]:
    """Build the scontrol command that shows who may charge jobs to an account."""
    shown = ["show", "assoc_mgr", f"accounts={account}", "flags=assoc"]
    return ["scontrol", "--oneliner", *shown]


def parse_account_members(scontrol_output: str, account: str) -> frozenset[str] | None:
    """Parse the output of `account_members_argv`: the users, in lower case.

    The account's own line has no user. Users who are shown only their own lines
    (`PrivateData=usage`) do not see it: then, and without accounting, the members are not known.
    """
    users: set[str] = set()
    for match in re.finditer(
        r"^ClusterName=\S+ Account=(\S+) UserName=(?:(\S+)\(\d+\))? ", scontrol_output, re.MULTILINE
    ):
        if match[1].lower() == account.lower():
            users.add((match[2] or "").lower())
    return frozenset(users - {""}) if "" in users else None


def job_accounts_argv(query: AccountQuery) -> list[str]:
    """Build the sacct command that lists jobs with the resources that they held."""
    form = "JobIDRaw,Cluster,User,Account,Submit,Start,End,State,ElapsedRaw,AllocTRES"
    # Without a beginning, sacct lists the jobs of today.
    since = render_time(query.since) if query.since is not None else "2000-01-01"
    until = render_time(query.until) if query.until is not None else "now"
    return [
        *("sacct", "-X", "--noheader", "--parsable2", f"--format={form}"),
        "--allusers" if query.user is None else f"--user={query.user}",
        *(f"--starttime={since}", f"--endtime={until}"),
    ]


def parse_job_accounts(sacct_output: str, site: SitePolicy) -> list[JobAccount]:
    """Parse the output of `job_accounts_argv`; leave out jobs without a QPU of the site."""
    names = _names_of_tres(site)
    found = []
    for line in sacct_output.splitlines():
        with suppress(ValueError):  # a line of a site's wrapper, or a job that has not started
            job, cluster, user, account, created, started, ended, state, elapsed, tres = line.split(
                "|"
            )
            if qpus := _qpus_in(tres, names):
                found.append(
                    JobAccount(
                        id=job,
                        cluster=cluster,
                        user=user,
                        account=account,
                        created=parse_time(created),
                        started=parse_time(started),
                        ended=None if ended == "Unknown" else parse_time(ended),
                        state=state.partition(" ")[0],  # `CANCELLED by 1000`
                        elapsed=float(elapsed),
                        qpus=qpus,
                    )
                )
    return found


def _names_of_tres(site: SitePolicy) -> dict[str, str]:
    """Return the QPU of each TRES, in lower case: Slurm's database does not tell the cases apart.

    A GRES without a type does not tell QPUs apart: then the licence does, or there is only one QPU.
    """
    names: dict[str, str] = {}
    for name, qpu in site.qpus.items():
        is_distinct = qpu.gres is not None and (":" in qpu.gres or len(site.qpus) == 1)
        if is_distinct:
            names[f"gres/{qpu.gres}".lower()] = name
        if qpu.licence is not None:
            names[f"license/{qpu.licence}".lower()] = name
    return names


def _qpus_in(tres: str, names: Mapping[str, str]) -> dict[str, int]:
    units: dict[str, int] = {}
    for item in tres.split(","):
        resource, _, count = item.rpartition("=")
        name = names.get(resource.lower())
        if name is not None and count.isdigit():
            units[name] = max(units.get(name, 0), int(count))
    return units
