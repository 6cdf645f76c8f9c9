"""A second scheduler, in one file (tests/plugins/toy_scheduler), works with all of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from waiting import wait_until

from qrmi_workflows.config.variables import QPU_STATE
from qrmi_workflows.emulator import Emulator, start_emulator

pytestmark = pytest.mark.engines

PLUGIN = Path(__file__).parents[1] / "plugins" / "toy_scheduler"
EMULATOR = """
[qpus.ibm_quick]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
lanes = 3
"""
SITE = """
scheduler = "toy"
[qpus.ibm_quick]
lanes = 3
options = { queue = "quantum-{qpu}" }
"""

LEASE_IN_A_JOB = """
from qrmi_workflows import open_lease
from qrmi_workflows.lease.killwait import current_kill_wait, learn_kill_wait
with open_lease("ibm_quick") as lease:
    learn_kill_wait()
    print(lease.held._opened.owner.job, current_kill_wait().total, lease.step.name)
"""

PARSL = """
import sys
import parsl
from parsl.config import Config
from parsl_ext import QPUExecutor, qpu_app
from toy_provider import ToyProvider

@qpu_app
def sample(payload, *, lease):
    result = lease.run(payload)
    return result.task_id, lease.qpu

executor = QPUExecutor(provider=ToyProvider("ibm_quick"), address="127.0.0.1")
assert executor.lanes == 3
with parsl.load(Config(executors=[executor], run_dir=sys.argv[1])):
    task_id, qpu = sample(PAYLOAD).result()
print(qpu)
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "emulator.toml").write_text(EMULATOR)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture
def site(emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    """The environment of a user at a site whose scheduler is the toy."""
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "jobs").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QPU_", "SLURM_"))}
    return kept | {
        "PYTHONPATH": str(PLUGIN),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TOY_FOLDER": str(tmp_path / "jobs"),
        "QPU_CONFIG": str(emulator.config_path),
        "QPU_SITE": str(tmp_path / "site.toml"),
        QPU_STATE: str(tmp_path / "state"),
    }


