"""Parsl's blocks in a stage of several jobs: one lease for all of them, on a real Slurm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import parsl
import pytest
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl_runs import Site, bell, executor, most_at_once
from waiting import wait_until

from parsl_ext import QPUSlurmProvider, qpu_app, qpu_retry_handler
from qrmi_workflows.lease.stage import StageState, find_stage

pytestmark = [pytest.mark.slurm, pytest.mark.engines]


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
    site: Site, *, classical: bool = True, retries: int = 0, **options: Any
) -> Iterator[Any]:
    """Load Parsl with a quantum and a classical executor in one stage; await its jobs' ends."""
    executors: list[Any] = [executor(stage="vqe", **options)]
    if classical:
        provider = QPUSlurmProvider(
            qpu=None, stage="vqe", walltime="00:05:00", status_polling_interval=1
        )
        executors.append(
            HighThroughputExecutor(label="cpu", provider=provider, max_workers_per_node=1)
        )
    config = Config(
        executors=executors,
        run_dir=str(site.folder / f"run-{time.monotonic_ns()}"),
        strategy="simple",
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


def test_a_classical_and_a_quantum_executor_share_one_session(parsl_site: Site) -> None:
    before, tasks = parsl_site.sessions(), parsl_site.tasks()
    with load_stage(parsl_site):
        quantum = [sample(bell(shots)) for shots in range(1, 7)]
        classical = job_and_start()
        results = [each.result(timeout=120) for each in quantum]
        worked = classical.result(timeout=120)
        jobs = dict(line.split("|", 1) for line in parsl_site.jobs("%A|%j|%b"))
        stage = find_stage("vqe")
        assert stage.state is StageState.READY

    with_qpu = {job for job, row in jobs.items() if "qpu:ibm_quick" in row}
    assert with_qpu == {stage.keeper_job}
    assert {each["job"] for each in results} | {worked["job"]} <= jobs.keys() - with_qpu
    assert worked["lease"] == []
    assert parsl_site.sessions()["opened"] - before["opened"] == 1
    assert parsl_site.sessions()["open"] == 0
    assert parsl_site.tasks()["accepted"] - tasks["accepted"] == 6
    assert (find_stage("vqe").state, find_stage("vqe").openers) == (StageState.ENDED, ())


@pytest.mark.slow
def test_blocks_wait_in_slurms_queue_until_the_qpu_is_ready(parsl_site: Site) -> None:
    """Another job holds the QPU's licence, so that the keeper has to wait."""
    holder = parsl_site.slurm(
        "sbatch",
        "--parsable",
        "--licenses=qpu_ibm_quick:1",
        "--output=/dev/null",
        "--wrap=sleep 600",
    )
    try:
        with load_stage(parsl_site) as kernel:
            quantum, classical = sample(bell()), job_and_start()
            held = [kernel.executors[label] for label in ("qpu", "cpu")]

            def are_waiting() -> bool:
                shown = [str(s) for each in held for s in each.status_facade.values()]
                reason = "JobState.PENDING (waiting for stage 'vqe': its keeper, job"
                return len(shown) == 2 and all(
                    each.startswith(reason) and "Licenses" in each for each in shown
                )

            wait_until(are_waiting, "both blocks to wait")
            assert "RUNNING" not in "".join(
                line for line in parsl_site.jobs("%j|%T") if line.startswith("parsl.")
            )
            released = time.time()
            parsl_site.slurm("scancel", holder)
            assert quantum.result(timeout=120)["task"]
            assert classical.result(timeout=120)["at"] > released
    finally:
        parsl_site.slurm("scancel", holder)


@pytest.mark.slow
def test_two_quantum_blocks_share_the_lanes_of_the_stage(parsl_site: Site) -> None:
    before = parsl_site.sessions()
    go = parsl_site.folder / "go"
    with load_stage(
        parsl_site, classical=False, qpu="ibm_quick", init_blocks=2, max_blocks=2, lanes=2
    ):
        # Calls occupy both blocks' workers, so that both have started before the first task.
        starting = [wait_for(str(go)) for _ in range(6)]

        def jobs() -> set[str]:
            return {file.suffix for file in parsl_site.folder.glob("go.*")}

        wait_until(lambda: len(jobs()) == 2, "calls in both blocks")
        go.touch()
        assert len({each.result() for each in starting}) == 2
        results = [each.result() for each in [sample(bell(n)) for n in range(1, 41)]]

    assert len({each["job"] for each in results}) == 2
    assert most_at_once([each["span"] for each in results]) == 2
    assert parsl_site.sessions()["opened"] - before["opened"] == 1


@pytest.mark.slow
def test_blocks_are_cancelled_with_the_stages_reason_if_its_keeper_is(parsl_site: Site) -> None:
    """And the blocks that replace them open the stage again."""
    holder = parsl_site.slurm(
        "sbatch",
        "--parsable",
        "--licenses=qpu_ibm_quick:1",
        "--output=/dev/null",
        "--wrap=sleep 600",
    )
    try:
        with load_stage(parsl_site, classical=False, retries=2) as kernel:
            call = sample(bell())
            provider = kernel.executors["qpu"].provider
            wait_until(lambda: provider.resources, "the first block")
            first = find_stage("vqe")
            parsl_site.slurm("scancel", str(first.keeper_job))

            (job, *_) = provider.resources
            ended = lambda: provider.resources[job]["status"].terminal  # noqa: E731
            wait_until(ended, "the block to be cancelled")
            assert "stage 'vqe'" in str(provider.resources[job]["status"])
            wait_until(lambda: find_stage("vqe").id != first.id, "the stage to be opened again")
            parsl_site.slurm("scancel", holder)
            assert call.result(timeout=120)["task"]
    finally:
        parsl_site.slurm("scancel", holder)
