"""Parsl's blocks on a real Slurm: they scale with the work and leave nothing running."""

from __future__ import annotations

import json
import time
from pathlib import Path

import parsl
import psutil
import pytest
from job_times import expire
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.executors import MPIExecutor
from parsl.launchers import SimpleLauncher
from parsl_runs import Site, bell, most_at_once
from snakemake_runs import acquired_by_the_site
from waiting import wait_until

from parsl_ext import QPUSlurmProvider, qpu_app
from parsl_ext.alive_file import give_up
from qrmi_workflows import open_lease

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]


def assert_released_in_time(site: Site, closed: int) -> None:
    """Assert that a block released its lease within KillWait, and left no process."""
    sigterm = site.folder / "sigterm"
    pids = json.loads((site.folder / "pids").read_text())
    wait_until(sigterm.exists, "SIGTERM", seconds=90)
    wait_until(lambda: site.sessions()["closed"] > closed, "the release", seconds=90)
    took = time.time() - float(sigterm.read_text())
    assert took < 30
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


@qpu_app
def sample(payload, *, lease):
    return {"task": lease.run(payload).task_id, "adopted": lease.adopted}


@qpu_app
def ignore_sigterm(folder, *, lease):
    """Run on after SIGTERM, with a child that ignores it too; record when it arrived."""
    import json
    import os
    import signal
    import subprocess
    import time
    from pathlib import Path

    sigterm = Path(folder, "sigterm")
    signal.signal(signal.SIGTERM, lambda *_: sigterm.write_text(str(time.time())))
    argv = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout.readline() == b"ready\n"
    written = Path(folder, "pids.new")
    written.write_text(json.dumps([os.getpid(), child.pid]))
    written.rename(Path(folder, "pids"))
    while True:
        time.sleep(1)


@python_app(executors=["qpu"])
def span(seconds):
    import time

    before = time.monotonic()
    time.sleep(seconds)
    return before, time.monotonic()


@python_app(executors=["qpu"])
def fail():
    raise ZeroDivisionError


@bash_app(executors=["qpu"])
def qpu_run(payload, result):
    return f"qpu run {payload} -o {result}"


@qpu_app
def sample_and_name_the_manager(payload, folder, *, lease):
    import os
    from pathlib import Path

    Path(folder, f"manager-{os.getppid()}").touch()
    return lease.run(payload).task_id


@pytest.mark.slow
def test_a_block_is_submitted_for_the_first_call_and_cancelled_when_idle(parsl_site: Site):
    before = parsl_site.sessions()
    with parsl_site.load(init_blocks=0) as kernel:
        blocks = kernel.executors["qpu"].provider.resources
        assert (blocks, parsl_site.jobs()) == ({}, [])

        assert sample(bell()).result()["task"]
        assert parsl_site.sessions()["opened"] - before["opened"] == 1

        wait_until(lambda: all(job["status"].terminal for job in blocks.values()), "scale-in")
        wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release", seconds=25)
        assert sample(bell()).result()["task"], "another block is submitted"

    assert parsl_site.sessions()["closed"] - before["closed"] == 2


@pytest.mark.slow
def test_a_block_that_is_starting_is_not_scaled_in_as_idle(parsl_site: Site):
    """A strategy that took it for idle would cancel it and submit another one, again and again."""
    before = parsl_site.sessions()["opened"]
    strategy = "htex_auto_scale"
    with parsl_site.load(strategy=strategy, init_blocks=0, worker_init="sleep 2") as kernel:
        blocks = kernel.executors["qpu"].provider.resources

        assert sample(bell()).result(timeout=150)["task"]

        assert len(blocks) == 1
        wait_until(lambda: all(job["status"].terminal for job in blocks.values()), "scale-in")
    assert parsl_site.sessions()["opened"] - before == 1


@pytest.mark.slow
def test_a_call_is_retried_in_another_block_if_the_first_is_lost_before_its_workers_start(
    parsl_site: Site,
):
    flag = parsl_site.folder / "flag"
    with parsl_site.load(worker_init=f"[ -e {flag} ] || {{ touch {flag}; sleep 600; }}") as kernel:
        call = sample(bell())
        wait_until(flag.exists, "the block to start")

        parsl_site.slurm("scancel", *kernel.executors["qpu"].provider.resources)

        assert call.result(timeout=150)["task"]


def test_a_call_waits_for_another_block_if_the_vendor_fails_while_the_first_starts(
    parsl_site: Site,
):
    rule = {"kind": "status", "route": "POST */sessions", "status": 403, "count": 1}
    parsl_site.control.ask("POST", "/faults", rule)
    with parsl_site.load():
        assert sample(bell()).result(timeout=150)["task"]


def test_a_block_adopts_the_lease_of_the_site_and_leaves_it_open(parsl_site: Site):
    with open_lease("ibm_quick") as site_lease:
        sessions = parsl_site.sessions()
        variables = {k: v for k, v in site_lease.environment().items() if "QRMI" in k}
        del variables["QRMI_JOB_ID"]  # a site would set that of the block's job
        with acquired_by_the_site(parsl_site.box, "ibm_quick", **variables), parsl_site.load():
            assert sample(bell()).result()["adopted"]

        assert parsl_site.sessions() == sessions
        assert site_lease.run(bell()).task_id


