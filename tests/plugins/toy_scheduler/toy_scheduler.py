"""A second scheduler, in one file and one entry point: each job is a process on this host.

Its "cluster" is the folder $TOY_FOLDER, with one file for each job: state, pid and name. This file
is also its commands: `python toy_scheduler.py submit|list|cancel …`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import RequestError, SchedulerError
from qrmi_workflows.schedulers.admission import Admission
from qrmi_workflows.schedulers.base import (
    AccountQuery,
    Examination,
    JobAccount,
    JobLimits,
    JobState,
    JobStatus,
    JobTimes,
    QPURequest,
    RunningJob,
)
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

    def check_together(self, requests: Sequence[QPURequest], site: SitePolicy) -> None:
        raise RequestError("A job of this cluster has one QPU. Use a job for each.")

    def qpu_units(self, qpu: str, site: SitePolicy) -> int | None:
        return None

    def qpu_options(self, request: QPURequest, site: SitePolicy) -> list[str]:
        policy = site.qpu(request.qpu)
        others = [f"{name}={value}" for name, value in policy.options.items()]
        return [f"qpu={policy.name}", *others]

    def default_account(self) -> str | None:
        return None

    def granted_qpus(
        self, site: SitePolicy, environ: Mapping[str, str], *, timeout: float = COMMAND_TIMEOUT
    ) -> Mapping[str, int] | None:
        return dict.fromkeys(site.qpus.keys() & {environ.get("TOY_QPU")}, 1)

    def admission(self) -> Admission | None:
        return None

    def name_options(self, name: str, *, stdout: Path, stderr: Path) -> list[str]:
        return [f"name={name}", f"stdout={stdout}", f"stderr={stderr}"]

    def comment_options(self, comment: str) -> list[str]:
        return [f"comment={comment}"]

    def limit_options(self, limits: JobLimits) -> list[str]:
        return []

    def directive(self, option: str) -> str:
        return f"#TOY {option}"

    def submit_argv(self, script: Path) -> list[str]:
        return [sys.executable, __file__, "submit", str(script)]

    def parse_job_id(self, output: str) -> str | None:
        return output.strip() or None

    def status_argv(self, *, name: str | None = None) -> list[str]:
        return [sys.executable, __file__, "list", *([name] if name else [])]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        rows = (line.split("\t") for line in output.splitlines())
        return {
            job_id: JobStatus(
                state=JobState(state), job_id=job_id, name=name, comment=comment, dependency=waits
            )
            for job_id, state, name, comment, waits in rows
        }

    def history_argv(self, job_ids: Iterable[str]) -> list[str] | None:
        return None

    def cancel_argv(self, job_ids: Iterable[str]) -> list[str]:
        return [sys.executable, __file__, "cancel", *job_ids]

    def after_options(self, job_ids: Iterable[str]) -> list[str]:
        return [f"after={','.join(job_ids)}"]

    def waiting_options(self, job_id: str, after: Iterable[str] = ()) -> list[str]:
        return [f"wait={job_id}", *self.after_options(after)]

    def is_waiting(self, status: JobStatus, job_id: str) -> bool:
        return status.state is JobState.PENDING and status.dependency == job_id

    def release_argvs(self, listed: Mapping[str, JobStatus], job_id: str) -> list[list[str]]:
        waiting = [id_ for id_, status in listed.items() if self.is_waiting(status, job_id)]
        return [[sys.executable, __file__, "release", *waiting]] if waiting else []

    def examine(self, site: SitePolicy | None, *, timeout: float = COMMAND_TIMEOUT) -> Examination:
        return Examination(findings=(Finding.ok("toy", f"its folder is {folder()}"),))

    def propose_policy(
        self, qpus: Iterable[str], *, timeout: float = COMMAND_TIMEOUT
    ) -> Mapping[str, Mapping[str, object]]:
        return {qpu: {"options": {"queue": "quantum-{qpu}"}} for qpu in qpus}

    def live_jobs(
        self, cluster: str | None = None, *, timeout: float = COMMAND_TIMEOUT
    ) -> set[str] | None:
        done = require_success(run_command(self.status_argv(), timeout=timeout))
        listed = self.parse_status(done.stdout)
        return {job_id for job_id, job in listed.items() if job.state.may_have_processes}

    def this_cluster(self, *, timeout: float = COMMAND_TIMEOUT) -> str | None:
        return None

    def running_job(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> RunningJob | None:
        return None

    def job_times(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> JobTimes | None:
        return JobTimes(created=1000.0, started=1001.5)

    def job_accounts(self, query: AccountQuery, site: SitePolicy) -> list[JobAccount]:
        raise SchedulerError("the toy scheduler keeps no accounts.")

    def account_members(
        self, account: str, *, timeout: float = BRIEF_TIMEOUT
    ) -> frozenset[str] | None:
        return None  # it has no accounts

    def restarts(self, job_id: str, *, timeout: float = BRIEF_TIMEOUT) -> int | None:
        return 0  # it never requeues a job

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
    record(job_id, "pending", 0, options)
    with (
        Path(options.get("stdout", os.devnull)).open("a") as stdout,
        Path(options.get("stderr", os.devnull)).open("a") as stderr,
    ):
        subprocess.Popen(
            [sys.executable, __file__, "run", job_id, script, json.dumps(options)],
            start_new_session=True,
            stdout=stdout,
            stderr=stderr,
        )
    print(job_id)


def run(job_id: str, script: str, encoded: str) -> None:
    """Run a job to its end, and record its states."""
    options = json.loads(encoded)
    while waits(options):
        if state_of(job_id) == "cancelled":
            return
        if state_of(options.get("wait", "")) in ("failed", "cancelled"):
            record(job_id, "cancelled", 0, options)
            return
        if (folder() / f"{job_id}.released").exists():
            options.pop("wait", None)
        time.sleep(0.05)
    environ = {**os.environ, "TOY_JOB": job_id, "TOY_QPU": options.get("qpu", "")}
    job = subprocess.Popen(["bash", script], env=environ, start_new_session=True)
    record(job_id, "running", job.pid, options)
    code = job.wait()
    record(job_id, "completed" if code == 0 else "failed", job.pid, options)


def waits(options: dict[str, str]) -> bool:
    """Return whether a job must not start yet."""
    after = filter(None, options.get("after", "").split(","))
    return "wait" in options or any(state_of(job) in ("pending", "running") for job in after)


def state_of(job_id: str) -> str:
    file = folder() / job_id
    return file.read_text().split("\t")[0] if job_id and file.exists() else ""


def record(job_id: str, state: str, pid: int, options: dict[str, str]) -> None:
    file = folder() / job_id
    part = file.with_suffix(".part")
    shown = (options.get(key, "") for key in ("name", "comment", "wait"))
    part.write_text("\t".join([state, str(pid), *shown]))
    part.rename(file)


def list_jobs(*names: str) -> None:
    """Print each job's id, state, name, comment and the job that it waits for."""
    for file in folder().glob("toy-*[0-9]"):
        state, _, name, comment, waits_for = file.read_text().split("\t")
        if not names or name in names:
            print(file.name, state, name, comment, waits_for, sep="\t")


def release(*job_ids: str) -> None:
    """Let jobs start that wait for another one."""
    for job_id in job_ids:
        (folder() / f"{job_id}.released").touch()


def cancel(*job_ids: str) -> None:
    """End jobs by SIGTERM; this toy leaves it at that."""
    for job_id in job_ids:
        state, pid, name, comment, waits_for = (folder() / job_id).read_text().split("\t")
        if state == "running":
            os.killpg(int(pid), signal.SIGTERM)
        elif state == "pending":
            options = {"name": name, "comment": comment, "wait": waits_for}
            record(job_id, "cancelled", 0, options)


def folder() -> Path:
    return Path(os.environ["TOY_FOLDER"])


if __name__ == "__main__":
    commands = {"submit": submit, "run": run, "list": list_jobs, "cancel": cancel}
    commands["release"] = release
    commands[sys.argv[1]](*sys.argv[2:])
