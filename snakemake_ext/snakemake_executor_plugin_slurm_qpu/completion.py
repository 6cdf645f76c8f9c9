"""What Slurm says of jobs that have left a marker, and when it is worth asking.

A marker says that a job's command has ended; only Slurm knows what became of the job. It is asked
at once when the workflow can go on by the answer, and otherwise with the next ones that end: a
fan-out costs a question or two, not one for each job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any

__all__ = ["Verdict", "can_go_on", "judge", "parse_states", "state_command"]


class Verdict(Enum):
    """What became of a job with a marker."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OPEN = "open"


_OPEN = frozenset({"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "STAGE_OUT"})


def state_command(job_ids: Iterable[str]) -> list[str]:
    """Render the `squeue` call that asks for the states and exit codes of jobs."""
    return [
        "squeue",
        "--noheader",
        "--states=all",
        "--Format=JobID,State,exit_code",
        f"--jobs={','.join(sorted(job_ids))}",
    ]


def parse_states(output: str) -> dict[str, tuple[str, str]]:
    """Parse what `state_command` prints: job id to state (`COMPLETED`) and exit code (`0`)."""
    rows = (line.split() for line in output.splitlines())
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def judge(said: tuple[str, str] | None, status: str) -> Verdict:
    """Judge by Slurm's word on a job, and by its marker where Slurm has forgotten it.

    Args:
        said: Its state and exit code; `None` when Slurm answers and does not know the job, which
            it forgets `MinJobAge` after the end.
        status: The exit status in its marker; empty when the marker holds none.
    """
    well = status in {"0", ""}
    if said is None:
        return Verdict.SUCCEEDED if well else Verdict.FAILED
    state, exit_code = said
    if state in _OPEN:
        return Verdict.OPEN
    # COMPLETING: the exit code is final, and what still runs is the site's epilog.
    if state in {"COMPLETED", "COMPLETING"} and exit_code == "0" and well:
        return Verdict.SUCCEEDED
    return Verdict.OPEN if state == "COMPLETING" else Verdict.FAILED


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
