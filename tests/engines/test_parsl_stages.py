"""Parsl's blocks in a stage of several jobs: one lease for all of them, on a real Slurm."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import parsl
import psutil
import pytest
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl_runs import Site, bell, end_orphans, executor, most_at_once
from waiting import wait_until

from parsl_ext import BlockErrors, QPUSlurmProvider, QPUStage, qpu_app, qpu_retry_handler
from qrmi_workflows.lease.stage import StageState, find_stage

pytestmark = [pytest.mark.slurm, pytest.mark.engines, pytest.mark.timeout(300)]


@qpu_app
def sample(payload: Any, *, lease: Any) -> dict[str, Any]:
    import os
    from datetime import datetime

    result = lease.run(payload)
    return {
        "task": result.task_id,
        "job": os.environ["SLURM_JOB_ID"],
        "span": [
            datetime.fromisoformat(at).timestamp() for at in (result.submitted, result.completed)
        ],
    }


@qpu_app
def sample_together(payloads: list[Any], *, lease: Any) -> list[str]:
    return [result.task_id for result in lease.map(payloads, coalesce=True)]


@qpu_app
def wait_for(file: str, *, lease: Any) -> str:
    import os
    import time
    from pathlib import Path

    Path(f"{file}.{os.environ['SLURM_JOB_ID']}").touch()
    while not Path(file).exists():
        time.sleep(0.05)
    return os.environ["SLURM_JOB_ID"]


@python_app(executors=["cpu"])
def job_and_start() -> dict[str, Any]:
    import os
    import time

    lease = [name for name in os.environ if "ACQUISITION_TOKEN" in name]
    return {"job": os.environ["SLURM_JOB_ID"], "at": time.time(), "lease": lease}


@contextmanager
def load_stage(
    site: Site,
    *,
    classical: bool = True,
    strategy: str = "simple",
    stage: str | QPUStage = "vqe",
    retries: int = 0,
    **options: Any,
) -> Iterator[Any]:
    """Load Parsl with a quantum and a classical executor in one stage; await its jobs' ends."""
    executors: list[Any] = [executor(stage=stage, **options)]
    if classical:
        provider = QPUSlurmProvider(
            qpu=None, stage="vqe", walltime="00:05:00", status_polling_interval=1
        )
        executors.append(
            HighThroughputExecutor(
                label="cpu",
                provider=provider,
                max_workers_per_node=2,
                block_error_handler=BlockErrors(),
            )
        )
    config = Config(
        executors=executors,
        run_dir=str(site.folder / f"run-{time.monotonic_ns()}"),
        strategy=strategy,
        strategy_period=0.3,
        max_idletime=60.0,
        retries=retries,
        retry_handler=qpu_retry_handler,
    )
    try:
        with parsl.load(config) as kernel:
            yield kernel
    finally:
        wait_until(lambda: not site.jobs(), "jobs to end", seconds=90)


def test_classical_and_quantum_blocks_share_one_session_and_its_lanes(parsl_site: Site) -> None:
    before, tasks = parsl_site.sessions(), parsl_site.tasks()
    go = parsl_site.folder / "go"
    with load_stage(parsl_site, init_blocks=2, max_blocks=2, lanes=2):
        # Calls occupy the workers of both blocks, so that both have started before the first task.
        starting = [wait_for(str(go)) for _ in range(6)]
        worked = job_and_start().result(timeout=120)

        def blocks() -> set[str]:
            return {file.suffix for file in parsl_site.folder.glob("go.*")}

        wait_until(lambda: len(blocks()) == 2, "calls in both blocks")
        go.touch()
        quantum = {each.result() for each in starting}
        results = [each.result() for each in [sample(bell(n)) for n in range(1, 31)]]
        assert len(set(sample_together([bell()] * 5).result())) == 1, "five payloads, one task"
        jobs = dict(line.split("|", 1) for line in parsl_site.jobs("%A|%j|%b"))
        stage = find_stage("vqe")
        assert stage.state is StageState.READY

    with_qpu = {job for job, row in jobs.items() if "qpu:ibm_quick" in row}
    assert with_qpu == {stage.keeper_job}
    assert {each["job"] for each in results} == quantum
    assert len({*quantum, worked["job"]} - with_qpu) == 3
    assert worked["lease"] == []
    assert most_at_once([each["span"] for each in results]) == 2
    # On a slow machine, the session is idle for so long that it is cheaper to open another.
    opened = find_stage("vqe").generation
    assert parsl_site.sessions()["opened"] - before["opened"] == opened
    assert parsl_site.sessions()["open"] == 0
    assert parsl_site.tasks()["accepted"] - tasks["accepted"] == 30 + 1
    assert (find_stage("vqe").state, find_stage("vqe").openers) == (StageState.ENDED, ())


