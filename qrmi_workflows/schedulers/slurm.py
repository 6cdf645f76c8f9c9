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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.errors import RequestError, SchedulerError
from qrmi_workflows.schedulers.base import JobState, JobStatus, QPURequest, RunningJob
from qrmi_workflows.schedulers.command import (
    BRIEF_TIMEOUT,
    COMMAND_TIMEOUT,
    require_success,
    run_command,
)
from qrmi_workflows.schedulers.gres import (
    grants_of_job,
    offered_gres,
    require_count,
    require_gres,
)
from qrmi_workflows.state.process import JobIdentity

__all__ = [
    "Slurm",
    "cluster_of",
    "has_accounting",
    "has_multiple_slurmd",
    "kill_wait_of",
    "min_job_age_of",
    "parse_running_job",
    "qpu_options",
    "refuse_options",
]

_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "EXPEDITING": JobState.PENDING,  # requeued, and first in the queue (26.05)
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.HELD,
    "RESV_DEL_HOLD": JobState.HELD,
    "SPECIAL_EXIT": JobState.HELD,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,  # its processes may be alive, and hold a lease
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "STOPPED": JobState.SUSPENDED,
    "SUSPENDED": JobState.SUSPENDED,
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,  # another cluster of the federation runs or has run it
    "FAILED": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.TIMEOUT,  # for good: a job to be requeued is COMPLETING, then PENDING
    "TIMEOUT": JobState.TIMEOUT,
}
"""Slurm's words for a job's state (`job_state_string` of 22.05 to 26.05), and what each means.

https://slurm.schedmd.com/job_state_codes.html lists some that squeue and sacct never print.
"""

