"""Queries on Snakemake's graph of jobs, for the executor."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from graphlib import TopologicalSorter
from typing import Any

__all__ = ["jobs_in", "jobs_still_to_run", "rounds_of", "unblocks_jobs"]


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


def rounds_of(dag: Any, jobs: Collection[Any]) -> list[list[Any]]:
    """Sort jobs into rounds: those of the first wait for none of the others.

    Args:
        dag: Snakemake's `DAG`, as in 9.27.1.
        jobs: Jobs that have not run. One is in a later round than those that it waits for, be it
            through jobs that are not among them.
    """
    waiting = _waiting_jobs(dag)
    needed = {job: list(dag.job_dependencies(job)) for job in waiting}
    graph = {job: [each for each in others if each in waiting] for job, others in needed.items()}
    depths: dict[Any, int] = {}
    rounds: list[list[Any]] = []
    for job in TopologicalSorter(graph).static_order():
        depth = depths[job] = max((depths[each] for each in graph[job]), default=0) + (job in jobs)
        if job in jobs:
            rounds += [[] for _ in range(depth - len(rounds))]
            rounds[depth - 1].append(job)
    return rounds


def jobs_still_to_run(dag: Any, scheduler: Any) -> list[Any]:
    """Return the jobs that are running or that Snakemake may still start.

    Args:
        dag: Snakemake's `DAG`, as in 9.27.1.
        scheduler: Its `JobScheduler`. Neither must change during the call.
    """
    # As `JobScheduler.schedule` decides it: after a failure without --keep-going, or after SIGTERM,
    # it starts no more jobs.
    failed = {member for job in scheduler.failed for member in jobs_in(job)}
    if scheduler._user_kill or (failed and not scheduler.keepgoing):
        return [member for job in scheduler.running for member in jobs_in(job)]
    lost, unseen = set(failed), list(failed)
    while unseen:
        more = set(dag.depending[unseen.pop()]) - lost
        lost |= more
        unseen += more
    return [job for job in _waiting_jobs(dag) if job not in lost]


def _waiting_jobs(dag: Any) -> dict[Any, None]:
    """Return the jobs that must run and have not finished, in the order of the DAG's set."""
    return dict.fromkeys(dag.needrun_jobs())
