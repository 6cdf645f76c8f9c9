"""Parsl with a QPU: this project's provider, launcher and executor beside Parsl's own, in one run.

    python benchmarks/parsl_apps.py [--rounds N]

On a sandbox of its own, with a QPU of four lanes whose tasks take 50 ms:

- *no-ops*: 500 classical apps through a pool that runs quantum ones too, against stock
  `SlurmProvider` and `HighThroughputExecutor` with as many workers.
- *lanes*: 200 tasks of 50 ms, against what four lanes can do at best; and stock running apps that
  only sleep for 50 ms, on four workers.
- *first*: seconds from `parsl.load` to the first result: a task's on the QPU, and stock's no-op's.
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
def nothing() -> None:
    """What Parsl itself costs."""


@python_app
def sleep(seconds: float) -> None:
    """What a QPU's task costs where it is no QPU's task."""
    import time

    time.sleep(seconds)


@qpu_app
def sample(payload: dict[str, Any], *, lease: Any) -> str:
    """One task on the QPU."""
    return str(lease.run(payload).task_id)


def payload(shots: int) -> dict[str, Any]:
    """A task whose content does not matter; another number of shots makes another one."""
    parameters = {"pubs": [[PROGRAM, None, shots]], "version": 2, "support_qiskit": True}
    return {"program_id": "sampler", "parameters": parameters}


def stock(workers: int) -> HighThroughputExecutor:
    """Parsl's own, with the same small block."""
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
    """This project's."""
    provider = QPUSlurmProvider(qpu="ibm_fez", walltime="00:10:00")
    return QPUExecutor(address="127.0.0.1", provider=provider, max_workers_per_node=workers)


@contextmanager
def loaded(executor: Any, folder: Path) -> Iterator[None]:
    """Parsl with one executor, logging as by default."""
    config = Config(executors=[executor], run_dir=str(folder / f"run-{time.monotonic_ns()}"))
    with parsl.load(config):
        yield


def seconds_of(work: Callable[[], object]) -> float:
    """Time one piece of work."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def all_of(calls: Callable[[int], Any], count: int) -> float:
    """Seconds for that many calls to end."""

    def work() -> None:
        for future in [calls(number) for number in range(count)]:
            future.result()

    return seconds_of(work)


def first(executor: Any, call: Callable[[], Any], folder: Path) -> float:
    """Seconds from loading Parsl to a first result."""
    before = time.perf_counter()
    with loaded(executor, folder):
        call().result()
        return time.perf_counter() - before


def measure(folder: Path) -> dict[str, float]:
    """One round; what is compared comes one after the other."""
    times: dict[str, float] = {}
    times["stock_first"] = first(stock(LANES), nothing, folder)
    times["first"] = first(ours(), lambda: sample(payload(1)), folder)
    with loaded(stock(WORKERS), folder):
        all_of(lambda _: nothing(), 20)
        times["stock_no_ops"] = all_of(lambda _: nothing(), NO_OPS)
    with loaded(ours(WORKERS), folder):
        all_of(lambda _: nothing(), 20)
        times["no_ops"] = all_of(lambda _: nothing(), NO_OPS)
    with loaded(stock(LANES), folder):
        all_of(lambda _: nothing(), 20)
        times["stock_lanes"] = all_of(lambda _: sleep(SECONDS), TASKS)
    with loaded(ours(), folder):
        all_of(lambda number: sample(payload(1000 + number)), 20)
        times["lanes"] = all_of(lambda number: sample(payload(number + 1)), TASKS)
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
