"""Ask Slurm about the jobs of a run: squeue, and sacct where Slurm has accounting.

Each can miss a job that the other knows: squeue forgets a job `MinJobAge` seconds after its end,
and the accounting learns of a job late. So what the first does not settle, the second is asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobState, JobStatus
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import list_jobs

__all__ = ["Answer", "ask_slurm", "find_status", "nodes_of"]

_MAX_IDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Slurm knows about some jobs.

    Attributes:
        statuses: The jobs that it knows, by their ids.
        forgotten: The jobs that it does not know. Jobs in neither are undecided, because a command
            has failed.
        errors: The errors of the commands that have failed.
    """

    statuses: Mapping[str, JobStatus]
    forgotten: frozenset[str]
    errors: tuple[SchedulerError, ...] = ()


def ask_slurm(
    job_ids: Collection[str], *, name: str, commands: Iterable[str], all_clusters: bool = False
) -> Answer:
    """Ask Slurm about jobs.

    Args:
        job_ids: The jobs' ids.
        name: Their common name.
        commands: `squeue` and `sacct`, or one of them, in the order in which to ask.
        all_clusters: Whether jobs may be on other clusters than this host's own.
    """
    slurm = Slurm(clusters="all" if all_clusters else None)
    statuses: dict[str, JobStatus] = {}
    errors: list[SchedulerError] = []
    unsettled = set(job_ids)
    for command in commands:
        if not unsettled:
            break
        try:
            found = _ask(slurm, command, name, unsettled)
        except SchedulerError as error:
            errors.append(error)
            continue
        # What squeue lists is the present; the accounting may still show an earlier run of the job.
        statuses = statuses | found if command == "squeue" else found | statuses
        unsettled -= {job_id for job_id, status in found.items() if _settles(command, status)}
    if errors:
        return Answer(
            statuses={job_id: s for job_id, s in statuses.items() if job_id not in unsettled},
            forgotten=frozenset(),
            errors=tuple(errors),
        )
    return Answer(statuses=statuses, forgotten=frozenset(unsettled - statuses.keys()))


def _ask(slurm: Slurm, command: str, name: str, job_ids: Iterable[str]) -> dict[str, JobStatus]:
    if command == "sacct":
        histories = (slurm.history_argv(ids) for ids in _batched(sorted(job_ids)))
        calls = [argv for argv in histories if argv is not None]
    else:
        # By name, as the stock executor does: squeue fails if it does not know one of the ids.
        calls = [slurm.status_argv(name=name)]
    listed: dict[str, JobStatus] = {}
    for argv in calls:
        listed |= list_jobs(slurm, argv)
    found = {job_id: find_status(listed, job_id) for job_id in job_ids}
    return {job_id: status for job_id, status in found.items() if status is not None}


def _batched(job_ids: Sequence[str]) -> list[Sequence[str]]:
    # Linux refuses an argument of more than 128 KiB (execve(2), MAX_ARG_STRLEN).
    return [job_ids[i : i + _MAX_IDS] for i in range(0, len(job_ids), _MAX_IDS)]


def _settles(command: str, status: JobStatus) -> bool:
    # A requeued job ends as PREEMPTED or NODE_FAIL in the accounting, before it starts again.
    return command == "squeue" or status.state is JobState.COMPLETED or not status.state.is_final


def find_status(listed: Mapping[str, JobStatus], job_id: str) -> JobStatus | None:
    """Return a job's status; pending tasks of an array are listed together (`17_[2-5,8%1]`)."""
    if job_id in listed or "_" not in job_id:
        return listed.get(job_id)
    array, _, task = job_id.partition("_")
    together = (
        status
        for listed_id, status in listed.items()
        if listed_id.startswith(f"{array}_[") and _includes(listed_id, int(task))
    )
    return next(together, None)


def _includes(listed_id: str, task: int) -> bool:
    if "..." in listed_id:  # squeue shortens long lists; then any task may be among them
        return True
    ranges = re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", listed_id.partition("[")[2].split("%")[0])
    return any(
        task in range(int(first), int(last or first) + 1, int(step or 1))
        for first, last, step in ranges
    )


def nodes_of(job_id: str) -> set[str]:
    """Return the nodes of a job that Slurm still lists; empty if they are not known."""
    try:
        argv = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%N"]
        shown = run_command(argv).stdout
    except SchedulerError:
        return set()
    return set(shown.split())
