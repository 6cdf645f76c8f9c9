"""Slurm: how a request for a QPU becomes options of sbatch, and what Slurm says of jobs.

Argv builders and parsers are pure; only the functions at the end run Slurm's commands. GRES are
counted per node, so a GRES alone lets as many jobs hold one QPU as there are nodes that list it:
the licence excludes across the cluster. Supported: Slurm 22.05 and later.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from qrmi_workflows.config import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError, SchedulerError, UnknownQPUError
from qrmi_workflows.schedulers.base import (
    COMMAND_TIMEOUT,
    JobState,
    QPURequest,
    require_success,
    run_command,
)

__all__ = [
    "Slurm",
    "check_offered",
    "cluster_of",
    "gres_of_job",
    "kill_wait_of",
    "live_jobs",
    "offered_gres",
    "qpu_options",
    "queue_wait",
    "refuse_options",
    "require_count",
    "require_gres",
    "units_of",
]


def qpu_options(request: QPURequest, policy: QPUPolicy) -> list[str]:
    """Render the sbatch options that ask for a QPU, as the site grants it.

    Returns:
        Whole options, one a string: `["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]`.
    """
    options = []
    if policy.partition:
        options.append(f"--partition={policy.partition}")
    if policy.gres:
        options.append(f"--gres={policy.gres}:{request.count}")
    if policy.licence:
        options.append(f"--licenses={policy.licence}:{request.count}")
    if policy.qpu_option:
        options.append(f"--qpu={request.qpu}")
    return options


def refuse_options(options: str, names: Iterable[str], *, where: str) -> None:
    """Refuse sbatch options that a request for a QPU sets itself: Slurm lets the last one win.

    Raises:
        RequestError: One of them is there.
    """
    for name in names:
        if re.search(rf"(?:^|\s)--{name}(?:[=\s]|$)", options):
            raise RequestError(
                f"{where}: --{name} is set by the request for a QPU and would override it. "
                f"Remove --{name}."
            )


def offered_gres(sinfo_output: str) -> dict[str, int]:
    """Parse `sinfo --noheader --format=%G`: the GRES of all nodes, and the most that one has.

    `qpu:ibm_fez:1(S:0),gpu:2` gives `{"qpu:ibm_fez": 1, "gpu": 2}`.
    """
    found: dict[str, int] = {}
    for entry in re.split(r"[,\s]+", re.sub(r"\([^)]*\)", "", sinfo_output)):
        name, _, count = entry.rpartition(":")
        if not count[:1].isdigit():
            name, count = entry, "1"
        # A count may end in K, M, …: then it is no count of QPUs, and one is as good as many.
        found[name] = max(found.get(name, 0), int(count) if count.isdigit() else 1)
    found.pop("", None)
    return found


def require_gres(policy: QPUPolicy, offered: Iterable[str]) -> None:
    """Refuse a QPU whose GRES no node has.

    Raises:
        UnknownQPUError: No node offers it.
    """
    wanted, known = policy.gres, set(offered)
    if wanted is not None and wanted.lower() not in {gres.lower() for gres in known}:
        names = {gres.partition(":")[2] for gres in known if gres.startswith("qpu:")}
        raise UnknownQPUError(
            policy.name,
            names,
            f"on this Slurm: no node has GRES {wanted!r}",
            "Ask for one of those, or ask your administrators for the GRES.",
        )


def units_of(policy: QPUPolicy, offered: Mapping[str, int]) -> int | None:
    """Return how many units of a QPU one node offers; `None` when no GRES counts them."""
    wanted = (policy.gres or "").lower()
    return max((n for gres, n in offered.items() if gres.lower() == wanted), default=None)


def require_count(request: QPURequest, policy: QPUPolicy, offered: Mapping[str, int]) -> None:
    """Refuse more units of a QPU than any node has: sbatch's own message names none of them.

    Raises:
        RequestError: No node has as many.
    """
    most = units_of(policy, offered)
    if most is not None and request.count > most:
        raise RequestError(
            f"qpu={request.count} for QPU {request.qpu!r}: no node of this Slurm has more than "
            f"{most} of GRES {policy.gres!r}. Ask for qpu={most} or fewer."
        )


def check_offered(request: QPURequest, site: SitePolicy) -> QPUPolicy:
    """Ask Slurm whether it offers the requested QPU, before anything is submitted.

    Raises:
        UnknownQPUError: The site policy, or Slurm, does not have it.
        RequestError: Slurm does not have as many units of it.
        SchedulerError: Slurm does not answer.
    """
    policy = site.qpu(request.qpu)
    done = require_success(run_command(["sinfo", "--noheader", "--format=%G"]))
    offered = offered_gres(done.stdout)
    require_gres(policy, offered)
    require_count(request, policy, offered)
    return policy


def gres_of_job(scontrol_output: str) -> Mapping[str, str]:
    """Parse `scontrol show job ID`: its state, GRES and licences.

    Slurm 22.05 writes `TresPerNode=gres:qpu:ibm_fez:1`, later ones `gres/qpu:ibm_fez:1`.
    """
    pairs = dict(word.partition("=")[::2] for word in scontrol_output.split() if "=" in word)
    gres = re.sub(r"^gres[:/]", "", pairs.get("TresPerNode", ""))
    return {
        "state": pairs.get("JobState", "UNKNOWN"),
        "gres": gres,
        "licences": pairs.get("Licenses", "").replace("(null)", ""),
    }


def queue_wait(job: str) -> float | None:
    """Ask Slurm how many seconds a running job waited in the queue; worth two seconds at most."""
    with suppress(SchedulerError, ValueError):
        shown = run_command(["squeue", "--noheader", f"--jobs={job}", "--format=%V|%S"], timeout=2)
        submitted, started = map(datetime.fromisoformat, shown.stdout.strip().split("|"))
        return (started - submitted).total_seconds()
    return None


def live_jobs(cluster: str | None = None, *, timeout: float = COMMAND_TIMEOUT) -> set[str]:
    """Ask Slurm for the ids (`$SLURM_JOB_ID`) of this user's jobs that may have processes.

    Args:
        cluster: The cluster to ask; this host's own when it is `None`.
        timeout: Seconds that each question may take.

    Raises:
        SchedulerError: Slurm does not answer, or knows no such cluster.
    """
    other = cluster is not None and cluster != _this_cluster(timeout)
    # %A, not %i: a task of an array is known to itself by an id of its own.
    argv = ["squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%j"]
    argv += [f"--clusters={cluster}"] if other else []
    listed = Slurm().parse_status(require_success(run_command(argv, timeout=timeout)).stdout)
    return {job for job, (state, _) in listed.items() if state.has_processes}


def _this_cluster(timeout: float) -> str | None:
    if named := os.environ.get("SLURM_CLUSTER_NAME"):
        return named
    return cluster_of(
        require_success(run_command(["scontrol", "show", "config"], timeout=timeout)).stdout
    )


def cluster_of(scontrol_output: str) -> str | None:
    """Parse `scontrol show config`: the cluster's name."""
    match = re.search(r"^ClusterName\s*=\s*(\S+)", scontrol_output, re.MULTILINE)
    return match[1] if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNow:
    """A job that has started.

    Attributes:
        ending: Whether Slurm is ending it.
        used: Seconds for which it has been running.
        left: Seconds that its time limit leaves it; `None` when it has no limit.
    """

    ending: bool
    used: int
    left: int | None