@pytest.mark.slow
def test_a_cancelled_block_releases_its_lease_even_if_processes_ignore_sigterm(
    parsl_site: Site,
):
    closed = parsl_site.sessions()["closed"]
    with parsl_site.load(strategy="none"):
        ignore_sigterm(str(parsl_site.folder))
        wait_until((parsl_site.folder / "pids").exists, "the call to start")

        parsl_site.slurm("scancel", *parsl_site.jobs("%A"))

        assert_released_in_time(parsl_site, closed)


@pytest.mark.slow  # Slurm checks time limits every 30 s
def test_a_block_at_its_time_limit_releases_its_lease_before_slurm_kills_it(parsl_site: Site):
    closed = parsl_site.sessions()["closed"]
    with parsl_site.load(strategy="none"):
        ignore_sigterm(str(parsl_site.folder))
        wait_until((parsl_site.folder / "pids").exists, "the call to start")
        (job,) = parsl_site.jobs("%A")

        expire(job)

        assert_released_in_time(parsl_site, closed)
    assert "JobState=TIMEOUT" in parsl_site.slurm("scontrol", "show", "job", job)


@pytest.mark.slow
def test_a_plain_app_holds_a_lane_and_releases_it_when_it_raises(parsl_site: Site):
    with parsl_site.load(lanes=2):
        failed = [fail() for _ in range(6)]
        assert {type(call.exception()) for call in failed} == {ZeroDivisionError}

        spans = [call.result() for call in [span(0.2) for _ in range(8)]]

    assert most_at_once(spans) == 2


@pytest.mark.slow
def test_the_blocks_of_parsls_mpi_executor_hold_a_lease(parsl_site: Site):
    """It accepts no launcher but Parsl's `SimpleLauncher`."""
    provider = QPUSlurmProvider(qpu="ibm_quick", launcher=SimpleLauncher())
    executor = MPIExecutor(label="qpu", provider=provider, mpi_launcher="srun")
    spec = {"num_nodes": 1, "ranks_per_node": 1}
    with parsl.load(Config(executors=[executor], run_dir=str(parsl_site.folder / "run"))):
        call = sample(bell(), parsl_resource_specification=spec)

        assert call.result(timeout=150)["adopted"]

    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")


def test_a_block_whose_program_has_ended_before_it_starts_takes_no_qpu(parsl_site: Site):
    opened, ran = parsl_site.sessions()["opened"], parsl_site.folder / "ran"
    provider = QPUSlurmProvider(qpu="ibm_quick")
    provider.script_dir = str(parsl_site.folder)
    gres = ["--gres=qpu:ibm_quick:1", "--licenses=qpu_ibm_quick:1", "--output=/dev/null"]
    holder = parsl_site.slurm("sbatch", "--parsable", *gres, "--wrap=sleep 600")
    job = provider.submit(f"touch {ran}", 1)
    wait_until(lambda: f"{job}|PENDING" in "".join(parsl_site.jobs()), "the block to be queued")

    give_up(provider.resources[job]["alive"])  # as at the end of the program
    parsl_site.slurm("scancel", holder)

    wait_until(lambda: not parsl_site.jobs(), "the block to end", seconds=60)
    stderr = Path(provider.resources[job]["job_stderr_path"]).read_text()
    assert "the program that submitted this job has ended" in stderr
    assert not ran.exists()
    assert parsl_site.sessions()["opened"] == opened


def test_a_command_in_a_bash_app_uses_the_lane_of_its_call(parsl_site: Site):
    """It would wait for ever for another lane: the calls hold all of them."""
    payload, results = parsl_site.folder / "bell.json", [parsl_site.folder / f"{n}" for n in "ab"]
    payload.write_text(json.dumps(bell()))
    with parsl_site.load(lanes=1):
        calls = [qpu_run(str(payload), str(result)) for result in results]

        assert [call.result(timeout=150) for call in calls] == [0, 0]

    assert all(result.exists() for result in results)


@pytest.mark.slow
def test_a_call_whose_manager_was_killed_is_retried_in_another_block(parsl_site: Site):
    before = parsl_site.tasks()
    with parsl_site.load(qpu="ibm_slow", retries=1, heartbeat_threshold=15) as kernel:
        with parsl_site.paused("ibm_slow"):
            future = sample_and_name_the_manager(bell(), str(parsl_site.folder))
            wait_until(lambda: parsl_site.recorded() == 1, "the task to be submitted", seconds=150)
            (manager,) = parsl_site.folder.glob("manager-*")
            psutil.Process(int(manager.name.removeprefix("manager-"))).kill()

        assert future.result(timeout=120)
        assert len(kernel.executors["qpu"].provider.resources) == 2

    after = parsl_site.tasks()
    changes = {key: after[key] - before[key] for key in ("accepted", "completed", "cancelled")}
    assert changes == {"accepted": 1, "completed": 1, "cancelled": 0}
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")
