"""A second scheduler, in one file and one entry point: each job is a process on this host.

Its "cluster" is the folder $TOY_FOLDER, with one file for each job: state, pid and name. This file
is also its commands: `python toy_scheduler.py submit|list|cancel …`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.schedulers.base import JobState, JobStatus, QPURequest, RunningJob
from qrmi_workflows.schedulers.command import (
    BRIEF_TIMEOUT,
    COMMAND_TIMEOUT,
    require_success,
    run_command,
)
from qrmi_workflows.state.process import JobIdentity

KILL_WAIT = 20.0


class Toy:
    """The hooks (see `qrmi_workflows.schedulers.base.Scheduler`)."""

    name = "toy"
    request_options = ("qpu",)

    def this_job(self, environ: Mapping[str, str]) -> JobIdentity | None:
        job_id = environ.get("TOY_JOB")
        return JobIdentity(id=job_id) if job_id else None

    def check_offered(self, request: QPURequest, site: SitePolicy) -> None:
        site.qpu(request.qpu)

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        policy = site.qpu(request.qpu)
        others = [f"{name}={value}" for name, value in policy.options.items()]
        return [f"qpu={policy.name}", *others]

    def granted_qpus(
        self, site: SitePolicy, environ: Mapping[str, str], *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        return site.qpus.keys() & {environ.get("TOY_QPU")}

    def name_options(self, name: str, *, stdout: Path, stderr: Path) -> list[str]:
        return [f"name={name}", f"stdout={stdout}", f"stderr={stderr}"]

    def directive(self, option: str) -> str:
        return f"#TOY {option}"

    def submit_argv(self, script: Path) -> list[str]:
        return [sys.executable, __file__, "submit", str(script)]

    def parse_job_id(self, output: str) -> str | None:
        return output.strip() or None

    def status_argv(self, *, name: str | None = None) -> list[str]:
        return [sys.executable, __file__, "list", *([name] if name else [])]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        rows = (line.split(" ", 2) for line in output.splitlines())
        return {
            job_id: JobStatus(state=JobState(state), job_id=job_id, name=name)
            for job_id, state, name in rows
        }

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        return None

    def cancel_argv(self, job_ids: Iterable[str]) -> list[str]:
        return [sys.executable, __file__, "cancel", *job_ids]

    def live_jobs(
        self, cluster: str | None = None, *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        done = require_success(run_command(self.status_argv(), timeout=timeout))
        listed = self.parse_status(done.stdout)
        return {job_id for job_id, job in listed.items() if job.state.may_have_processes}

    def running_job(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> RunningJob | None:
        return None

    def queue_wait(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        return 1.5

    def kill_wait(self, *, timeout: float = BRIEF_TIMEOUT) -> float | None:
        return KILL_WAIT


def submit(script: str) -> None:
    """Start a job and print its id."""
    options = dict(
        line.removeprefix("#TOY ").partition("=")[::2]
        for line in Path(script).read_text().splitlines()
        if line.startswith("#TOY ")
    )
    job_id = f"toy-{time.monotonic_ns()}"
    supervisor = [sys.executable, __file__, "run", job_id, script, options.get("name", "job")]
    supervisor.append(options.get("qpu", ""))
    with (
        Path(options.get("stdout", os.devnull)).open("a") as stdout,
        Path(options.get("stderr", os.devnull)).open("a") as stderr,
    ):
        subprocess.Popen(supervisor, start_new_session=True, stdout=stdout, stderr=stderr)
    print(job_id)


def run(job_id: str, script: str, name: str, qpu: str) -> None:
    """Run a job to its end, and record its states."""
    environ = {**os.environ, "TOY_JOB": job_id, "TOY_QPU": qpu}
    job = subprocess.Popen(["bash", script], env=environ, start_new_session=True)
    record(job_id, "running", job.pid, name)
    code = job.wait()
    record(job_id, "completed" if code == 0 else "failed", job.pid, name)


def record(job_id: str, state: str, pid: int, name: str) -> None:
    file = folder() / job_id
    part = file.with_suffix(".part")
    part.write_text(f"{state} {pid} {name}")
    part.rename(file)


def list_jobs(*names: str) -> None:
    """Print each job's id, state and name."""
    for file in folder().glob("toy-*[0-9]"):
        state, _, name = file.read_text().split(" ", 2)
        if not names or name in names:
            print(file.name, state, name)


def cancel(*job_ids: str) -> None:
    """End jobs by SIGTERM; this toy leaves it at that."""
    for job_id in job_ids:
        state, pid, _ = (folder() / job_id).read_text().split(" ", 2)
        if state == "running":
            os.killpg(int(pid), signal.SIGTERM)


def folder() -> Path:
    return Path(os.environ["TOY_FOLDER"])


if __name__ == "__main__":
    commands = {"submit": submit, "run": run, "list": list_jobs, "cancel": cancel}
    commands[sys.argv[1]](*sys.argv[2:])
