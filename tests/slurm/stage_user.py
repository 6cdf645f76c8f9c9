"""A user who shares a lease between Slurm jobs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from site_under_test import Site, run
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.lease.stage import Stage, find_stage
from qrmi_workflows.stages.waiting_jobs import announce_jobs, submission_options

__all__ = ["QPU", "USE", "User"]

QPU = (sys.executable, "-m", "qrmi_workflows")
USE = f"{' '.join(QPU)} lease exec --stage vqe -- true"


class User:
    """A user with an empty state folder, outside of any job."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.control = Control(Path(os.environ["QPU_CONFIG"]).parent)
        self.log = site.work / "jobs.out"

    def qpu(self, *argv: str) -> str:
        """Run `qpu` and return its output."""
        done = run(*QPU, *argv, environ=dict(os.environ))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, stage: Stage, script: str = USE) -> int:
        """Submit a job of a stage."""
        job = self.site.submit(script, f"--output={self.log}", *submission_options(stage))
        announce_jobs(stage)
        return job

    def sessions(self) -> dict[str, int]:
        """Count the sessions of ibm_fez."""
        return self.control.counters()["qpus"]["ibm_fez"]["sessions"]

    def reason(self, job: int) -> str:
        """Return why a job is pending or has ended."""
        return self.site.show(job)["Reason"]

    def wait_for_end(self, name: str = "vqe") -> Stage:
        """Wait until a stage has ended and its lease is released."""
        wait_until(lambda: find_stage(name).is_ended, "the end of the stage")
        wait_until(lambda: list(open_leases()) == [], "the release of its lease")
        return find_stage(name)
