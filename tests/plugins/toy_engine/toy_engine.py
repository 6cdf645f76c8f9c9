"""A workflow engine in one file: it runs steps in order, each in a job that holds a QPU.

A step whose output exists is skipped, and one that failed or was killed finds its tasks when it is
run again.
"""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.config.job import without_leases
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.config.variables import QPU_KILL_WAIT, QPU_LANES, QPU_STEP
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.history import records_of_job
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.schedulers.base import JobState, QPURequest, Scheduler
from qrmi_workflows.schedulers.request import compile_request
from qrmi_workflows.schedulers.submission import JobMark, list_jobs, submit_job


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command that needs a QPU and writes one file."""

    qpu: str
    command: list[str]
    output: Path

    @property
    def name(self) -> str:
        return f"toy-engine {self.output.absolute()}"


def run_workflow(steps: Iterable[Step], folder: Path) -> None:
    """Run the steps whose output does not exist."""
    for step in steps:
        if not step.output.exists():
            run_step(step, folder)


def run_step(step: Step, folder: Path) -> None:
    """Run a step in a job of its own, whose script and logs are written to a folder."""
    scheduler = this_scheduler()
    mark = JobMark(name=f"toy.{uuid.uuid4().hex[:12]}")
    script = folder / f"{mark.name}.sh"
    script.write_text(job_script(step, scheduler, script))
    submitted = datetime.now(UTC)
    argv = scheduler.submit_argv(script)
    job_id = submit_job(scheduler, argv, mark, environ=without_leases())
    state = wait_for_end(scheduler, job_id, mark)
    for record in records_of_job(job_id, submitted):
        print(record.describe())
    if state is not JobState.COMPLETED or not step.output.exists():
        raise SystemExit(f"step {step.name!r} failed: job {job_id} is {state}; see {script}.err")
    Journal().archive(step.name)


def job_script(step: Step, scheduler: Scheduler, script: Path) -> str:
    """Render a job that asks for the step's QPU and runs its command under a lease."""
    site, request = load_site_policy(), QPURequest(qpu=step.qpu)
    scheduler.check_offered(request, site)
    stdout, stderr = Path(f"{script}.out"), Path(f"{script}.err")
    options = [
        *compile_request(request, site, scheduler),
        *scheduler.name_options(script.stem, stdout=stdout, stderr=stderr),
    ]
    directives = [scheduler.directive(option) for option in options]
    command = supervise(step, lanes=site.qpu(step.qpu).lanes, kill_wait=scheduler.kill_wait())
    return "\n".join(["#!/bin/bash", *directives, f"exec {shlex.join(command)}", ""])


def supervise(step: Step, *, lanes: int, kill_wait: float | None) -> list[str]:
    """Build the command that holds the lease while the step's command runs."""
    variables = {
        QPU_STEP: step.name,
        QPU_LANES: lanes,
        QPU_KILL_WAIT: "" if kill_wait is None else kill_wait,
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    lease = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--qpu", step.qpu]
    return ["env", *settings, *lease, "--", *step.command]


def wait_for_end(scheduler: Scheduler, job_id: str, mark: JobMark) -> JobState:
    """Poll a job until it has ended."""
    while True:
        listed = list_jobs(scheduler, scheduler.status_argv(name=mark.name))
        if job_id in listed and listed[job_id].state.is_final:
            return listed[job_id].state
        time.sleep(0.1)
