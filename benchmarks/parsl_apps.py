"""Compare this project's provider, launcher and executor with Parsl's own.

    python benchmarks/parsl_apps.py [--rounds N]

Both run in a sandbox whose QPU has four lanes and whose tasks take 50 ms:

- *no-ops*: 500 classical apps on an executor that also runs quantum apps, against stock
  `SlurmProvider` and `HighThroughputExecutor` with the same number of workers.
- *lanes*: 200 tasks of 50 ms, against the best time that four lanes allow; the same for stock,
  whose apps sleep for 50 ms on four workers.
- *first*: seconds from `parsl.load` to the first result, which is a task's on the QPU and a no-op's
  for stock.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import parsl
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SingleNodeLauncher
from parsl.providers import SlurmProvider

from parsl_ext import QPUExecutor, QPUSlurmProvider, qpu_app
from qrmi_workflows.sandbox import Sandbox

LANES, WORKERS, SECONDS = 4, 6, 0.05
NO_OPS, TASKS = 500, 200
EMULATOR = f"""
[qpus.ibm_fez]
type = "ibm-quantum-compute-service"
simulator = "null"
preparation_seconds = {SECONDS}
execution_seconds = 0
lanes = {LANES}
"""
PROGRAM = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'


@python_app
def no_op() -> None:
    """Do nothing: what remains is Parsl's own overhead."""


@python_app
def sleep(seconds: float) -> None:
    """Sleep for as long as a task takes on the QPU."""
    import time

    time.sleep(seconds)


@qpu_app
def sample(payload: dict[str, Any], *, lease: Any) -> str:
    """Run one task on the QPU."""
    return str(lease.run(payload).task_id)


def payload(shots: int) -> dict[str, Any]:
    """Return a payload; each number of shots makes a different task."""
    parameters = {"pubs": [[PROGRAM, None, shots]], "version": 2, "support_qiskit": True}
    return {"program_id": "sampler", "parameters": parameters}


def stock(workers: int) -> HighThroughputExecutor:
    """Return Parsl's own executor with the same small block."""
    provider = SlurmProvider(
        exclusive=False,
        cores_per_node=1,
        init_blocks=1,
        max_blocks=1,
        walltime="00:10:00",
        launcher=SingleNodeLauncher(),
        scheduler_options="#SBATCH --gres=qpu:ibm_fez:1",
    )
    return HighThroughputExecutor(
        label="stock",
        address="127.0.0.1",
        provider=provider,
        cores_per_worker=1e-9,
        max_workers_per_node=workers,
    )


def ours(workers: int | None = None) -> QPUExecutor:
    """Return this project's executor."""
    provider = QPUSlurmProvider(qpu="ibm_fez", walltime="00:10:00")
    return QPUExecutor(address="127.0.0.1", provider=provider, max_workers_per_node=workers)


@contextmanager
def load_parsl(executor: Any, folder: Path) -> Iterator[None]:
    """Load Parsl with one executor and its default logging."""
    config = Config(executors=[executor], run_dir=str(folder / f"run-{time.monotonic_ns()}"))
    with parsl.load(config):
        yield


def seconds_of(work: Callable[[], object]) -> float:
    """Time a function call."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def seconds_of_calls(call: Callable[[int], Any], count: int) -> float:
    """Time a number of app calls until all have finished."""

    def work() -> None:
        for future in [call(number) for number in range(count)]:
            future.result()

    return seconds_of(work)


def seconds_to_first_result(executor: Any, call: Callable[[], Any], folder: Path) -> float:
    """Time from loading Parsl to the first result."""
    before = time.perf_counter()
    with load_parsl(executor, folder):
        call().result()
        return time.perf_counter() - before


def measure(folder: Path) -> dict[str, float]:
    """Run one round, in which measurements to be compared follow one another."""
    times: dict[str, float] = {}
    times["stock_first"] = seconds_to_first_result(stock(LANES), no_op, folder)
    times["first"] = seconds_to_first_result(ours(), lambda: sample(payload(1)), folder)
    with load_parsl(stock(WORKERS), folder):
        seconds_of_calls(lambda _: no_op(), 20)
        times["stock_no_ops"] = seconds_of_calls(lambda _: no_op(), NO_OPS)
    with load_parsl(ours(WORKERS), folder):
        seconds_of_calls(lambda _: no_op(), 20)
        times["no_ops"] = seconds_of_calls(lambda _: no_op(), NO_OPS)
    with load_parsl(stock(LANES), folder):
        seconds_of_calls(lambda _: no_op(), 20)
        times["stock_lanes"] = seconds_of_calls(lambda _: sleep(SECONDS), TASKS)
    with load_parsl(ours(), folder):
        seconds_of_calls(lambda number: sample(payload(1000 + number)), 20)
        times["lanes"] = seconds_of_calls(lambda number: sample(payload(number + 1)), TASKS)
    return times


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "emulator.toml").write_text(EMULATOR)
        box = Sandbox(folder / "box")
        box.up(config=folder / "emulator.toml")
        try:
            os.environ.update(box.environment())
            os.environ["PATH"] += f":{Path(sys.executable).parent}"
            rounds = [measure(folder) for _ in range(arguments.rounds)]
        finally:
            box.down(grace=0)
    medians = {key: median(one[key] for one in rounds) for key in rounds[0]}
    limit = TASKS * SECONDS / LANES
    report = {
        **{f"{key}_seconds": round(value, 3) for key, value in medians.items()},
        "no_ops_of_stock": round(medians["stock_no_ops"] / medians["no_ops"], 3),
        "lanes_of_limit": round(limit / medians["lanes"], 3),
        "stock_lanes_of_limit": round(limit / medians["stock_lanes"], 3),
        "first_later_than_stock_seconds": round(medians["first"] - medians["stock_first"], 3),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