def job_now_of(squeue_output: str, job: str) -> JobNow | None:
    """Parse `squeue --format=%A|%T|%M|%L`; an array's first job is listed with its siblings."""
    for line in squeue_output.splitlines():
        listed, _, rest = line.strip().partition("|")
        if listed == job:
            state, used, left = rest.split("|")
            ending = state == "COMPLETING" or _state(state).final
            return JobNow(ending=ending, used=_seconds(used) or 0, left=_seconds(left))
    return None


def job_now(job: str) -> JobNow | None:
    """Ask Slurm about a job that has started; worth two seconds at most."""
    with suppress(SchedulerError):
        argv = ["squeue", "--noheader", f"--jobs={job}", "--format=%A|%T|%M|%L"]
        return job_now_of(run_command(argv, timeout=2).stdout, job)
    return None


def _seconds(duration: str) -> int | None:
    """Read `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`; `None` for `UNLIMITED`, `NOT_SET`, `INVALID`."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", duration)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def kill_wait_of(scontrol_output: str) -> float | None:
    """Parse `scontrol show config`: the seconds from SIGTERM to SIGKILL (`KillWait = 30 sec`)."""
    match = re.search(r"^KillWait\s*=\s*(\d+) sec", scontrol_output, re.MULTILINE)
    return float(match[1]) if match else None


_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.HELD,
    "RESV_DEL_HOLD": JobState.HELD,
    "SPECIAL_EXIT": JobState.HELD,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,  # its processes, and with them a lease, may still be there
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "STOPPED": JobState.HELD,
    "SUSPENDED": JobState.HELD,
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "FAILED": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.TIMEOUT,
    "TIMEOUT": JobState.TIMEOUT,
}
"""https://slurm.schedmd.com/job_state_codes.html, and how each counts here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Slurm's hooks (see `Scheduler`).

    Attributes:
        clusters: The clusters to submit to, comma-separated, in a federation.
    """

    clusters: str | None = None

    def check_offered(self, request: QPURequest, site: SitePolicy) -> None:
        """Ask Slurm whether it offers the QPU (see `check_offered`)."""
        check_offered(request, site)

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        """Render the options of sbatch that ask for the QPU (see `qpu_options`)."""
        return qpu_options(request, site.qpu(request.qpu))

    def directive(self, option: str) -> str:
        """Render `#SBATCH --gres=…`; sbatch splits such a line as a shell does."""
        plain = not set(option) & set(" \t'\"\\#")
        return f"#SBATCH {option if plain else shlex.quote(option)}"

    def submit_argv(self, script: Path) -> list[str]:
        """Build `sbatch --parsable SCRIPT`."""
        return ["sbatch", "--parsable", *self._clusters(), str(script)]

    def parse_job_id(self, output: str) -> str | None:
        """Read `17` or `17;cluster`, the last line: a site's submit plugin may print more."""
        last = output.strip().rpartition("\n")[2].partition(";")[0]
        return last if last.isdigit() else None

    def status_argv(self) -> list[str]:
        """Build a squeue of all states; of all jobs, for one unknown id would make it fail."""
        form = "--format=%i|%T|%j"
        return ["squeue", "--me", "--noheader", "--states=all", *self._clusters(), form]

    def parse_status(self, output: str) -> dict[str, tuple[JobState, str]]:
        """Read `17|RUNNING|name`, from squeue or sacct; array tasks keep their ids (`17_3`)."""
        rows = (line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2)
        return {row[0].strip(): (_state(row[1]), row[2].strip()) for row in rows}

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        """Build the sacct of these jobs."""
        form = "--format=JobID,State,JobName"
        jobs = f"--jobs={','.join(job_ids)}"
        return ["sacct", "-X", "--noheader", "--parsable2", *self._clusters(), form, jobs]

    def cancel_argv(self, job_ids: Iterable[str]) -> list[str]:
        """Build the scancel of these jobs: SIGTERM now, SIGKILL after KillWait."""
        return ["scancel", *self._clusters(), *job_ids]

    def _clusters(self) -> list[str]:
        return [f"--clusters={self.clusters}"] if self.clusters else []


def _state(word: str) -> JobState:
    """Translate a state; sacct writes `CANCELLED by 1000`."""
    first = word.split()[0].rstrip("+") if word.split() else ""
    return _STATES.get(first, JobState.UNKNOWN)


def has_accounting(scontrol_output: str) -> bool:
    """Parse `scontrol show config`: whether `sacct` can answer at this site."""
    match = re.search(r"^AccountingStorageType\s*=\s*(\S+)", scontrol_output, re.MULTILINE)
    return match is not None and match[1].rpartition("/")[2] not in {"none", "(null)"}
