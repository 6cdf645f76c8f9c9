"""Slurm: jobs that wait for another job to release them (pure functions).

A job with `--hold` waits until somebody releases it, for ever if nobody does. So jobs that wait for
a stage do not use it. They depend on the success of the keeper's job, which clears the dependency
when its QPU is ready. Whatever ends the keeper's job earlier, Slurm itself cancels the jobs that
depend on it; if Slurm requeues the keeper's job, they go on waiting (seen with Slurm 22.05).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from qrmi_workflows.schedulers.base import JobStatus

__all__ = ["after_options", "depends_on", "release_argvs", "waiting_options"]

_AT_ONCE = 200  # jobs per command: an argument list has a limit


def waiting_options(job_id: str, after: Iterable[str] = ()) -> list[str]:
    """Render the options of a job that waits until `release_argvs` releases it."""
    others = list(after)
    dependency = f"afterok:{job_id}" + (f",afterany:{':'.join(others)}" if others else "")
    return [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]


def after_options(job_ids: Iterable[str]) -> list[str]:
    """Render the options of a job that starts once other jobs have ended in whatever state."""
    return [f"--dependency=afterany:{':'.join(job_ids)}", "--kill-on-invalid-dep=no"]


def depends_on(status: JobStatus, job_id: str) -> bool:
    """Return whether a job waits for the success of another one, which has not failed."""
    return f"afterok:{job_id}(unfulfilled)" in status.dependency.split(",")


def release_argvs(
    listed: Mapping[str, JobStatus], job_id: str, *, options: Iterable[str] = ()
) -> list[list[str]]:
    """Build the commands that release the listed jobs that depend on another one.

    A user's own dependencies are kept, so there is one command for each set of them.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for listed_id, status in listed.items():
        if depends_on(status, job_id):
            # The tasks of a job array are released together.
            groups[_without(job_id, status.dependency)].append(listed_id.partition("_[")[0])
    return [
        ["scontrol", *options, "update", f"JobId={','.join(jobs[i : i + _AT_ONCE])}", dependency]
        for dependency, jobs in groups.items()
        for i in range(0, len(jobs), _AT_ONCE)
    ]


def _without(job_id: str, dependency: str) -> str:
    """Render a job's dependencies for scontrol, without that on the success of another job."""
    parts = re.sub(r"\([^)]*\)", "", dependency).split(",")
    return f"Dependency={','.join(part for part in parts if part != f'afterok:{job_id}')}"