@pytest.mark.slow
def test_blocks_wait_in_the_queue_until_the_qpu_is_ready_or_their_keeper_ends(
    parsl_site: Site,
) -> None:
    """Another job holds the QPU's licence, so that the keeper has to wait."""
    wait = ["--licenses=qpu_ibm_quick:1", "--output=/dev/null", "--wrap=sleep 600"]
    holder = parsl_site.slurm("sbatch", "--parsable", *wait)
    # This strategy takes blocks whose workers have not started for idle.
    with load_stage(parsl_site, strategy="htex_auto_scale") as kernel:
        quantum, classical = sample(bell()), job_and_start()
        providers = [kernel.executors[label].provider for label in ("qpu", "cpu")]

        def shown() -> list[list[str]]:
            tables = [list(each.resources.values()) for each in providers]
            return [[str(block["status"]) for block in table] for table in tables]

        def are_waiting(number: int) -> bool:
            reason = "JobState.PENDING (waiting for stage 'vqe': its keeper, job"
            return all(
                len(table) == number and table[-1].startswith(reason) and "Licenses" in table[-1]
                for table in shown()
            )

        wait_until(lambda: are_waiting(1), "both blocks to wait")
        first = find_stage("vqe")
        parsl_site.slurm("scancel", str(first.keeper_job))
        wait_until(lambda: are_waiting(2), "both blocks to be replaced, and wait again")
        assert all("stage 'vqe'" in table[0] for table in shown()), shown()
        assert find_stage("vqe").id != first.id, "it was opened again"

        released = time.time()
        parsl_site.slurm("scancel", holder)
        assert quantum.result(timeout=120)["task"]
        assert classical.result(timeout=120)["at"] > released
        assert [len(each.resources) for each in providers] == [2, 2]


@pytest.mark.slow
def test_a_call_finds_its_task_if_the_keeper_is_cancelled_while_it_runs(parsl_site: Site) -> None:
    before = parsl_site.tasks()["accepted"]
    with load_stage(parsl_site, classical=False, qpu="ibm_slow", retries=2) as kernel:
        assert sample(bell(1)).result()  # the keeper's warm-up task is over
        first = find_stage("vqe")
        lost = {str(first.keeper_job), *kernel.executors["qpu"].provider.resources}
        with parsl_site.paused("ibm_slow"):
            call = sample(bell(2))
            wait_until(parsl_site.recorded, "the task's id in the journal")
            parsl_site.slurm("scancel", str(first.keeper_job))
            wait_until(lambda: lost.isdisjoint(parsl_site.jobs("%A")), "its block to end")

        assert call.result(timeout=150)["task"]
        assert find_stage("vqe").id != first.id
        assert len(kernel.executors["qpu"].provider.resources) == 2
    assert parsl_site.tasks()["accepted"] - before == 2
    assert parsl_site.sessions()["open"] == 0


PROGRAM = """
import sys
from test_parsl_stages import bell, job_and_start, load_stage, sample
from parsl_ext import QPUStage
from parsl_runs import Site
from pathlib import Path

site = Site(None, Path(sys.argv[1]))
with load_stage(site, stage=QPUStage("vqe", qpu="ibm_quick", idle_limit=1)):
    sample(bell()).result()
    job_and_start().result()
    Path(sys.argv[1], "ran").touch()
    while True:
        input()
"""


@pytest.mark.slow
def test_the_stage_of_a_program_that_is_killed_ends_with_its_blocks(parsl_site: Site) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(parsl_site.folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        wait_until((parsl_site.folder / "ran").exists, "both calls", seconds=90)
        children = psutil.Process(program.pid).children(recursive=True)
        program.kill()

    try:
        wait_until(lambda: not parsl_site.jobs(), "the jobs to end", seconds=120)
    finally:
        end_orphans(children)
    assert find_stage("vqe").state is StageState.ENDED
    assert parsl_site.sessions()["open"] == 0
