"""Run Parsl on a sandbox whose QPUs compute nothing and take a known time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parsl
import psutil
from parsl.config import Config
from waiting import wait_until
from warm_ups import without_warm_ups

from parsl_ext import QPUExecutor, QPUSlurmProvider
from qrmi_workflows.emulator.client import Control
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.sandbox import Sandbox
from qrmi_workflows.schedulers.command import require_success, run_command

EMULATOR = """
[qpus.ibm_quick]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
lanes = 4

[qpus.ibm_other]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 0.05
lanes = 4

[qpus.ibm_endless]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 3600
lanes = 4

[qpus.ibm_slow]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = 6.0
lanes = 4

[qpus.ibm_system]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = 6.0
lanes = 4
"""

BELL = """OPENQASM 3.0;
include "stdgates.inc";
bit[2] meas;
sx $0; cz $0, $1; sx $1;
meas[0] = measure $0;
meas[1] = measure $1;
"""


def bell(shots: int = 100) -> dict[str, Any]:
    """Return a payload; a different number of shots makes a different payload."""
    parameters = {"pubs": [[BELL, None, shots]], "version": 2, "support_qiskit": True}
    return {"program_id": "sampler", "parameters": parameters}


@dataclass(frozen=True)
class Site:
    """A sandbox, and what its emulator and its Slurm report."""

    box: Sandbox
    folder: Path

    @property
    def control(self) -> Control:
        """The emulator's control endpoint."""
        return Control(self.box.directory / "emulator")

    def sessions(self) -> dict[str, int]:
        """Return how many sessions have been opened and closed, and how many are open."""
        return dict(self.control.counters()["sessions"])

    def tasks(self) -> dict[str, int]:
        """Return the emulator's counters of tasks, without the warm-up tasks of keepers."""
        tasks = self.control.counters()["tasks"]
        return without_warm_ups(tasks, self.box.directory / "emulator")

    def recorded(self) -> int:
        """Return how many tasks have their ids in the journal: killing their process loses none."""
        records = (each for each in Journal().records() if ", warm-up " not in each.step)
        return sum(record.state == "submitted" for record in records)

    @contextmanager
    def paused(self, qpu: str) -> Iterator[None]:
        """Keep the tasks of a QPU from starting, so that none ends before a test is ready."""
        self.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "paused"})
        try:
            yield
        finally:
            self.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "online"})

    def slurm(self, *argv: str) -> str:
        """Run one of Slurm's commands and return its output; it must succeed."""
        return require_success(run_command(argv)).stdout.strip()

    def jobs(self, form: str = "%A|%T|%b") -> list[str]:
        """Return the pending, running and completing jobs, a line each."""
        return self.slurm("squeue", "--noheader", f"--format={form}").splitlines()

    def cancel_blocks(self, kernel: Any) -> None:
        """Cancel the blocks that Parsl has submitted so far, and wait until they have ended."""
        blocks = set(kernel.executors["qpu"].provider.resources)
        self.slurm("scancel", *blocks)
        wait_until(lambda: blocks.isdisjoint(self.jobs("%A")), "the blocks to end")

    @contextmanager
    def load(
        self,
        *,
        qpu: str | list[str] = "ibm_quick",
        retries: int = 0,
        strategy: str = "simple",
        **options: Any,
    ) -> Iterator[Any]:
        """Load Parsl with one QPU executor; on exit, wait until its jobs have ended."""
        config = Config(
            executors=[executor(qpu=qpu, **options)],
            run_dir=str(self.folder / f"run-{time.monotonic_ns()}"),
            strategy=strategy,
            strategy_period=0.3,
            max_idletime=1.0,
            retries=retries,
        )
        try:
            with parsl.load(config) as kernel:
                yield kernel
        finally:
            wait_until(lambda: not self.jobs(), "jobs to end")


def executor(
    *,
    qpu: str | list[str] = "ibm_quick",
    lanes: int | None = None,
    max_workers_per_node: int | None = None,
    heartbeat_threshold: int = 30,
    **options: Any,
) -> QPUExecutor:
    """Return an executor on the sandbox; `options` are the provider's."""
    settings = {"walltime": "00:05:00", "status_polling_interval": 1, **options}
    provider = QPUSlurmProvider(qpu=qpu, **settings)
    return QPUExecutor(
        provider=provider,
        lanes=lanes,
        max_workers_per_node=max_workers_per_node,
        heartbeat_period=heartbeat_threshold // 3,
        heartbeat_threshold=heartbeat_threshold,
    )


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """Return the largest number of time spans that overlap."""
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def end_orphans(children: list[psutil.Process]) -> None:
    """End what outlives a program that was killed: Parsl's interchange does."""
    for orphan in children:
        if orphan.is_running():  # and no other process has its pid by now
            orphan.kill()


def processes_with(variable: str) -> list[psutil.Process]:
    """Return the other processes whose environment has this process's value of a variable."""
    found = []
    for process in psutil.process_iter():
        try:
            value = process.environ().get(variable)
        except psutil.Error:
            continue
        if value == os.environ[variable] and process.pid != os.getpid():
            found.append(process)
    return found
