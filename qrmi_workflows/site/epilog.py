"""Slurm's Epilog: release the QPUs of a job, however it ended.

It runs as root on each node of a job, once the job's processes have ended there; the node that
acquired releases. It exits with 0 in any case: otherwise Slurm would drain the node. What could not
be released is left to `qpu reap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from qrmi_workflows.schedulers.slurm_scripts import ScriptJob
from qrmi_workflows.site.job_folder import JobFolder, forget_ended_runs
from qrmi_workflows.site.scripts import SitePaths, note, run_script

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the Epilog."""
    run_script("epilog", _epilog, argv)


def _epilog(job: ScriptJob, paths: SitePaths) -> None:
    folder = JobFolder(paths.state, job.id)
    if folder.node != job.node:  # another node acquired, or nobody did
        return
    from qrmi_workflows.site.job_end import end_job  # QRMI's client, which other jobs do not need

    for ended in end_job(paths.state, job.id, uid=job.uid):
        if ended.error:
            note(f"lease {ended.lease} of job {job.id} is still open: {ended.error}")
    forget_ended_runs(paths.state)


if __name__ == "__main__":
    main()