_SEPARATOR = "\x1f"
"""ASCII's unit separator: names and comments may have bars and line breaks."""

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
        )

    # Requests for a QPU

    def check_offered(self, request: QPURequest, site: SitePolicy) -> None:
        """Ask `sinfo` whether some node has the QPU's GRES, and enough of it."""
        policy = site.qpu(request.qpu)
        done = require_success(run_command(["sinfo", "--noheader", "--format=%G"]))
        offered = offered_gres(done.stdout)
        require_gres(policy, offered)
        require_count(request, policy, offered)

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        """Render the sbatch options that request the QPU."""
        return qpu_options(request, site.qpu(request.qpu))

    def granted_qpus(
        self, site: SitePolicy, environ: Mapping[str, str], *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        """Ask `scontrol show job` which GRES and licences this process's job holds.

        The environment does not tell: Slurm 22.05 sets no variable, and a job that was submitted
        from another one inherits `$SLURM_JOB_LICENSES` from it (seen with 26.05).
        """
        qpus = site.qpus.values()
        if not any(qpu.gres or qpu.licence for qpu in qpus):
            return {qpu.name for qpu in qpus}
        argv = ["scontrol", "--details", "show", "job", environ.get("SLURM_JOB_ID", "")]
        held = grants_of_job(run_command(argv, timeout=timeout).stdout)
        return None if held is None else {qpu.name for qpu in qpus if held.hold(qpu)}

    # Commands, and the parsers of their output

    def name_options(self, name: str, *, stdout: Path, stderr: Path) -> list[str]:
        """Render `--job-name`, `--output` and `--error`."""
        return [f"--job-name={name}", f"--output={stdout}", f"--error={stderr}"]

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
        fields = ("JobArrayID", "JobID", "State", "exit_code", "Reason", "Comment", "Name")
        form = f"--Format={','.join(f'{field}:{_SEPARATOR}' for field in fields)}"
        # Do not filter by a name with a comma: `--name` would read it as several names.
        named = [] if name is None or "," in name else [f"--name={name}"]
        return ["squeue", "--me", "--noheader", "--states=all", *named, *self._clusters(), form]

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        """Build the sacct command for these jobs, with the fields of `status_argv`."""
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

    def _clusters(self) -> list[str]:
        return [f"--clusters={self.clusters}"] if self.clusters else []

    # Queries

    def live_jobs(
        self, cluster: str | None = None, *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        """Ask squeue, on another cluster if one is named."""
        if shutil.which("squeue") is None:
            return None
        is_other = cluster is not None and cluster != _this_cluster(timeout)
        argv = Slurm(clusters=cluster if is_other else None).status_argv()
        listed = self.parse_status(require_success(run_command(argv, timeout=timeout)).stdout)
        return {status.job_id for status in listed.values() if status.state.may_have_processes}

    def running_job(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> RunningJob | None:
        """Ask squeue."""
        with suppress(SchedulerError):
            argv = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%A|%T|%M|%L"]
            return parse_running_job(run_command(argv, timeout=timeout).stdout, job_id)
        return None

    def queue_wait(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        """Ask squeue."""
        with suppress(SchedulerError, ValueError):
            argv = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%V|%S"]
            shown = run_command(argv, timeout=timeout).stdout
            submitted, started = map(datetime.fromisoformat, shown.strip().split("|"))
            return (started - submitted).total_seconds()
        return None

    def kill_wait(self, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        """Ask `scontrol show config`."""
        with suppress(SchedulerError):
            argv = ["scontrol", "show", "config"]
            return kill_wait_of(run_command(argv, timeout=timeout).stdout)
        return None


def qpu_options(request: QPURequest, policy: QPUPolicy) -> list[str]:
    """Render the sbatch options that request a QPU as the site grants it.

    Returns:
        One string for each option: `["--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"]`.
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
    """Refuse sbatch options that a request for a QPU sets: sbatch uses the last of repeated ones.

    Args:
        options: The user's options, on a command line or as directives.
        names: The names of options to refuse, without dashes.
        where: The place that the options were read from, for the message.

    Raises:
        RequestError: One of the names is among the options.
    """
    for name in names:
        if re.search(rf"(?:^|\s)--{name}(?:[=\s]|$)", options):
            raise RequestError(
                f"{where}: --{name} would override the request for a QPU, which sets it. "
                f"Remove --{name}."
            )


def parse_running_job(squeue_output: str, job_id: str) -> RunningJob | None:
    """Parse `squeue --format=%A|%T|%M|%L`; for an array's first job, squeue lists all of them."""
    for line in squeue_output.splitlines():
        listed, _, rest = line.strip().partition("|")
        if listed == job_id:
            state, used, left = rest.split("|")
            is_ending = state == "COMPLETING" or _state(state).is_final
            return RunningJob(is_ending=is_ending, used=_seconds(used) or 0, left=_seconds(left))
    return None


def cluster_of(scontrol_output: str) -> str | None:
    """Parse the cluster's name from `scontrol show config`."""
    match = re.search(r"^ClusterName\s*=\s*(\S+)", scontrol_output, re.MULTILINE)
    return match[1] if match else None


def kill_wait_of(scontrol_output: str) -> float | None:
    """Parse the seconds from SIGTERM to SIGKILL from `scontrol show config` (`KillWait`)."""
    match = re.search(r"^KillWait\s*=\s*(\d+) sec", scontrol_output, re.MULTILINE)
    return float(match[1]) if match else None


def min_job_age_of(scontrol_output: str) -> float | None:
    """Parse from `scontrol show config` for how many seconds Slurm remembers an ended job.

    `None` if it is not known, or if Slurm never forgets (`MinJobAge=0`).
    """
    match = re.search(r"^MinJobAge\s*=\s*(\d+) sec", scontrol_output, re.MULTILINE)
    return float(match[1]) or None if match else None


def has_accounting(scontrol_output: str) -> bool:
    """Parse from `scontrol show config` whether `sacct` works at this site."""
    match = re.search(r"^AccountingStorageType\s*=\s*(\S+)", scontrol_output, re.MULTILINE)
    return match is not None and match[1].rpartition("/")[2] not in {"none", "(null)"}


def has_multiple_slurmd(scontrol_output: str) -> bool:
    """Parse from `scontrol show config` whether several slurmd can run on one machine.

    Slurm's `configure` has `--enable-multiple-slurmd` for this; SchedMD's packages are built
    without, Debian's with it.
    """
    return re.search(r"^MULTIPLE_SLURMD\s*=\s*Yes", scontrol_output, re.MULTILINE) is not None


def _fields(row: str) -> list[str]:
    """Split a row of squeue or sacct into its seven fields; missing ones are empty."""
    fields = [field.strip() for field in row.split(_SEPARATOR)]
    fields[0] = fields[0].rpartition("\n")[2]  # a site's wrapper may print lines of its own
    return [*fields, *[""] * 7][:7]


def _status(
    job_id: str, state: str, exit_code: str, reason: str, comment: str, name: str
) -> JobStatus:
    return JobStatus(
        state=_state(state),
        word=_word(state),
        job_id=job_id,
        name=name,
        comment="" if comment == "(null)" else comment,
        exit_code=_exit_code(exit_code),
        reason="" if reason in _UNKNOWN_REASONS else reason,
        is_completing=state == "COMPLETING",
    )


def _state(written: str) -> JobState:
    """Translate a state."""
    return _STATES.get(_word(written), JobState.UNKNOWN)


def _word(written: str) -> str:
    """Return Slurm's word for a state; sacct writes `CANCELLED by 1000`."""
    return written.partition(" ")[0].rstrip("+")


def _exit_code(text: str) -> int | None:
    """Translate squeue's wait status (`768`: code 3) or sacct's `code:signal` (`3:0`)."""
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        code, signal = int(match[1]), int(match[2])
    elif text.isdigit():
        code, signal = int(text) >> 8, int(text) & 0x7F
    else:
        return None
    return 128 + signal if signal else code


def _seconds(duration: str) -> int | None:
    """Parse `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`; `None` for `UNLIMITED`, `NOT_SET`, `INVALID`."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", duration)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _this_cluster(timeout: float) -> str | None:
    if named := os.environ.get("SLURM_CLUSTER_NAME"):
        return named
    return cluster_of(
        require_success(run_command(["scontrol", "show", "config"], timeout=timeout)).stdout
    )
