"""Leases and tasks of another host, whose jobs only the scheduler knows.

A namespace with its own host name stands in for the other host.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from killing import kill_at_once
from site_under_test import Site
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.emulator.client import Control
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.sandbox.layout import find_programs

pytestmark = [pytest.mark.slurm, pytest.mark.root]

ELSEWHERE = "unshare --uts sh -c 'hostname n9 && exec \"$@\"' sh"
HOLD = f"exec {ELSEWHERE} {sys.executable} -m qrmi_workflows lease exec --qpu ibm_fez -- sleep 60"
REQUEST = ("--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1")


@pytest.fixture
def user(
    in_sandbox: Sandbox, shared_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Site:
    """A user with an empty state folder, outside of any job."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return shared_site


@pytest.fixture
def sessions(user: Site) -> Callable[[], int]:
    """Count the open sessions of ibm_fez."""
    control = Control(Path(os.environ["QPU_CONFIG"]).parent)
    return lambda: control.counters()["qpus"]["ibm_fez"]["sessions"]["open"]


def crash(user: Site, job: int) -> None:
    """Kill all processes of a job at once, as the crash of its node does."""
    wait_until(lambda: bool(list(open_leases())), "the lease's record")
    doomed = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environ = process.environ()
            if environ.get("SLURM_JOB_ID") == str(job) and "QPU_STATE" in environ:
                doomed.append(process)
    kill_at_once(doomed)
    wait_until(lambda: user.states().get(job) in ("FAILED", "COMPLETED"), f"the end of job {job}")


def test_the_next_lease_reaps_that_of_a_crashed_job_on_another_host(user, sessions):
    """The lease of a running job is left alone."""
    job = user.submit(HOLD, *REQUEST)
    wait_until(lambda: sessions() == 1, "a session")
    assert reap() == []
    crash(user, job)
    (left,) = open_leases()
    assert (left.owner.host, left.owner.job, left.owner.is_alive()) == ("n9", str(job), None)
    assert sessions() == 1

    with open_lease("FRESNEL"):
        assert sessions() == 0

    assert list(open_leases()) == []


def test_a_running_job_of_an_array_on_another_host_keeps_its_lease(user, sessions):
    """squeue shows a job of an array under the array's id, not under its own."""
    job = user.submit(HOLD, *REQUEST, "--array=7")
    wait_until(lambda: bool(list(open_leases())), "the lease's record")
    (held,) = open_leases()
    assert held.owner.host == "n9"

    assert reap() == []
    assert sessions() == 1

    user.slurm("scancel", str(job))
    wait_until(lambda: sessions() == 0, "the release")


def test_a_silent_scheduler_costs_bounded_time_and_one_line(
    user, sessions, monkeypatch, tmp_path, caplog
):
    job = user.submit(HOLD, *REQUEST)
    wait_until(lambda: sessions() == 1, "a session")
    crash(user, job)
    text = Path(os.environ["SLURM_CONF"]).read_text()
    real = find_programs().clients["squeue"].parent
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        conf = tmp_path / "slurm.conf"
        conf.write_text(re.sub(r"(?m)^SlurmctldPort=.*$", f"SlurmctldPort={port}", text))
        with monkeypatch.context() as patch:
            patch.setenv("SLURM_CONF", str(conf))
            patch.setenv("PATH", str(real))  # not the sandbox's wrappers
            before = time.monotonic()
            for _ in range(2):
                with open_lease("FRESNEL"):
                    pass
            took = time.monotonic() - before

    messages = [
        line for line in caplog.messages if "cannot tell whether jobs on other hosts" in line
    ]
    assert len(messages) == 1, "the second does not ask: the first has just done so"
    assert took < 30
    assert sessions() == 1
    assert [one.released for one in reap()] == [True]


def test_without_a_scheduler_leases_of_other_hosts_are_left_alone(
    user, sessions, monkeypatch, caplog
):
    job = user.submit(HOLD, *REQUEST)
    wait_until(lambda: sessions() == 1, "a session")
    crash(user, job)

    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert shutil.which("squeue") is None
        assert reap() == []

    assert caplog.messages == []
    assert [one.released for one in reap()] == [True]


CLAIM = """
import sys
from qrmi_workflows.journal.journal import Journal
entry, _ = Journal().step("s").claim("d" * 64, qpu="q", program="sampler")
entry.submitted("task")
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_lock_that_outlives_its_job_does_not_hold_its_task(user):
    """A file server may keep the lock of a crashed host; the scheduler knows that the job ended."""
    job = user.submit("sleep 60")
    user.wait_for(job, "RUNNING")
    claim = ["unshare", "--uts", "sh", "-c", 'hostname n9 && exec "$@"', "sh"]
    holder = subprocess.Popen(
        [*claim, sys.executable, "-c", CLAIM],
        env={**os.environ, "SLURM_JOB_ID": str(job)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        _, before = Journal().step("s").claim("d" * 64, qpu="q", program="sampler")
        assert before is None, "the running job holds the task"

        user.slurm("scancel", str(job))
        wait_until(lambda: user.states()[job] == "CANCELLED", "the job's end")

        _, before = Journal().step("s").claim("d" * 64, qpu="q", program="sampler")
        assert before.task_id == "task"
    finally:
        holder.kill()
        holder.communicate()
