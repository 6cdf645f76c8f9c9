"""Names that the executor derives from a Snakemake job: of its step, comment, marker and logs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.utils import get_job_wildcards

__all__ = [
    "cluster_of",
    "comment_stem",
    "job_comment",
    "log_folder",
    "log_folder_name",
    "log_root",
    "marker_name",
    "output_pattern",
    "step_name",
]

_MAX_STEM_BYTES = 400
"""Slurm refuses a comment of more than 1024 bytes (`_test_job_desc_fields` in 22.05)."""

_MAX_FOLDER_BYTES = 100


def step_name(job: Any) -> str:
    """Name the step whose tasks the job journals: unique, and the same in every run."""
    # In snakemake 9.27.1 a group's jobid is the UUID of its last job, made of rule and wildcards. A
    # single job's jobid is a number, and depends on the order in which a run builds its DAG.
    unique = job.jobid if job.is_group() else job.uuid()
    return f"snakemake {job.name} {unique} in {Path.cwd()}"


def job_comment(job: Any) -> str:
    """Describe a job as the stock executor does, and uniquely among the jobs of a run."""
    return f"{comment_stem(job)}_job_{marker_name(job)}"


def comment_stem(job: Any) -> str:
    """Return what the comments of all attempts at a job start with, in every run."""
    wildcards = get_job_wildcards(job)
    described = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
    # Other characters would break the output of squeue, in which the job is found by its comment.
    return _shorten(re.sub(r"[^\w.,=+@%/-]", "_", described), _MAX_STEM_BYTES)


def marker_name(job: Any) -> str:
    """Name a job's completion marker: each attempt of a job has its own."""
    return f"{job.jobid}-{job.attempt}"


def log_folder_name(job: Any) -> str:
    """Name the folder for the logs of jobs with the same wildcards.

    Two jobs may share a folder: the log file is named after the Slurm job's id.
    """
    # A backslash turns off the replacements of sbatch(1) in the whole path.
    return _shorten(re.sub(r"[%\\\n]", "_", get_job_wildcards(job)), _MAX_FOLDER_BYTES)


def log_folder(root: Path, job: Any, wildcards: str) -> Path:
    """Return the folder of a job's logs, as the stock executor names it (`run_job`).

    Args:
        root: The folder of all logs.
        job: The job or group.
        wildcards: The name for the job's wildcards.
    """
    return root / f"{'group' if job.is_group() else 'rule'}_{job.name}" / wildcards


def log_root(folder: Path, workdir: str) -> Path:
    """Return the folder of all logs in a form that the stock executor does not refuse.

    It refuses a path that contains `%j`, which a relative one does not inherit from its parents.

    Args:
        folder: The folder, as an absolute path.
        workdir: The folder that jobs are started in.
    """
    is_relative = "%" in str(folder) and Path.cwd() == Path(workdir)
    return Path(os.path.relpath(folder)) if is_relative else folder


def output_pattern(folder: Path) -> str:
    """Return the argument of sbatch's `--output` for a log named after the job's id."""
    # Slurm replaces `%` in the whole path, and the job's folder too if the path is relative.
    # `scontrol show job` of 22.05 shows `%%` wrongly, but the file is the right one.
    return f"{str(folder.absolute()).replace('%', '%%')}/%j.log"


def _shorten(text: str, most: int) -> str:
    return os.fsencode(text)[:most].decode(errors="ignore")


def cluster_of(job: Any) -> Any:
    """Return the cluster that the job's resources name, or `None`."""
    # In the order of snakemake-executor-plugin-slurm 2.8.0 (`get_submit_command`).
    names = (job.resources.get(name) for name in ("cluster", "clusters", "slurm_cluster"))
    return next((name for name in names if name), None)
