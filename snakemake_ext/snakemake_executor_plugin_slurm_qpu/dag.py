"""Queries on Snakemake's graph of jobs, for the executor."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["jobs_in", "unblocks_jobs"]


def jobs_in(job: Any) -> Iterable[Any]:
    """Return the jobs of a group, or a single job."""
    return job.jobs if job.is_group() else [job]


def unblocks_jobs(dag: Any, ended: Collection[Any], running: Collection[Any]) -> bool:
    """Return whether Snakemake could start another job if it knew that some jobs have ended.

    Args:
        dag: Snakemake's `DAG`, as in 9.27.1; the executor plugin interface does not offer this.
        ended: The jobs, or groups of jobs, that have left a marker.
        running: The submitted jobs that have not.
    """
    if not running:
        return True
    done = {member for job in ended for member in jobs_in(job)}
    if any(job.is_checkpoint for job in done):
        return True  # Which jobs depend on a checkpoint is only known after it has run.
    # `list`: the scheduler's thread changes these dictionaries while this thread reads them.
    return any(
        all(other in done or dag.finished(other) or not dag.needrun(other) for other in needed)
        for job in done
        for dependent in list(dag.depending[job])
        if dependent not in done and dag.needrun(dependent)
        for needed in [list(dag.job_dependencies(dependent))]
    )
