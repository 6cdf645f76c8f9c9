"""The life cycle of a sandbox: up, partly killed, repaired, down."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from changing_files import read_if_there
from site_under_test import QPU, Site, run
from waiting import wait_until

from qrmi_workflows.errors import EmulatorError, SandboxError
from qrmi_workflows.sandbox import Sandbox

pytestmark = pytest.mark.slurm

MakeSite = Callable[..., Site]

# Ignores SIGTERM and leaves processes behind: one in its own session, one that has lost its parent,
# and one that has cleared its environment.
STUBBORN = r"""
trap '' TERM
setsid sleep 1001 & echo $! >>pids
(setsid sleep 1002 & echo $! >>pids)
env -i sh -c '(setsid sleep 1003 & echo $! >>pids)'
echo $$ >>pids
touch started
while :; do sleep 1; done
"""


@pytest.fixture(scope="module")
def repaired_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A sandbox whose daemons are killed and restarted, test after test."""
    folder = tmp_path_factory.mktemp("repaired")
    site = Site(Sandbox(folder / "site"), folder / "work")
    site.box.up()
    yield site
    site.box.down(grace=0)


def listening(ports: list[int]) -> set[str]:
    """Return the sockets that listen on these TCP ports, by the kernel's numbers (proc(5)).

    Another sandbox may take a port as soon as it is closed; its socket has another number.
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listens = "0A"
    return {
        row[9]
        for row in rows
        if row[3] == listens and int(row[1].partition(":")[2], base=16) in ports
    }


def is_alive(pid: int) -> bool:
    """Return whether a process is running."""
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(*pids: int) -> None:
    """Kill processes and wait until they have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):  # it may have ended with another one
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)), f"{pids} to end")


def test_up_in_seconds_and_down_without_a_trace(make_site: MakeSite) -> None:
    """No process of the sandbox or its jobs remains, no open port and no runtime directory."""
    begin = time.monotonic()
    site = make_site()
    assert time.monotonic() - begin < 60
    site.submit(STUBBORN)
    wait_until((site.work / "started").exists, "the job to start")
    jobs = [int(line) for line in (site.work / "pids").read_text().split()]
    daemons, ports = list(site.pids().values()), site.ports()
    sockets = listening(ports)
    assert len(jobs) == 4
    assert all(map(is_alive, [*jobs, *daemons]))
    assert len(sockets) == len(ports)
    runtime = Path(json.loads((site.box.directory / "sandbox.json").read_text())["runtime"])
    assert runtime.stat().st_mode & 0o777 == 0o700

    done = site.qpu("down", "--grace", "0.5")

    assert done.returncode == 0, done.stderr
    assert not any(map(is_alive, [*jobs, *daemons]))
    assert site.processes() == []
    assert not sockets & listening(ports)
    assert not runtime.exists()
    assert site.box.status().state == "down"


def test_jobs_have_time_to_end_on_their_own(site: Site) -> None:
    """`down` sends SIGTERM first, so that a job can release its lease while the emulator runs."""
    script = "trap 'sleep 0.5; touch tidied; exit' TERM; touch started; while :; do sleep 0.1; done"
    site.submit(script)
    wait_until((site.work / "started").exists, "the job to start")
    assert site.box.down() is True
    assert (site.work / "tidied").exists()


def test_a_second_up_says_that_it_is_already_up(shared_site: Site) -> None:
    """No daemon is started twice."""
    before = shared_site.pids()
    done = shared_site.qpu("up")
    assert done.returncode == 0
    assert "is already up" in done.stdout
    assert "qpu sandbox env" in done.stdout
    assert shared_site.pids() == before


def test_a_second_down_says_that_it_is_already_down(site: Site) -> None:
    """It succeeds anyway."""
    assert site.qpu("down").stdout == f"The sandbox in {site.box.directory} is down.\n"
    done = site.qpu("down")
    assert done.returncode == 0
    assert done.stdout == f"The sandbox in {site.box.directory} is already down.\n"


