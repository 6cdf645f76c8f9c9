"""How Parsl's blocks end: each releases its lease, and no task is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import parsl
import psutil
import pytest
from error_examples import EXAMPLES
from parsl import bash_app, python_app
from parsl.config import Config
from parsl_runs import Site, bell, end_orphans
from waiting import wait_until

from parsl_ext import QPUExecutor, QPUSlurmProvider, qpu_app

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]

SUBMIT_SIDE = """
import sys, parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl_ext import QPUExecutor, QPUSlurmProvider
from test_parsl_endings import sample
from parsl_runs import bell
provider = QPUSlurmProvider(qpu="ibm_quick", walltime="00:05:00")
kind = QPUExecutor if sys.argv[2] == "QPUExecutor" else HighThroughputExecutor
parsl.load(Config(executors=[kind(label="qpu", provider=provider)], run_dir=sys.argv[1]))
sample(bell()).result()
print("ready", flush=True)
import time; time.sleep(600)
"""

INTERRUPTED = """
import sys, parsl
from parsl.config import Config
from parsl_runs import bell, executor
from test_parsl_endings import sample
with parsl.load(Config(executors=[executor(qpu="ibm_quick")], run_dir=sys.argv[1])):
    sample(bell()).result()
    print("ready", flush=True)
    import time; time.sleep(600)
