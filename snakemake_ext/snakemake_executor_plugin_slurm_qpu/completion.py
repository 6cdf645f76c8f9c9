"""What Slurm says of jobs that have left a marker, and when it is worth asking.

A marker says that a job's command has ended; only Slurm knows what became of the job. It is asked
at once when the workflow can go on by the answer, and otherwise with the next ones that end: a
fan-out costs a question or two, not one for each job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any

from qrmi_workflows.schedulers.base import JobState, JobStatus

__all__ = ["Verdict", "can_go_on", "judge"]


class Verdict(Enum):
    """What became of a job with a marker."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OPEN = "open"


_OPEN = frozenset({JobState.PENDING, JobState.RUNNING, JobState.HELD})


def judge(listed: JobStatus | None, marked: str) -> Verdict:
    """Judge a job by what Slurm lists, and by its marker if Slurm has forgotten it.

    Args:
        listed: What Slurm lists; `None` if Slurm answers and does not know the job, which it
            forgets `MinJobAge` after the end.
        marked: The exit status in its marker; empty if the marker holds none.
    """
    is_well_marked = marked in {"0", ""}
    if listed is None:
        return Verdict.SUCCEEDED if is_well_marked else Verdict.FAILED
    if listed.is_completing:
        # The exit code is final, and what still runs is the site's epilog; but whether Slurm will
        # call a failed job FAILED or CANCELLED is not decided yet.
        has_succeeded = listed.exit_code == 0 and is_well_marked
        return Verdict.SUCCEEDED if has_succeeded else Verdict.OPEN
    if listed.state in _OPEN:
        return Verdict.OPEN
    has_succeeded = listed.state is JobState.COMPLETED and listed.exit_code == 0
    return Verdict.SUCCEEDED if has_succeeded and is_well_marked else Verdict.FAILED


def can_go_on(dag: Any, ended: Collection[Any], running: Collection[Any]) -> bool:
    """Whether the workflow could start a job if it knew that these have ended.

    Args:
        dag: Snakemake's graph of jobs.
        ended: The jobs, or groups of jobs, that have left a marker.
        running: Those that have not.
    """
    if not running:
        return True
    done = {member for job in ended for member in _members(job)}
    if any(job.is_checkpoint for job in done):
        return True  # what depends on it is not known yet
    return any(
        all(other in done or dag.finished(other) or not dag.needrun(other) for other in needed)
        for job in done
        for dependent in list(dag.depending[job])
        if dependent not in done and dag.needrun(dependent)
        for needed in [list(dag.job_dependencies(dependent))]
    )


def _members(job: Any) -> Iterable[Any]:
    return job.jobs if job.is_group() else [job]
