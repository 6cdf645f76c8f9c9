"""Find the jobs that a killed Snakemake has left in the queue.

They still write their outputs, and their QPU tasks are not yet all in the journal. A new job for
the same outputs must not start beside them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobStatus
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import list_jobs
from qrmi_workflows.state.process import Owner
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in
from snakemake_executor_plugin_slurm_qpu.job_names import cluster_of, comment_stem

__all__ = ["Orphans", "find_orphans"]

_RUN_FILE = "run.json"
_KEPT_SECONDS = 30 * 86400.0
"""How old a dead run's folder must be to be removed: its jobs may wait on another cluster."""


class Orphans:
    """The jobs that earlier runs of Snakemake in this folder have left in the queue.

    Snakemake keeps the Slurm id of a submitted job with its marks of incomplete outputs, but only
    the last one, and only until a job for these outputs fails. So each run leaves its name here.

    Args:
        runs: The folder that holds the runs' folders.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._own: Path | None = None
        self._listed: dict[str | None, dict[str, JobStatus]] = {}

    def remember(self, folder: Path, name: str) -> None:
        """Leave the name of this run in its folder, for later ones.

        Args:
            folder: The run's folder; it goes when the run has ended and left no jobs.
            name: The name that all jobs of the run have.
        """
        if self._own is None:
            run = {"name": name, "owner": asdict(Owner.this_process(None))}
            (folder / _RUN_FILE).write_text(json.dumps(run), encoding="utf-8")
            self._own = folder.resolve()

    def of_job(
        self, job: Any, persistence: Any, *, unanswered: str | None = None, again: bool = False
    ) -> list[str]:
        """Return the ids of the orphans that may still write the outputs of a job or group.

        Args:
            job: The job that is about to be submitted.
            persistence: Snakemake's own marks of incomplete outputs.
            unanswered: The name of this run, if Slurm may have accepted one of its jobs without an
                answer: a retry must not start beside it.
            again: Whether to ask Slurm again which of them are still running.

        Raises:
            SchedulerError: Slurm did not answer.
        """
        marked = {i for member in jobs_in(job) for i in persistence.external_jobids(member)}
        names = {*self._earlier.values(), *([unanswered] if unanswered else [])}
        if not marked and not names:
            return []
        if unanswered or again:
            self._listed.clear()
        return find_orphans(self._list_jobs(cluster_of(job)), marked, names, comment_stem(job))

    def cancel_waiting(self, orphans: Iterable[str]) -> None:
        """Cancel those orphans that wait for a stage: their step is about to be run again."""
        # They have not started, and somebody who opens the stage again would start them.
        listed = {i: status for jobs in self._listed.values() for i, status in jobs.items()}
        waiting = [i for i in orphans if i in listed and _waits_for_stage(listed[i])]
        if waiting:
            with suppress(SchedulerError):  # then the new job waits for their end
                run_command(Slurm().cancel_argv(waiting))

    @cached_property
    def _earlier(self) -> dict[Path, str]:
        """The names of the earlier runs that may have left jobs, by their folders."""
        found = {}
        for file in sorted(self._runs.resolve().glob(f"*/{_RUN_FILE}")):
            run = _read_json(file)
            if file.parent != self._own and "name" in run:
                found[file.parent] = str(run["name"])
        return found

    def _list_jobs(self, cluster: str | None) -> dict[str, JobStatus]:
        # An orphan is older than the run, so no new ones appear.
        if cluster not in self._listed:
            slurm = Slurm(clusters=cluster)
            self._listed[cluster] = list_jobs(slurm, slurm.status_argv())
            if cluster is None:
                self._forget_ended(self._listed[None].values())
        return self._listed[cluster]

    def _forget_ended(self, listed: Iterable[JobStatus]) -> None:
        present = {status.name for status in listed if _may_write(status)}
        for folder, name in self._earlier.items():
            file = folder / _RUN_FILE
            if name not in present and _is_old(file) and _is_dead(_read_json(file)):
                shutil.rmtree(folder, ignore_errors=True)


def find_orphans(
    listed: Mapping[str, JobStatus], marked: Iterable[str], runs: Iterable[str], stem: str
) -> list[str]:
    """Select the orphans of a job from the queue.

    Args:
        listed: The user's jobs, by their ids.
        marked: The ids that Snakemake has kept; those of other executors are not Slurm jobs.
        runs: The names of earlier runs.
        stem: What the comments of all attempts at the job start with (`comment_stem`).
    """
    ids, names = frozenset(marked), frozenset(runs)
    return sorted(
        job_id
        for job_id, status in listed.items()
        if _may_write(status)
        and (job_id in ids or (status.name in names and _stem(status.comment) == stem))
    )


def _stem(comment: str) -> str:
    return comment.partition(" ")[0].rpartition("_job_")[0]  # the words of a stage come last


def _waits_for_stage(status: JobStatus) -> bool:
    return " qpu_stage=" in status.comment and "afterok:" in status.dependency


def _may_write(status: JobStatus) -> bool:
    return not status.state.is_final or status.is_completing


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _KEPT_SECONDS
    except OSError:
        return False


def _is_dead(run: Mapping[str, Any]) -> bool:
    try:
        return Owner(**run["owner"]).is_alive() is False
    except (KeyError, TypeError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
