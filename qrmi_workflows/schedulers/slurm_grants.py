"""Slurm: what a job was granted, asked of `squeue` field by field.

`scontrol show job` prints the job's name, comment and folder as they are, line breaks included, so
a user can add lines such as `JOB_GRES=` to its output (seen with 22.05). It is asked only for what
Slurm has chosen, which no field of squeue shows, and not believed if it shows too many choices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qrmi_workflows.config.site import QPUPolicy
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.schedulers.gres import JobGrants, make_grants, multiply
from qrmi_workflows.schedulers.slurm_config import parse_duration

__all__ = [
    "GrantedJob",
    "JobRow",
    "ask_grants",
    "choices_argv",
    "grants_argv",
    "parse_rows",
    "resolve",
]

_SEPARATOR = "\x1f"
_FIELDS = (
    *("JobID", "HetJobIDSet", "NumNodes", "NumTasks", "BatchFlag", "TimeLimit", "Account"),
    *("Licenses", "tres-per-job", "tres-per-socket", "tres-per-node", "tres-per-task"),
)
_UNLIMITED_SECONDS = 365 * 86400
_NOTHING = frozenset({"", "N/A", "(null)", "None"})
_OR = "|"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedJob:
    """What Slurm has granted to a job.

    Attributes:
        grants: Its GRES and licences.
        is_batch: Whether it has a batch script.
        limit: Its time limit in seconds; `None` if it has none.
        account: The account that it is charged to, if any.
    """

    grants: JobGrants
    is_batch: bool
    limit: int | None
    account: str | None

    def qpus(self, policies: Iterable[QPUPolicy], plugin_qpus: frozenset[str]) -> list[str]:
        """Return the QPUs that the Prolog has to acquire.

        A batch job that requests QPUs by the plugin's option is left to the plugin, which acquires
        them in the batch step. It does nothing for `srun` and `salloc`.

        Args:
            policies: The site's QPUs.
            plugin_qpus: Those that it requests by the option of QRMI's SPANK plugin.
        """
        if self.is_batch and plugin_qpus:
            return []
        return sorted(each.name for each in policies if self._holds(each, plugin_qpus))

    def _holds(self, policy: QPUPolicy, plugin_qpus: frozenset[str]) -> bool:
        if policy.qpu_option and policy.name in plugin_qpus:
            return self.grants.hold(policy)
        # Without a GRES and a licence, every job of the site would hold the QPU.
        return bool(policy.gres or policy.licence) and self.grants.hold(policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job, or one component of a heterogeneous job, as squeue lists it.

    Attributes:
        id: Its id.
        components: The ids of all components of the heterogeneous job, if it is one.
        is_batch: Whether it has a batch script.
        limit: Its time limit in seconds; `None` if it has none.
        account: The account that it is charged to, if any.
        gres: The GRES that it requested, with the counts of the whole job.
        licences: The licences that it requested.
    """

    id: str
    components: tuple[str, ...]
    is_batch: bool
    limit: int | None
    account: str | None
    gres: tuple[str, ...]
    licences: str


def grants_argv(job_ids: Iterable[str]) -> list[str]:
    """Build the squeue command for `parse_rows`."""
    form = f"--Format={','.join(f'{field}:{_SEPARATOR}' for field in _FIELDS)}"
    return ["squeue", "--noheader", f"--jobs={','.join(job_ids)}", "--states=all", form]


def parse_rows(squeue_output: str) -> dict[str, JobRow]:
    """Parse the output of `grants_argv`: each listed job by its id."""
    lines = (line.split(_SEPARATOR) for line in squeue_output.splitlines())
    rows = [_row(*map(str.strip, line)) for line in lines if len(line) == len(_FIELDS) + 1]
    return {row.id: row for row in rows}


def _row(
    job_id: str,
    components: str,
    nodes: str,
    tasks: str,
    batch: str,
    limit: str,
    account: str,
    licences: str,
    *tres: str,
) -> JobRow:
    times = (1, 1, _count(nodes), _count(tasks))  # of a job's sockets, at least one has it
    gres = (
        multiply(re.sub(r"(^|,)gres[:/]", r"\1", each), count)
        for each, count in zip(tres, times, strict=False)
        if each not in _NOTHING
    )
    return JobRow(
        id=job_id,
        components=() if components in _NOTHING else tuple(_ids(components)),
        is_batch=batch == "1",
        limit=_seconds(limit),
        account=None if account in _NOTHING else account,
        gres=tuple(gres),
        licences="" if licences in _NOTHING else licences,
    )


