"""Leases in real Slurm jobs: however a job ends, its lease does not outlive it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from job_times import start_again
from killing import kill_at_once
from waiting import WAIT_SECONDS, wait_until

from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.emulator.client import Control
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import require_success, run_command
from qrmi_workflows.schedulers.gres import gres_of_job
from qrmi_workflows.schedulers.slurm_options import qpu_options

pytestmark = pytest.mark.slurm

QPU = f"{sys.executable} -m qrmi_workflows"
PROGRAM = """OPENQASM 3.0;
include "stdgates.inc";
bit[1] meas;
x $0;
meas[0] = measure $0;
"""


@pytest.fixture
def submit(in_sandbox: Sandbox, tmp_path: Path) -> Callable[..., str]:
    """Submit a script that requests ibm_fez; return the job's id."""
    options = qpu_options(QPURequest(qpu="ibm_fez"), load_site_policy().qpu("ibm_fez"))

    def submit(body: str, *more: str) -> str:
        script = tmp_path / "job.sh"
        script.write_text(f"#!/bin/bash\n{body}\n")
        output = f"--output={tmp_path}/%j.out"
        argv = ["sbatch", "--parsable", output, *options, *more, str(script)]
        return require_success(run_command(argv)).stdout.strip()

    return submit


@pytest.fixture
def sessions(in_sandbox: Sandbox) -> Callable[[], int]:
    """Count the open sessions of ibm_fez."""
    control = Control(Path(os.environ["QPU_CONFIG"]).parent)
    return lambda: control.counters()["qpus"]["ibm_fez"]["sessions"]["open"]


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """A file that `until` waits for; at the end of the test, nothing waits for it any more."""
    file = tmp_path / "go"
    yield file
    file.touch()


def until(file: Path) -> str:
    """Return a shell command that waits for a file."""
    return f"until [ -e {file} ]; do sleep 0.1; done"


def show(job: str) -> str:
    return require_success(run_command(["scontrol", "show", "job", job])).stdout


def wait_for_end(job: str, seconds: float = 60) -> str:
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    wait_until(lambda: gres_of_job(show(job))["state"] in ended, f"the end of job {job}", seconds)
    return gres_of_job(show(job))["state"]


def processes_of(job: str) -> list[psutil.Process]:
    """Return the processes of a job, without slurmstepd."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environ = process.environ()
            here = environ.get("QPU_SANDBOX") == os.environ["QPU_SANDBOX"]
            if here and environ.get("SLURM_JOB_ID") == job:
                found.append(process)
    return found


def test_a_job_holds_gres_licence_and_lease(submit, sessions, go, tmp_path):
    body = f"{QPU} lease exec --qpu ibm_fez -- sh -c 'env > {tmp_path}/env; {until(go)}'"
    job = submit(body, "--time=5")
    wait_until(lambda: sessions() == 1, "a session")

    held = gres_of_job(show(job))
    go.touch()

    assert (held["gres"], held["licences"]) == ("qpu:ibm_fez:1", "qpu_ibm_fez:1")
    assert wait_for_end(job) == "COMPLETED"
    assert sessions() == 0
    seen = (tmp_path / "env").read_text()
    for name in ("QRMI_JOB_QPU_RESOURCES", "SLURM_JOB_QPU_RESOURCES"):
        assert f"\n{name}=ibm_fez\n" in f"\n{seen}"
    for name in ("QRMI_JOB_QPU_TYPES", "SLURM_JOB_QPU_TYPES"):
        assert f"\n{name}=ibm-quantum-compute-service\n" in f"\n{seen}"
    assert f"QRMI_JOB_ID={job}" in seen
    assert f"QRMI_JOB_UID={os.getuid()}" in seen
    assert "ibm_fez_QRMI_JOB_TIMEOUT_SECONDS=300" in seen


def test_a_job_that_holds_several_qpus_must_name_one(in_sandbox, tmp_path):
    """Without a name, each command lists those that the job holds."""
    (tmp_path / "circuit.qasm").write_text(PROGRAM)
    run = f"{QPU} run {tmp_path}/circuit.qasm --shots 5 -o {tmp_path}/result.json"
    lines = [f"{QPU} lease exec -- true", "echo exec $?", run, "echo run $?"]
    (tmp_path / "job.sh").write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    holds = ["--gres=qpu:ibm_fez:1,qpu:FRESNEL:1", "--licenses=qpu_ibm_fez:1,qpu_FRESNEL:1"]
    argv = ["sbatch", "--wait", f"--output={tmp_path}/out", *holds, str(tmp_path / "job.sh")]

    require_success(run_command(argv, timeout=WAIT_SECONDS))

    shown = (tmp_path / "out").read_text()
    assert shown.count("no QPU named, and this job was granted 2: FRESNEL, ibm_fez. Name one") == 2
    assert "exec 2\n" in shown
    assert "run 2\n" in shown


def test_a_job_uses_only_the_qpu_that_it_holds(submit, sessions, tmp_path):
    other = f"{QPU} lease exec --qpu FRESNEL -- true"
    own = f"{QPU} lease exec -- sh -c 'echo $QRMI_JOB_QPU_RESOURCES'"
    nested = f"{QPU} lease exec --qpu ibm_fez -- true; echo nested $?"
    inner = f"sbatch --wait --output={tmp_path}/inner --wrap '{nested}'"

    job = submit(f"{own}\n{other}\necho other $?\n{inner}")

    ended, shown = wait_for_end(job, WAIT_SECONDS), (tmp_path / f"{job}.out").read_text()
    assert ended == "COMPLETED", shown
    assert shown.startswith("ibm_fez\n")
    assert (
        f"QPU 'FRESNEL' was not granted to job {job}, which holds ibm_fez. Submit the job with"
        in shown
    )
    assert "`--gres=qpu:FRESNEL:1 --licenses=qpu_FRESNEL:1`" in shown
    assert "other 2\n" in shown
    assert (tmp_path / "inner").read_text().endswith("nested 2\n")
    assert sessions() == 0


def test_payloads_of_a_job_share_a_task_if_its_script_says_so(submit, tmp_path):
    (tmp_path / "circuit.qasm").write_text(PROGRAM)
    program = f"""
