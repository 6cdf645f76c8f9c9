"""Names that the executor derives from a Snakemake job: of its step, comment, marker and logs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.utils import get_job_wildcards

__all__ = ["cluster_of", "job_comment", "log_folder_name", "marker_name", "step_name"]


def step_name(job: Any) -> str:
    """Name the step whose tasks the job journals: unique, and the same in every run."""
    # In snakemake 9.27.1 a group's jobid is the UUID of its last job, made of rule and wildcards. A
    # single job's jobid is a number, and depends on the order in which a run builds its DAG.
    unique = job.jobid if job.is_group() else job.uuid()
    return f"snakemake {job.name} {unique} in {Path.cwd()}"


def job_comment(job: Any) -> str:
    """Describe a job as the stock executor does, and uniquely among the jobs of a run."""
    wildcards = get_job_wildcards(job)
    described = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
    # Other characters would break the output of squeue, in which the job is found by its comment.
    return re.sub(r"[^\w.,=+@%/-]", "_", f"{described}_job_{marker_name(job)}")


def marker_name(job: Any) -> str:
    """Name a job's completion marker: each attempt of a job has its own."""
    return f"{job.jobid}-{job.attempt}"


def log_folder_name(job: Any) -> str:
    """Name the folder for the logs of jobs with the same wildcards.

    Two jobs may share a folder: the log file is named after the Slurm job's id.
    """
    # sbatch(1) expands `%` in --output, and a backslash turns that off for the whole path.
    return re.sub(r"[%\\\n]", "_", get_job_wildcards(job))[:100]


def cluster_of(job: Any) -> Any:
    """Return the cluster that the job's resources name, or `None`."""
    # In the order of snakemake-executor-plugin-slurm 2.8.0 (`get_submit_command`).
    names = (job.resources.get(name) for name in ("cluster", "clusters", "slurm_cluster"))
    return next((name for name in names if name), None)