def _count(text: str) -> int:
    return int(text) if text.isdecimal() and text != "0" else 1


def _ids(job_ids: str) -> Iterator[str]:
    """Expand a set of job ids, as Slurm writes it (`3-5,7`)."""
    for part in job_ids.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from map(str, range(int(first), int(last or first) + 1))


def _seconds(limit: str) -> int | None:
    """Parse a time limit; `None` if there is none (22.05 then writes a year)."""
    seconds = parse_duration(limit)
    return None if seconds is None or seconds >= _UNLIMITED_SECONDS else int(seconds)


def choices_argv(job_id: str) -> list[str]:
    """Build the scontrol command for `resolve`."""
    return ["scontrol", "--details", "show", "job", job_id]


def has_choice(rows: Iterable[JobRow], policies: Iterable[QPUPolicy]) -> bool:
    """Return whether Slurm has chosen the type of a GRES, or one of alternative licences."""
    typed = [each.gres.lower() for each in policies if each.gres]
    held = [each for row in rows for each in make_grants(row.gres, ()).gres if ":" not in each]
    untyped = any(name.startswith(f"{each}:") for each in held for name in typed)
    return untyped or any(_OR in row.licences for row in rows)


def resolve(
    rows: Sequence[JobRow], scontrol_output: str | None = None, *, is_certain: bool
) -> JobGrants:
    """Return what a job holds.

    Args:
        rows: The job, or all of its components.
        scontrol_output: The output of `choices_argv`, if Slurm has chosen something.
        is_certain: Whether what may have been chosen otherwise does not count.
    """
    gres = [each for row in rows for each in row.gres]
    licences = [row.licences for row in rows]
    if scontrol_output is not None:
        gres = _chosen_gres(rows, scontrol_output, is_certain)
        licences = _chosen_licences(rows, scontrol_output, is_certain)
    return make_grants(gres, licences)


def _chosen_gres(rows: Sequence[JobRow], output: str, is_certain: bool) -> list[str]:
    # One line for each component, `JOB_GRES=(null)` if it has none.
    found = re.findall(r"^\s+JOB_GRES=(\S+)", output, re.MULTILINE)
    chosen = [each for each in found if each not in _NOTHING]
    if not chosen and not is_certain:  # `select/linear` does not show them
        return [each for row in rows for each in row.gres]
    return chosen if len(found) == len(rows) else []  # otherwise, some are forged


def _chosen_licences(rows: Sequence[JobRow], output: str, is_certain: bool) -> list[str]:
    asked = [row.licences for row in rows]
    if not any(_OR in each for each in asked):
        return asked
    # Slurm 26.05 shows which of the alternatives was allocated.
    line = re.compile(r"^\s+OverSubscribe=.* Licenses=\S+(?: LicensesAlloc=(\S+))?", re.MULTILINE)
    found = [match[1] or "" for match in line.finditer(output)]
    if len(found) == len(rows) and all(each not in _NOTHING for each in found):
        return found
    return [each for each in asked if _OR not in each] if is_certain else asked


def ask_grants(
    job_id: str, policies: Iterable[QPUPolicy], *, timeout: float, is_certain: bool
) -> GrantedJob | None:
    """Find out what a job was granted; `None` if Slurm does not know the job.

    Args:
        job_id: The job's id. The programs of a heterogeneous job know that of its first component.
        policies: The site's QPUs.
        timeout: How many seconds a command may take.
        is_certain: Whether only what this very component holds for certain counts; otherwise, all
            that the components of a heterogeneous job may hold together.

    Raises:
        SchedulerError: Slurm does not answer.
    """
    listed = parse_rows(run_command(grants_argv([job_id]), timeout=timeout).stdout)
    if (row := listed.get(job_id)) is None:
        return None
    rows = [row]
    if row.components and not is_certain:
        listed = parse_rows(run_command(grants_argv(row.components), timeout=timeout).stdout)
        rows = [listed[each] for each in row.components if each in listed]
    chosen = None
    if has_choice(rows, policies):
        chosen = run_command(choices_argv(job_id), timeout=timeout).stdout
    return GrantedJob(
        grants=resolve(rows, chosen, is_certain=is_certain),
        is_batch=row.is_batch,
        limit=row.limit,
        account=row.account,
    )