"""


@qpu_app
def sample(payload, *, lease):
    return lease.run(payload).task_id


@python_app(executors=["qpu"])
def sample_too(payload):
    from parsl_ext import block_lease

    return block_lease().run(payload).task_id


@bash_app(executors=["qpu"])
def sample_in_a_script(payload, stdout=None):
    import sys

    script = f"from qrmi_workflows import open_lease; print(open_lease().run({payload!r}).task_id)"
    return f'exec {sys.executable} -c "{script}"'


@qpu_app
def sample_and_record_attempt(payload, folder, *, lease):
    import os
    from pathlib import Path

    attempt = Path(folder, f"attempt-{os.getpid()}")
    attempt.write_text(os.environ["PARSL_WORKER_RANK"])
    return lease.run(payload, on_stop="leave").task_id


@qpu_app
def fail_with(error):
    raise error


@pytest.mark.slow
def test_scaling_in_releases_the_lease_at_once(parsl_site: Site):
    with parsl_site.load(strategy="none") as kernel:
        sample(bell()).result()
        assert parsl_site.sessions()["open"] == 1

        kernel.executors["qpu"].scale_in(1)

        wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release", seconds=25)


def test_ctrl_c_ends_the_program_and_releases_the_lease(parsl_site: Site):
    """A terminal sends SIGINT to all processes of the program, Parsl's interchange among them."""
    command = [sys.executable, "-c", INTERRUPTED, str(parsl_site.folder / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"

        os.killpg(program.pid, signal.SIGINT)

        try:
            _, stderr = program.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # Parsl's interchange outlives its parent
    assert stderr.endswith("KeyboardInterrupt\n")
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")


@pytest.mark.slow
def test_a_block_that_the_user_cancels_releases_its_lease(parsl_site: Site):
    with parsl_site.load(strategy="none"):
        sample(bell()).result()
        (job,) = parsl_site.jobs("%A")

        parsl_site.slurm("scancel", job)

        wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")


def test_a_block_that_is_cancelled_while_it_starts_leaves_no_lease(parsl_site: Site):
    started, go = parsl_site.folder / "started", parsl_site.folder / "go"
    os.mkfifo(go)
    provider = QPUSlurmProvider(
        qpu="ibm_quick", worker_init=f"trap '' TERM; touch {started}; read _ <{go}; trap - TERM"
    )
    provider.script_dir = str(parsl_site.folder)
    job = provider.submit("sleep 60", 1)
    wait_until(started.exists, "the job to start")

    parsl_site.slurm("scancel", job)
    wait_until(lambda: parsl_site.jobs("%T") == ["COMPLETING"], "the job to be cancelled")
    go.write_text("now\n")

    wait_until(lambda: not parsl_site.jobs(), "the job to end")
    assert parsl_site.sessions()["open"] == 0


@pytest.mark.slow
def test_a_block_drains_in_time_even_if_its_lease_took_long(parsl_site: Site):
    parsl_site.control.ask(
        "POST", "/faults", {"kind": "delay", "route": "POST */sessions", "seconds": 25, "count": 1}
    )
    provider = QPUSlurmProvider(qpu="ibm_quick", status_polling_interval=1)
    executors = [QPUExecutor(provider=provider, drain_period=45)]
    config = Config(executors=executors, run_dir=str(parsl_site.folder / "run"), strategy="none")
    with parsl.load(config):
        sample(bell()).result()
        (job,) = parsl_site.jobs("%A")

        wait_until(lambda: not parsl_site.jobs(), "the drained block to end")

    shown = dict(
        word.partition("=")[::2]
        for word in parsl_site.slurm("scontrol", "show", "job", job).split()
    )
    began, ended = (int(shown[key]) for key in ("StartTime", "EndTime"))
    assert shown["JobState"] == "COMPLETED"
    assert 45 <= ended - began < 45 + 25
    assert parsl_site.sessions()["open"] == 0


@pytest.mark.slow
def test_slurm_runs_one_block_at_a_time_on_a_qpu(parsl_site: Site):
    with parsl_site.load(strategy="none", init_blocks=2, max_blocks=2):
        sample(bell()).result()
        wait_until(lambda: len(parsl_site.jobs()) == 2, "two jobs to be submitted")

        states = sorted(line.split("|")[1] for line in parsl_site.jobs())

        assert states == ["PENDING", "RUNNING"]
        assert parsl_site.sessions()["open"] == 1


@pytest.mark.slow
def test_every_error_of_this_project_reaches_the_caller_unchanged(parsl_site: Site):
    with parsl_site.load():
        arrived = [fail_with(error).exception() for error in EXAMPLES]
        assert sample(bell()).result()

    assert [type(error) for error in arrived] == [type(error) for error in EXAMPLES]
    assert [vars(error) for error in arrived] == [vars(error) for error in EXAMPLES]
    assert [str(error) for error in arrived] == [str(error) for error in EXAMPLES]


@pytest.mark.slow
def test_a_retry_attaches_to_the_task_of_a_killed_worker(parsl_site: Site, tmp_path: Path):
    before = parsl_site.tasks()["accepted"]
    with parsl_site.load(qpu="ibm_slow", retries=2):
        with parsl_site.paused("ibm_slow"):
            future = sample_and_record_attempt(bell(), str(tmp_path))
            wait_until(lambda: parsl_site.recorded() == 1, "the task to be submitted", seconds=150)
            (attempt,) = tmp_path.glob("attempt-*")
            psutil.Process(int(attempt.name.removeprefix("attempt-"))).kill()

        assert future.result(timeout=100)

    assert len(list(tmp_path.glob("attempt-*"))) == 2
    assert parsl_site.tasks()["accepted"] - before == 1


@pytest.mark.parametrize("qpu", ["ibm_slow", pytest.param("ibm_system", marks=pytest.mark.slow)])
def test_a_retry_attaches_to_the_task_of_a_lost_block(parsl_site: Site, qpu: str):
    before = parsl_site.tasks()
    with parsl_site.load(qpu=qpu, retries=1, heartbeat_threshold=15) as kernel:
        with parsl_site.paused(qpu):
            call = sample(bell())
            wait_until(lambda: parsl_site.recorded() == 1, "the task to be submitted", seconds=150)

            parsl_site.cancel_blocks(kernel)

        assert call.result(timeout=120)
        assert len(kernel.executors["qpu"].provider.resources) == 2

    after = parsl_site.tasks()
    changes = {key: after[key] - before[key] for key in ("accepted", "completed", "cancelled")}
    assert changes == {"accepted": 1, "completed": 1, "cancelled": 0}
    wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release")


@pytest.mark.slow
@pytest.mark.parametrize("app", ["python_app", "bash_app"])
def test_a_retry_of_an_app_of_parsls_own_attaches_to_the_task_of_a_lost_block(
    parsl_site: Site, app: str
):
    path, output = parsl_site.folder / "bell.json", parsl_site.folder / "task"
    path.write_text(json.dumps(bell()))
    before = parsl_site.tasks()
    with parsl_site.load(qpu="ibm_slow", retries=1, heartbeat_threshold=15) as kernel:
        with parsl_site.paused("ibm_slow"):
            call = (
                sample_too(bell())
                if app == "python_app"
                else sample_in_a_script(str(path), stdout=str(output))
            )
            wait_until(lambda: parsl_site.recorded() == 1, "the task to be submitted", seconds=150)

            parsl_site.cancel_blocks(kernel)

        call.result(timeout=120)

    after = parsl_site.tasks()
    changes = {key: after[key] - before[key] for key in ("accepted", "completed", "cancelled")}
    assert changes == {"accepted": 1, "completed": 1, "cancelled": 0}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["QPUExecutor", "HighThroughputExecutor"])
def test_a_block_ends_within_a_minute_after_its_program_was_killed(
    parsl_site: Site, tmp_path: Path, executor: str
):
    process = subprocess.Popen(
        [sys.executable, "-c", SUBMIT_SIDE, str(tmp_path / "run"), executor],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()

        wait_until(lambda: parsl_site.sessions()["open"] == 0, "the release", seconds=60)
    finally:
        process.kill()
        end_orphans(children)
        process.stdout.close()
    wait_until(lambda: not parsl_site.jobs(), "the job to end")
