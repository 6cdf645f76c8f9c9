"""What is left when something is killed or deleted: it is found, repaired or ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from site_under_test import QPU, Site, run
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.sandbox.layout import Layout, find_programs, runtime_directories
from qrmi_workflows.sandbox.processes import find_daemons, name_of

pytestmark = pytest.mark.slurm

MakeSite = Callable[..., Site]

LEAVE = """\
sleep 2001 & echo $! >>pids
nohup setsid sleep 2002 >nohup.out & echo $! >>pids
env -i sh -c 'setsid sleep 2003 & echo $! >>pids'"""
"""Leave three processes behind; the last has cleared its environment."""


def is_alive(pid: int) -> bool:
    """Return whether a process is running."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(folder: Path) -> list[int]:
    """Return the processes that a job has left behind, as it has noted them."""
    pids = folder / "pids"
    return [int(line) for line in pids.read_text().split()] if pids.exists() else []


def delete(folder: Path) -> None:
    """Delete a folder of a running sandbox, whose daemons create files in it meanwhile."""

    def is_deleted() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(is_deleted, f"{folder} to be deleted")


def test_what_a_job_leaves_behind_ends_with_it(shared_site: Site) -> None:
    """As at a site with cgroups; the node goes on working."""
    job = shared_site.submit(LEAVE)
    shared_site.wait_for(job)

    assert len(left(shared_site.work)) == 3
    assert not any(map(is_alive, left(shared_site.work)))
    assert set(shared_site.slurm("sinfo", "--noheader", "--format=%T").split()) == {"idle"}


def test_what_a_job_leaves_behind_does_not_cost_another_job_its_processes(
    shared_site: Site,
) -> None:
    """A process that does not tell which job it belongs to waits for the last on its node."""
    other = shared_site.work / "other"
    other.mkdir()
    lasting = shared_site.submit(f"cd {other}; {LEAVE}; touch started; sleep 600", "--nodelist=n1")
    wait_until((other / "started").exists, "the other job to start")

    ending = shared_site.submit(LEAVE, "--nodelist=n1")
    shared_site.wait_for(ending)

    assert all(map(is_alive, left(other)))
    assert [is_alive(pid) for pid in left(shared_site.work)] == [False, False, True]
    shared_site.slurm("scancel", str(lasting))
    shared_site.wait_for(lasting, "CANCELLED")
    assert not any(map(is_alive, left(other) + left(shared_site.work)))


def test_down_ends_a_sandbox_whose_directory_was_deleted(site: Site) -> None:
    """`status` says so, and no other command works with it."""
    site.submit(f"{LEAVE}; touch started; sleep 600")
    wait_until((site.work / "started").exists, "the job to start")
    delete(site.box.directory)

    status, shell = site.qpu("status"), site.qpu("shell", "true")
    down, again = site.qpu("down"), site.qpu("down")

    assert status.returncode == 1
    assert "is broken: its directory was deleted while it was up." in status.stdout
    assert "its directory was deleted while it was up. Run `qpu sandbox up`" in shell.stderr
    assert down.stdout == f"The sandbox in {site.box.directory} is down.\n"
    assert again.stdout == f"The sandbox in {site.box.directory} is already down.\n"
    assert site.processes() == []
    assert not any(map(is_alive, left(site.work)))
    assert runtime_directories(Layout(site.box.directory)) == []
    assert not site.box.directory.exists()


def test_up_replaces_a_sandbox_whose_directory_was_deleted(site: Site) -> None:
    before = set(site.pids().values())
    delete(site.box.directory)

    done = site.qpu("up")

    assert done.returncode == 0, done.stderr
    assert not any(map(is_alive, before))
    assert daemons(site.box) == {"python3": 1, "munged": 1, "slurmctld": 1, "slurmd": 2}
    site.wait_for(site.submit("true"))


def test_up_repairs_a_sandbox_whose_runtime_directory_was_deleted(site: Site) -> None:
    """Some systems delete files in /tmp that are old."""
    (runtime,) = runtime_directories(Layout(site.box.directory))
    delete(runtime)
    assert f"is broken: its directory {runtime} was deleted." in site.qpu("status").stdout

    done = site.qpu("up")

    assert done.returncode == 0, done.stderr
    assert site.box.status().state == "up"
    site.wait_for(site.submit("true"))


def daemons(box: Sandbox) -> Counter[str]:
    """Count the daemons of a sandbox by the names of their programs."""
    names = (name_of(daemon) for daemon in find_daemons(Layout(box.directory)))
    return Counter("python3" if name.startswith("python") else name for name in names)


@pytest.mark.parametrize("last", ["emulator", "slurmctld"])
def test_an_up_that_was_killed_is_finished_by_the_next(tmp_path: Path, last: str) -> None:
    """No daemon runs twice, not even one that had started and was not recorded."""
    box = Sandbox(tmp_path / "box")
    argv = (*QPU, "up", "--dir", str(box.directory))
    log = Layout(box.directory).log(last)
    killed = subprocess.Popen(argv)
    try:
        wait_until(log.exists, f"{last} to start")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()

    done = run(*argv)
    try:
        assert done.returncode == 0, done.stderr
        assert box.status().state == "up"
        assert daemons(box) == {"python3": 1, "munged": 1, "slurmctld": 1, "slurmd": 2}
    finally:
        box.down(grace=0)
    assert find_daemons(Layout(box.directory)) == []
    assert runtime_directories(Layout(box.directory)) == []


def test_what_another_release_of_slurm_has_saved_is_not_read(site: Site) -> None:
    """slurmctld would exit. The new jobs have other ids than the old ones."""
    before = site.submit("true")
    site.box.down()
    saved = Layout(site.box.directory).controller_state
    (saved / "release").write_text("21.8")
    (saved / "clustername").write_text("one that slurmctld refuses")

    done = site.qpu("up")

    assert done.returncode == 0, done.stderr
    assert site.submit("true") > before + 1_000_000


@pytest.fixture
def one_node_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Slurm say of itself what one without --enable-multiple-slurmd says."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    real = find_programs().clients["scontrol"]
    scontrol.write_text(f'#!/bin/sh\n{real} "$@" | grep -v MULTIPLE_SLURMD\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("one_node_only")
def test_a_slurm_for_one_node_on_a_machine_gets_one_and_says_why(tmp_path: Path) -> None:
    """More are refused before a node starts, however they are asked for."""
    site = Site(Sandbox(tmp_path / "box"), tmp_path / "work")
    try:
        refused = site.qpu("up", "--nodes", "2")
        assert refused.returncode == 1
        assert refused.stderr.startswith("qpu: nodes=2: this Slurm was built without --enable-mult")
        assert site.processes() == []

        done = site.qpu("up")
        assert done.returncode == 0, done.stderr
        why = "It has one node: this Slurm was built without --enable-multiple-slurmd"
        assert why in done.stdout
        assert why in site.qpu("status").stdout
        assert daemons(site.box) == {"python3": 1, "munged": 1, "slurmctld": 1, "slurmd": 1}
        assert site.slurm("sinfo", "--noheader", "--format=%D %c %T").split() == ["1", "16", "idle"]
        assert "Leave out --nodes" in site.qpu("up", "--nodes", "2").stderr
        site.wait_for(site.submit("true", "--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1"))
    finally:
        site.box.down(grace=0)
