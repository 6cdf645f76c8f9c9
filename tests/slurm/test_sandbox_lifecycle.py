"""The sandbox's life: up, killed in part, healed, down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from site_under_test import QPU, Site, run, wait

from qrmi_workflows.errors import EmulatorError, SandboxError
from qrmi_workflows.sandbox import Sandbox

pytestmark = pytest.mark.slurm

MakeSite = Callable[..., Site]

# Ignores SIGTERM and leaves processes behind: in a session of its own, without a parent, and
# without an environment.
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
def healed_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A sandbox whose daemons are killed and healed, test after test."""
    folder = tmp_path_factory.mktemp("healed")
    site = Site(Sandbox(folder / "site"), folder / "work")
    site.box.up()
    yield site
    site.box.down(grace=0)


def is_open(port: int) -> bool:
    """Say whether anybody listens on a TCP port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_alive(pid: int) -> bool:
    """Say whether a process runs."""
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(*pids: int) -> None:
    """Kill these processes, and wait until they have ended."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not any(map(is_alive, pids)), f"{pids} to end")


def test_up_within_ten_seconds_and_down_without_a_trace(make_site: MakeSite) -> None:
    """No process of the sandbox or of its jobs is left, no port open, no socket's folder."""
    begin = time.monotonic()
    site = make_site()
    assert time.monotonic() - begin < 10
    site.submit(STUBBORN)
    wait((site.work / "started").exists, "the job to start")
    jobs = [int(line) for line in (site.work / "pids").read_text().split()]
    daemons, ports = list(site.pids().values()), site.ports()
    assert len(jobs) == 4
    assert all(map(is_alive, [*jobs, *daemons]))
    assert all(map(is_open, ports))
    runtime = Path(json.loads((site.box.directory / "sandbox.json").read_text())["runtime"])
    assert runtime.stat().st_mode & 0o777 == 0o700

    done = site.qpu("down", "--grace", "0.5")

    assert done.returncode == 0, done.stderr
    assert not any(map(is_alive, [*jobs, *daemons]))
    assert site.processes() == []
    assert not any(map(is_open, ports))
    assert not runtime.exists()
    assert site.box.status().state == "down"


def test_jobs_have_time_to_end_by_themselves(site: Site) -> None:
    """`down` sends SIGTERM first: a job may end its lease while the emulator answers."""
    script = "trap 'sleep 0.5; touch tidied; exit' TERM; touch started; while :; do sleep 0.1; done"
    site.submit(script)
    wait((site.work / "started").exists, "the job to start")
    assert site.box.down() is True
    assert (site.work / "tidied").exists()


def test_second_up_says_that_it_is_up_already(shared_site: Site) -> None:
    """Nothing is started twice."""
    before = shared_site.pids()
    done = shared_site.qpu("up")
    assert done.returncode == 0
    assert "is up already" in done.stdout
    assert "qpu sandbox env" in done.stdout
    assert shared_site.pids() == before


def test_second_down_says_that_it_is_down_already(site: Site) -> None:
    """Nothing is left to be ended."""
    assert site.qpu("down").stdout == f"The sandbox in {site.box.directory} is down.\n"
    done = site.qpu("down")
    assert done.returncode == 0
    assert done.stdout == f"The sandbox in {site.box.directory} is down already.\n"