def test_a_sandbox_that_never_existed_is_down(tmp_path: Path) -> None:
    """No command but `up` creates its directory."""
    done = run(*QPU, "status", "--dir", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == f"The sandbox in {tmp_path / 'none'} is down.\n"
    assert not (tmp_path / "none").exists()
    assert run(*QPU, "down", "--dir", str(tmp_path / "none")).returncode == 0
    done = run(*QPU, "env", "--dir", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("is down. Run `qpu sandbox up`.\n")


def test_two_sandboxes_side_by_side(make_site: MakeSite) -> None:
    """Each has its own nodes, QPUs and jobs, and stopping one leaves the other alone."""
    one = make_site("one", nodes=1, qpus=["ibm_one=ibm-quantum-compute-service"])
    two = make_site("two", nodes=3)
    job = one.submit("sleep 100", "--gres=qpu:ibm_one:1")
    one.wait_for(job, "RUNNING")
    assert job not in two.states()
    assert one.slurm("sinfo", "--noheader", "--format=%D %G").split() == ["1", "qpu:ibm_one:1"]
    assert two.slurm("sinfo", "--noheader", "--format=%D").split() == ["3"]
    assert two.box.down() is True
    assert one.box.status().state == "up"
    assert one.states()[job] == "RUNNING"


@pytest.mark.parametrize("daemon", ["munged", "emulator", "slurmctld", "slurmd-n1"])
def test_a_killed_daemon_is_named_and_restarted(repaired_site: Site, daemon: str) -> None:
    """`status` names it, `up` starts only that one, and jobs and ports survive."""
    job = repaired_site.submit("sleep 300", "--nodelist=n1")
    repaired_site.wait_for(job, "RUNNING")
    if daemon == "slurmctld":
        wait_for_saved_state(repaired_site, job)
    before, ports = repaired_site.pids(), repaired_site.ports()
    kill(before[daemon])

    done = repaired_site.qpu("status")
    assert done.returncode == 1
    assert f"Restart {daemon} with `qpu sandbox up`" in done.stdout
    assert repaired_site.box.status().dead == (daemon,)

    done = repaired_site.qpu("up")
    assert done.returncode == 0, done.stderr
    assert f"up again: {daemon} restarted" in done.stdout
    after = repaired_site.pids()
    assert {name for name in after if after[name] != before[name]} == {daemon}
    assert repaired_site.ports() == ports
    assert repaired_site.states()[job] == "RUNNING"
    repaired_site.wait_for(repaired_site.submit("true", "--nodelist=n1"))


def test_all_daemons_killed_at_once_are_restarted(repaired_site: Site) -> None:
    """This is like a reboot, except that the running job survives; so does an edited site.toml."""
    policy = Path(repaired_site.box.environment()["QPU_SITE"])
    written = policy.read_text()
    policy.write_text(f"# edited\n{written}")
    job = repaired_site.submit("touch started; while [ ! -e go ]; do sleep 0.1; done; touch ended")
    wait_until((repaired_site.work / "started").exists, "the job to start")
    wait_for_saved_state(repaired_site, job)
    kill(*repaired_site.pids().values())
    assert len(repaired_site.box.status().dead) == 5
    assert len(repaired_site.box.up()) == 5
    assert policy.read_text() == f"# edited\n{written}"
    assert repaired_site.states()[job] == "RUNNING"
    (repaired_site.work / "go").touch()
    repaired_site.wait_for(job)
    assert (repaired_site.work / "ended").exists()


def wait_for_saved_state(site: Site, job: int) -> None:
    """Wait until slurmctld has saved a job's state, which takes up to 6 seconds."""
    comment = f"changed-{time.monotonic_ns()}"
    site.slurm("scontrol", "update", f"JobId={job}", f"Comment={comment}")
    saved = site.box.directory / "slurmctld" / "job_state"
    wait_until(lambda: comment.encode() in read_if_there(saved), "slurmctld to save")


def test_the_emulator_keeps_its_state_when_it_is_killed(repaired_site: Site) -> None:
    """It comes back on the same port with the same credentials."""
    config = repaired_site.box.environment()["QPU_CONFIG"]
    before = Path(config).read_text()
    kill(repaired_site.pids()["emulator"])
    repaired_site.box.up()
    assert Path(config).read_text() == before


def test_a_reused_process_id_is_not_mistaken_for_a_daemon(site: Site) -> None:
    """A foreign process with the id of a dead daemon neither counts as alive nor is killed."""
    file = site.box.directory / "sandbox.json"
    state = json.loads(file.read_text())
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        munged = site.pids()["munged"]
        state["daemons"]["munged"]["pid"] = stranger.pid
        state["daemons"]["munged"]["created"] -= 60
        file.write_text(json.dumps(state))
        assert site.box.status().dead == ("munged",)
        kill(munged)
        site.box.up()
        site.box.down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_down_when_the_controller_was_killed(make_site: MakeSite) -> None:
    """Its jobs are still killed, and do not reappear at the next `up`."""
    site = make_site()
    site.submit(STUBBORN)
    pending = site.submit("true", "--begin=now+1hour")
    wait_until((site.work / "started").exists, "the job to start")
    wait_for_saved_state(site, pending)
    kill(site.pids()["slurmctld"])
    assert site.box.down() is True
    assert not any(is_alive(int(pid)) for pid in (site.work / "pids").read_text().split())
    assert site.processes() == []
    site.box.up()
    assert pending not in site.states()


def test_up_after_down_starts_without_jobs(site: Site) -> None:
    """Job ids continue, so that none is used twice."""
    job = site.submit("sleep 100", "--gres=qpu:FRESNEL:1")
    waiting = site.submit("sleep 100", "--begin=now+1hour")
    site.wait_for(job, "RUNNING")
    site.box.down()
    site.box.up()
    assert {site.states().get(item, "CANCELLED") for item in (job, waiting)} == {"CANCELLED"}
    assert site.submit("true") > waiting


def test_two_ups_at_once_start_one_sandbox(tmp_path: Path) -> None:
    """One waits for the other and then finds the sandbox up."""
    box = Sandbox(tmp_path / "site")
    argv = [*QPU, "up", "--dir", str(box.directory)]
    try:
        both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outputs = sorted(process.communicate(timeout=100)[0].splitlines() for process in both)
        assert [process.returncode for process in both] == [0, 0]
        assert [lines[0] for lines in outputs] == [
            f"The sandbox in {box.directory} is already up.",
            f"The sandbox in {box.directory} is up.",
        ]
        assert f"qpu sandbox shell --dir {box.directory}`" in outputs[0][-1]
        assert box.status().state == "up"
    finally:
        box.down()


def test_a_long_path_works(make_site: MakeSite) -> None:
    """The path of a Unix socket is limited to 107 bytes, so the sockets are elsewhere."""
    site = make_site("deep-" * 40)
    assert len(str(site.box.directory)) > 200
    site.wait_for(site.submit("srun true"))


@pytest.mark.parametrize("name", ["with space", "with#hash", "with%percent", "with,comma"])
def test_a_path_that_slurm_cannot_read_is_rejected(tmp_path: Path, name: str) -> None:
    """The error is a single line, raised before anything is created."""
    done = run(*QPU, "up", "--dir", str(tmp_path / name))
    assert done.returncode == 1
    assert done.stderr.startswith(f"qpu: the sandbox directory '{tmp_path / name}' contains")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_shows_the_log_and_leaves_nothing_running(make_site: MakeSite) -> None:
    """The message quotes slurmctld, which rejects the saved state of another cluster."""
    site = make_site()
    site.box.down()
    (site.box.directory / "slurmctld" / "clustername").write_text("other")
    done = site.qpu("up")
    assert done.returncode == 1
    assert re.match(r"qpu: slurmctld exited( immediately)?\. The end of ", done.stderr)
    assert "CLUSTER NAME MISMATCH" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.box.status().state == "down"
    assert site.processes() == []


def test_other_options_are_rejected_while_it_is_up(shared_site: Site, tmp_path: Path) -> None:
    """The message says what is running and what to do."""
    before = shared_site.pids()
    with pytest.raises(SandboxError, match=r"is up with 2 nodes.*`qpu sandbox down` first"):
        shared_site.box.up(nodes=3)
    with pytest.raises(SandboxError, match="is up with the default QPUs"):
        shared_site.box.up(qpus=["ibm_one=ibm-quantum-compute-service"])
    settings = tmp_path / "emulator.toml"
    settings.write_text("seed = 3\n")
    with pytest.raises(SandboxError, match="is up with other emulator settings"):
        shared_site.box.up(config=settings)
    assert shared_site.box.up(nodes=2) == ()
    assert shared_site.pids() == before


def test_a_restart_keeps_the_emulators_settings(make_site: MakeSite, tmp_path: Path) -> None:
    """The settings file may no longer exist when the emulator is restarted."""
    settings = tmp_path / "emulator.toml"
    settings.write_text('[qpus.ibm_a]\ntype = "ibm-quantum-compute-service"\nlanes = 3\n')
    site = make_site(config=settings)
    settings.unlink()
    kill(site.pids()["emulator"])
    assert site.box.up() == ("emulator",)
    assert site.box.status().qpus == ("ibm_a",)
    policy = Path(site.box.environment()["QPU_SITE"]).read_text()
    assert '[qpus."ibm_a"]\nlanes = 3\n' in policy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qpus": ["ibm_fez"]}, "must be NAME=TYPE"),
        ({"qpus": ["ibm_fez=nonsense"]}, "'nonsense' is unknown; allowed: "),
    ],
)
def test_qpus_that_cannot_be_emulated_are_rejected(
    tmp_path: Path, options: dict[str, list[str]], message: str
) -> None:
    """The error comes before anything is created."""
    box = Sandbox(tmp_path / "site")
    with pytest.raises(EmulatorError, match=message):
        box.up(**options)
    assert not box.directory.exists()


def test_status_as_json(shared_site: Site) -> None:
    """Programs can read the names, process ids and ports."""
    done = shared_site.qpu("status", "--json")
    assert done.returncode == 0
    status = json.loads(done.stdout)
    assert status["state"] == "up"
    assert status["directory"] == str(shared_site.box.directory)
    assert status["qpus"] == ["ibm_fez", "FRESNEL"]
    assert [daemon["name"] for daemon in status["daemons"]] == [
        "emulator",
        "munged",
        "slurmctld",
        "slurmd-n1",
        "slurmd-n2",
    ]
    assert all(daemon["alive"] for daemon in status["daemons"])