def run_python(program: str, *arguments: str, environ: dict[str, str], seconds: float = 90) -> str:
    """Run a program as a user, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(script: Path, environ: dict[str, str]) -> str:
    """Submit a script to the toy, and return its job's id."""
    argv = [sys.executable, str(PLUGIN / "toy_scheduler.py"), "submit", str(script)]
    return subprocess.run(
        argv, env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_site_policy_chooses_the_scheduler(site):
    program = "from qrmi_workflows.schedulers import this_scheduler; print(this_scheduler().name)"

    assert run_python(program, environ=site) == "toy\n"


def test_the_site_policy_has_the_settings_of_the_scheduler(site):
    program = (
        "from qrmi_workflows.config.site import load_site_policy\n"
        "from qrmi_workflows.schedulers import this_scheduler\n"
        "from qrmi_workflows.schedulers.base import QPURequest\n"
        "print(this_scheduler().qpu_options(QPURequest(qpu='ibm_quick'), load_site_policy()))"
    )

    assert run_python(program, environ=site) == "['qpu=ibm_quick', 'queue=quantum-ibm_quick']\n"


def test_the_environment_of_a_job_chooses_it_where_the_policy_does_not(site, tmp_path):
    (tmp_path / "site.toml").write_text(SITE.replace('scheduler = "toy"', ""))
    program = "from qrmi_workflows.schedulers import this_scheduler; print(this_scheduler().name)"

    assert run_python(program, environ=site) == "slurm\n"
    assert run_python(program, environ={**site, "TOY_JOB": "toy-1"}) == "toy\n"


def test_a_lease_knows_its_job_kill_wait_and_step_and_leaves_a_record(site, tmp_path, emulator):
    before = emulator.control.counters()["sessions"]["closed"]
    in_job = {**site, "TOY_JOB": "toy-7", "TOY_QPU": "ibm_quick"}

    printed = run_python(LEASE_IN_A_JOB, environ=in_job)

    job, kill_wait, step = printed.split(" ", 2)
    assert (job, kill_wait) == ("toy-7", "20.0")
    assert step.startswith("job toy-7 ")
    assert emulator.counters()["sessions"]["closed"] == before + 1
    (records,) = (tmp_path / "state" / "leases").glob("*.jsonl")
    record = json.loads(records.read_text())
    assert (record["owner"]["job"], record["queue_wait"]) == ("toy-7", 1.5)


def test_the_reaper_asks_the_toy_for_the_jobs_of_other_hosts(site, tmp_path, emulator, monkeypatch):
    """A lease of a live job on another host is left alone; once the job is over it is released."""
    script = tmp_path / "hold.sh"
    script.write_text("#TOY qpu=ibm_quick\nexec qpu lease exec --qpu ibm_quick -- sleep 600\n")
    job = submit(script, site)
    open_leases = tmp_path / "state" / "leases" / "open"
    wait_until(lambda: list(open_leases.glob("*.json")), "the open lease's file")
    opened = next(open_leases.glob("*.json"))
    wait_until(lambda: "running" in listed(site), "the record of the job's start")
    move_to_another_host(opened)

    assert reap(site) == []

    kill_job(job, site)
    wait_until(lambda: "running" not in listed(site), "the job's end")
    (reaped,) = reap(site)
    assert (reaped["lease"], reaped["released"]) == (opened.stem, True)
    assert emulator.counters()["sessions"]["open"] == 0


def move_to_another_host(opened: Path) -> None:
    """Let an open lease's file say that another host's process owns it."""
    from qrmi_workflows.lease.records import OpenLease

    lease = OpenLease.load(opened)
    elsewhere = replace(lease, owner=replace(lease.owner, host="n9"))
    opened.write_text(json.dumps(asdict(elsewhere) | {"path": None}))


def reap(environ: dict[str, str]) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "qrmi_workflows", "reap", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def listed(environ: dict[str, str]) -> str:
    argv = [sys.executable, str(PLUGIN / "toy_scheduler.py"), "list"]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout


def kill_job(job: str, environ: dict[str, str]) -> None:
    """Kill all of a job at once, as the end of its node does."""
    import signal

    pid = int((Path(environ["TOY_FOLDER"]) / job).read_text().split("\t")[1])
    assert pid > 0, "0 would be this process's own group"
    os.killpg(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_parsl_provider_runs_blocks_on_the_toy(site, tmp_path, emulator):
    before = emulator.counters()["tasks"]["completed"]
    payload = json.loads((Path(__file__).parents[2] / "examples/bell/bell.json").read_text())

    printed = run_python(
        PARSL.replace("PAYLOAD", repr(payload)), str(tmp_path / "runinfo"), environ=site
    )

    assert printed.splitlines()[-1] == "ibm_quick"
    assert emulator.counters()["tasks"]["completed"] == before + 1
    wait_until(lambda: emulator.counters()["sessions"]["open"] == 0, "the block's lease released")


def qpu(*argv: str, environ: dict[str, str]) -> str:
    """Run the `qpu` command, and return what it prints."""
    argv = (sys.executable, "-m", "qrmi_workflows", *argv)
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("fate", ["ready", "killed"])
def test_a_stages_job_waits_until_it_is_ready_and_is_cancelled_if_the_keeper_is_killed(
    site, emulator, tmp_path, fate
):
    """This needs only the hooks of the scheduler."""
    control = emulator.control
    # The vendor grants nothing for now, so the keeper is not ready.
    control.ask("POST", "/faults", {"kind": "status", "route": "POST */sessions", "status": 503})
    qpu("stage", "open", "vqe", "--qpu", "ibm_quick", environ=site)
    options = qpu("stage", "options", "vqe", environ=site).split()
    keeper = json.loads(qpu("stage", "show", "vqe", "--json", environ=site))["keeper_job"]
    if fate == "killed":
        file = tmp_path / "jobs" / keeper
        pid = wait_until(lambda: int(file.read_text().split("\t")[1]), "the keeper's start")
        os.killpg(pid, 9)
    (tmp_path / "job.sh").write_text(
        "\n".join(
            [
                *(f"#TOY {option}" for option in options),
                f"#TOY stdout={tmp_path}/out",
                "qpu lease exec --stage vqe -- echo joined",
            ]
        )
    )

    job = submit(tmp_path / "job.sh", site)
    control.ask("DELETE", "/faults")

    states = {"ready": ("completed",), "killed": ("cancelled",)}[fate]
    state = tmp_path / "jobs" / job
    wait_until(lambda: state.read_text().split("\t")[0] in states, f"the job to be {states}")
    if fate == "ready":
        assert (tmp_path / "out").read_text() == "joined\n"
        qpu("stage", "close", "vqe", environ=site)
    wait_until(lambda: control.counters()["sessions"]["open"] == 0, "the release")
    shown = json.loads(qpu("stage", "show", "vqe", "--json", environ=site))
    assert (shown["state"], keeper in shown["reason"]) == ("ended", fate == "killed")
