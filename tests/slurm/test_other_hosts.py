"""What another host has left behind: only the scheduler can tell that its jobs have ended.

A namespace with a host name of its own stands for the other host.
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


@pytest.fixture
def user(
    in_sandbox: Sandbox, shared_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Site:
    """A user with a state folder of his own, on a host that is in no job."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    return shared_site


@pytest.fixture
def sessions(user: Site) -> Callable[[], int]:
    """Count the open sessions of ibm_fez."""
    control = Control(Path(os.environ["QPU_CONFIG"]).parent)
    return lambda: control.counters()["qpus"]["ibm_fez"]["sessions"]["open"]


def kill_all_of(user: Site, job: int) -> None:
    """Kill a job as the end of its node does: nothing of it can release anything."""
    wait_until(lambda: bool(list(open_leases())), "the lease's record")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environ = process.environ()
            if environ.get("SLURM_JOB_ID") == str(job) and "QPU_STATE" in environ:
                process.kill()
    wait_until(lambda: user.states().get(job) in ("FAILED", "COMPLETED"), f"the end of job {job}")


def test_the_next_lease_releases_what_a_job_on_another_host_left(user, sessions):
    """It asks the scheduler once, and leaves alone what lives."""
    job = user.submit(HOLD)
    wait_until(lambda: sessions() == 1, "a session")
    assert reap() == []
    kill_all_of(user, job)
    (left,) = open_leases()
    assert (left.owner.host, left.owner.job, left.owner.is_alive()) == ("n9", str(job), None)
    assert sessions() == 1

    with open_lease("FRESNEL"):
        assert sessions() == 0

    assert list(open_leases()) == []


def test_a_task_of_a_job_array_on_another_host_lives(user, sessions):
    """Its id is not the one that squeue shows first."""
    array = user.submit(HOLD, "--array=7")
    wait_until(lambda: bool(list(open_leases())), "the lease's record")
    (held,) = open_leases()
    assert held.owner.host == "n9"

    assert reap() == []
    assert sessions() == 1

    user.slurm("scancel", str(array))
    wait_until(lambda: sessions() == 0, "the release")


def test_a_scheduler_that_is_silent_costs_a_bounded_time_and_one_line(
    user, sessions, monkeypatch, tmp_path, caplog
):
    job = user.submit(HOLD)
    wait_until(lambda: sessions() == 1, "a session")
    kill_all_of(user, job)
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

    said = [line for line in caplog.messages if "cannot tell whether jobs on other hosts" in line]
    assert len(said) == 1, "the second asks nobody: the first has just done so"
    assert took < 30
    assert sessions() == 1
    assert [one.released for one in reap()] == [True]


def test_where_there_is_no_scheduler_other_hosts_leases_are_left_alone(
    user, sessions, monkeypatch, caplog
):
    job = user.submit(HOLD)
    wait_until(lambda: sessions() == 1, "a session")
    kill_all_of(user, job)

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


def test_a_lock_that_outlives_its_host_holds_no_task(user):
    """A file server may keep the lock of a host that died; the scheduler knows of the job's end."""
    job = user.submit("sleep 60")
    user.wait_for(job, "RUNNING")
    claim = ["unshare", "--uts", "sh", "-c", 'hostname n9 && exec "$@"', "sh"]
    undying = subprocess.Popen(
        [*claim, sys.executable, "-c", CLAIM],
        env={**os.environ, "SLURM_JOB_ID": str(job)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert undying.stdout.readline() == b"held\n"
        _, before = Journal().step("s").claim("d" * 64, qpu="q", program="sampler")
        assert before is None, "while the job lives, the task is its own"

        user.slurm("scancel", str(job))
        wait_until(lambda: user.states()[job] == "CANCELLED", "the job's end")

        _, before = Journal().step("s").claim("d" * 64, qpu="q", program="sampler")
        assert before.task_id == "task"
    finally:
        undying.kill()
        undying.communicate()