from qrmi_workflows import open_lease

with open_lease() as lease:
    results = lease.map(["{tmp_path}/circuit.qasm"] * 3, shots=5)
    print(len({{result.task_id for result in results}}), "task")
"""
    (tmp_path / "program.py").write_text(program)
    job = submit(
        f"export QPU_COALESCE=1\n{QPU} lease exec -- {sys.executable} {tmp_path}/program.py"
    )

    ended, shown = wait_for_end(job), (tmp_path / f"{job}.out").read_text()
    assert ended == "COMPLETED", shown
    assert shown == "1 task\n"


def test_a_job_needs_no_option_for_an_emulated_qpu(in_sandbox, tmp_path):
    (tmp_path / "circuit.qasm").write_text(PROGRAM)
    result = tmp_path / "result.json"
    run = f"{QPU} run {tmp_path}/circuit.qasm --shots 5 -o {result} --qpu emulated:fez"
    (tmp_path / "job.sh").write_text(f"#!/bin/bash\n{run}\n")
    argv = ["sbatch", "--wait", f"--output={tmp_path}/out", str(tmp_path / "job.sh")]

    done = run_command(argv, timeout=WAIT_SECONDS)

    assert done.returncode == 0, (tmp_path / "out").read_text()
    assert json.loads(result.read_text())["qpu"] == "emulated:fez"


def test_the_command_sets_the_jobs_exit_code(submit):
    job = submit(f"{QPU} lease exec --qpu ibm_fez -- sh -c 'exit 7'")

    assert wait_for_end(job) == "FAILED"
    assert "ExitCode=7:0" in show(job)


def test_scancel_releases_the_lease_although_the_command_ignores_sigterm(submit, sessions):
    body = f"exec {QPU} lease exec --qpu ibm_fez --grace 1 -- sh -c \"trap '' TERM; sleep 600\""
    job = submit(body)
    wait_until(lambda: sessions() == 1, "a session")

    before = time.monotonic()
    require_success(run_command(["scancel", job]))
    wait_until(lambda: sessions() == 0, "the release")

    assert time.monotonic() - before < 30, "not because the command ended"
    assert wait_for_end(job) == "CANCELLED"


def test_qpu_reap_releases_the_lease_of_a_killed_job(submit, sessions):
    job = submit(f"exec {QPU} lease exec --qpu ibm_fez -- sleep 60")
    wait_until(lambda: bool(list(open_leases())), "the lease's record")
    kill_at_once(processes_of(job))  # as the kernel does when memory runs out
    wait_for_end(job)
    assert sessions() == 1

    done = run_command([sys.executable, "-m", "qrmi_workflows", "reap", "--json"])

    assert [one["released"] for one in json.loads(done.stdout)] == [True]
    assert sessions() == 0


@pytest.mark.parametrize("again", ["submitted", "requeued"])
def test_a_killed_job_that_is_run_again_waits_for_its_task(in_sandbox, submit, again, tmp_path):
    """SIGKILL reaches all of its processes, as when memory runs out: its lease stays open."""
    control = Control(Path(os.environ["QPU_CONFIG"]).parent)
    before = control.counters()["qpus"]["ibm_fez"]["tasks"]
    (tmp_path / "one.qasm").write_text(PROGRAM)
    command = f"exec {QPU} run {tmp_path}/one.qasm -o {tmp_path}/result.json --qpu ibm_fez"
    control.ask("PATCH", "/qpus/ibm_fez", {"availability": "paused"})
    try:
        job = submit(command, "--requeue")
        wait_until(
            lambda: (
                "submitted" in [r.state for r in Journal().records() if str(tmp_path) in r.step]
            ),
            "a task",
        )
        kill_at_once(processes_of(job))
        assert wait_for_end(job) == "FAILED"
        if again == "submitted":
            job = submit(command)
        else:
            require_success(run_command(["scontrol", "requeue", job]))
            start_again(job)

        wait_until(lambda: [each.taken_over for each in open_leases()] == [1], "the takeover")
    finally:
        control.ask("PATCH", "/qpus/ibm_fez", {"availability": "online"})

    assert wait_for_end(job) == "COMPLETED"
    after = control.counters()["qpus"]["ibm_fez"]
    done = {key: after["tasks"][key] - before[key] for key in ("accepted", "completed")}
    assert done == {"accepted": 1, "completed": 1}
    assert after["sessions"]["open"] == 0
    assert list(open_leases()) == []


def test_two_jobs_that_request_one_qpu_run_in_turn(submit, sessions, go):
    first = submit(f"exec {QPU} lease exec --qpu ibm_fez -- sh -c '{until(go)}'")
    second = submit(f"exec {QPU} lease exec --qpu ibm_fez -- true")
    wait_until(lambda: sessions() == 1, "a session")
    reason = re.compile("Reason=(Licenses|Resources|Priority)")
    wait_until(lambda: reason.search(show(second)), "Slurm to look at the second job")

    assert gres_of_job(show(second))["state"] == "PENDING"

    go.touch()
    assert {wait_for_end(first), wait_for_end(second)} == {"COMPLETED"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_time_limit_releases_the_lease_within_killwait(submit, sessions):
    body = f"exec {QPU} lease exec --qpu ibm_fez -- sh -c \"trap '' TERM; sleep 600\""
    job = submit(body, "--time=1")
    wait_until(lambda: sessions() == 1, "a session")

    wait_until(lambda: sessions() == 0, "the release", seconds=300)

    assert wait_for_end(job, seconds=60) == "TIMEOUT"


def test_others_can_see_no_credential_and_no_token(submit, go, tmp_path, in_sandbox):
    definition = load_qpus()["ibm_fez"]
    secrets = {value for key, value in definition.environment.items() if "APIKEY" in key}
    command = f"env > {tmp_path}/env; {until(go)}"
    job = submit(f"exec {QPU} lease exec --qpu ibm_fez -- sh -c '{command}'")
    wait_until((tmp_path / "env").exists, "the command")
    argv = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True)
    shown = show(job)
    go.touch()
    wait_for_end(job)
    environment = (tmp_path / "env").read_text()
    token = re.search(r"ibm_fez_QRMI_JOB_ACQUISITION_TOKEN=(\S+)", environment)
    assert token is not None
    secrets.add(token[1])

    script = run_command(["scontrol", "write", "batch_script", job, "-"]).stdout
    output = (tmp_path / f"{job}.out").read_text()
    logs = [file for file in (in_sandbox.directory / "log").rglob("*") if file.is_file()]
    texts = {"argv": argv.stdout, "job": shown, "script": script, "output": output}
    texts |= {str(file): file.read_text(errors="replace") for file in logs}

    found = [
        (place, secret) for place, text in texts.items() for secret in secrets if secret in text
    ]
    assert found == []