def test_status_of_what_never_was(tmp_path: Path) -> None:
    """It is down, and looking at it makes no folder."""
    done = run(*QPU, "status", "--dir", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == f"The sandbox in {tmp_path / 'none'} is down.\n"
    assert not (tmp_path / "none").exists()
    assert run(*QPU, "down", "--dir", str(tmp_path / "none")).returncode == 0
    done = run(*QPU, "env", "--dir", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("is down. Run `qpu sandbox up`.\n")


def test_two_sandboxes_side_by_side(make_site: MakeSite) -> None:
    """Each has nodes, QPUs and jobs of its own, and one's end leaves the other alone."""
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
def test_a_killed_daemon_is_named_and_healed(healed_site: Site, daemon: str) -> None:
    """`status` says which one is gone; `up` starts that one alone; jobs and ports are kept."""
    job = healed_site.submit("sleep 300", "--nodelist=n1")
    healed_site.wait_for(job, "RUNNING")
    if daemon == "slurmctld":
        wait_for_saved_state(healed_site, job)
    before, ports = healed_site.pids(), healed_site.ports()
    kill(before[daemon])

    done = healed_site.qpu("status")
    assert done.returncode == 1
    assert f"{daemon} ended" in done.stdout
    assert healed_site.box.status().dead == (daemon,)

    done = healed_site.qpu("up")
    assert done.returncode == 0, done.stderr
    assert f"up again: {daemon} restarted" in done.stdout
    after = healed_site.pids()
    assert {name for name in after if after[name] != before[name]} == {daemon}
    assert healed_site.ports() == ports
    assert healed_site.states()[job] == "RUNNING"
    healed_site.wait_for(healed_site.submit("true", "--nodelist=n1"))


def test_all_daemons_killed_at_once_are_healed(healed_site: Site) -> None:
    """As after a reboot, but that the running job lives on."""
    job = healed_site.submit("touch started; while [ ! -e go ]; do sleep 0.1; done; touch ended")
    wait((healed_site.work / "started").exists, "the job to start")
    wait_for_saved_state(healed_site, job)
    kill(*healed_site.pids().values())
    assert len(healed_site.box.status().dead) == 5
    assert len(healed_site.box.up()) == 5
    assert healed_site.states()[job] == "RUNNING"
    (healed_site.work / "go").touch()
    healed_site.wait_for(job)
    assert (healed_site.work / "ended").exists()


def wait_for_saved_state(site: Site, job: int) -> None:
    """Wait until slurmctld has saved what it knows of a job, which it does within 6 seconds."""
    begin = time.time()
    site.slurm("scontrol", "update", f"JobId={job}", "Comment=changed")
    saved = site.box.directory / "slurmctld" / "job_state"
    wait(lambda: saved.exists() and saved.stat().st_mtime >= begin, "slurmctld to save")


def test_the_emulator_keeps_its_state_when_it_is_killed(healed_site: Site) -> None:
    """It comes back at the same port with the same credentials."""
    config = healed_site.box.environment()["QPU_CONFIG"]
    before = Path(config).read_text()
    kill(healed_site.pids()["emulator"])
    healed_site.box.up()
    assert Path(config).read_text() == before


def test_a_stale_process_id_is_not_taken_for_a_daemon(site: Site) -> None:
    """A process that got the id of a daemon that ended is neither counted nor ended."""
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
    """Its jobs are killed nevertheless, and do not come back with the next `up`."""
    site = make_site()
    site.submit(STUBBORN)
    pending = site.submit("true", "--begin=now+1hour")
    wait((site.work / "started").exists, "the job to start")
    wait_for_saved_state(site, pending)
    kill(site.pids()["slurmctld"])
    assert site.box.down() is True
    assert not any(is_alive(int(pid)) for pid in (site.work / "pids").read_text().split())
    assert site.processes() == []
    site.box.up()
    assert pending not in site.states()


def test_up_again_after_down_starts_without_jobs_and_counts_on(site: Site) -> None:
    """A job id is not used twice."""
    job = site.submit("sleep 100", "--gres=qpu:FRESNEL:1")
    waiting = site.submit("sleep 100", "--begin=now+1hour")
    site.wait_for(job, "RUNNING")
    site.box.down()
    site.box.up()
    assert {site.states().get(item, "CANCELLED") for item in (job, waiting)} == {"CANCELLED"}
    assert site.submit("true") > waiting


def test_two_ups_at_once_start_one_sandbox(tmp_path: Path) -> None:
    """One waits for the other, and finds it up."""
    box = Sandbox(tmp_path / "site")
    argv = [*QPU, "up", "--dir", str(box.directory)]
    try:
        both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = sorted(process.communicate(timeout=30)[0].splitlines()[0] for process in both)
        assert [process.returncode for process in both] == [0, 0]
        assert said == [
            f"The sandbox in {box.directory} is up already.",
            f"The sandbox in {box.directory} is up.",
        ]
        assert box.status().state == "up"
    finally:
        box.down()


def test_a_long_path_is_no_obstacle(make_site: MakeSite) -> None:
    """Unix sockets end at 107 bytes; the sandbox's are elsewhere."""
    site = make_site("deep-" * 40)
    assert len(str(site.box.directory)) > 200
    site.wait_for(site.submit("srun true"))


@pytest.mark.parametrize("name", ["with space", "with#hash", "with%percent", "with,comma"])
def test_a_path_that_slurm_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    """In one message, before anything is made."""
    done = run(*QPU, "up", "--dir", str(tmp_path / name))
    assert done.returncode == 1
    assert done.stderr.startswith(f"qpu: the sandbox's folder '{tmp_path / name}' contains")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(make_site: MakeSite) -> None:
    """slurmctld refuses the state of another cluster: its own words are in the message."""
    site = make_site()
    site.box.down()
    (site.box.directory / "slurmctld" / "clustername").write_text("other")
    done = site.qpu("up")
    assert done.returncode == 1
    assert done.stderr.startswith("qpu: slurmctld ended. The end of ")
    assert "CLUSTER NAME MISMATCH" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.box.status().state == "down"
    assert site.processes() == []


def test_other_options_are_refused_while_it_is_up(shared_site: Site, tmp_path: Path) -> None:
    """The message says what runs, and what to do."""
    before = shared_site.pids()
    with pytest.raises(SandboxError, match=r"runs with 2 nodes.*`qpu sandbox down` first"):
        shared_site.box.up(nodes=3)
    with pytest.raises(SandboxError, match="runs with QPUs by default"):
        shared_site.box.up(qpus=["ibm_one=ibm-quantum-compute-service"])
    settings = tmp_path / "emulator.toml"
    settings.write_text("seed = 3\n")
    with pytest.raises(SandboxError, match="other settings of the emulator"):
        shared_site.box.up(config=settings)
    assert shared_site.box.up(nodes=2) == ()
    assert shared_site.pids() == before


def test_the_emulators_settings_are_kept_for_healing(make_site: MakeSite, tmp_path: Path) -> None:
    """They come from a file that may be gone when the emulator is started again."""
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
        ({"qpus": ["ibm_fez"]}, "allowed is NAME=TYPE"),
        ({"qpus": ["ibm_fez=nonsense"]}, "'nonsense' is unknown; allowed: "),
    ],
)
def test_qpus_that_cannot_be_emulated_are_refused(
    tmp_path: Path, options: dict[str, list[str]], message: str
) -> None:
    """Before anything is started."""
    box = Sandbox(tmp_path / "site")
    with pytest.raises(EmulatorError, match=message):
        box.up(**options)
    assert not box.directory.exists()


def test_status_as_json(shared_site: Site) -> None:
    """Names, process ids and ports are for programs too."""
    done = shared_site.qpu("status", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["state"] == "up"
    assert found["directory"] == str(shared_site.box.directory)
    assert found["qpus"] == ["ibm_fez", "FRESNEL"]
    assert [daemon["name"] for daemon in found["daemons"]] == [
        "emulator",
        "munged",
        "slurmctld",
        "slurmd-n1",
        "slurmd-n2",
    ]
    assert all(daemon["alive"] for daemon in found["daemons"])
