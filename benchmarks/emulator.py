"""Measure the emulator's overhead: `python benchmarks/emulator.py` prints JSON.

It runs the null simulator and the real `qrmi` client on one machine. The targets are a median of
at most 1 ms for each call, 1,000 task starts per second from 4 client processes, and at most 300 MB
of resident memory after 10,000 tasks.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

from qrmi_workflows.emulator import Emulator, start_emulator

CONFIG = """
[qpus.ibm_null]
type = "ibm-quantum-compute-service"
simulator = "null"

[qpus.FRESNEL]
type = "pasqal-cloud"
simulator = "null"
"""
TYPES = {
    "ibm_null": ResourceType.IBMQuantumComputeService,
    "FRESNEL": ResourceType.PasqalCloud,
}
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; bit[2] c; h $0; cx $0, $1; c[0] = measure $0;'
PROCESSES = 4
STARTS = 1000
TASKS = 10_000
CALLS = 1000


def main() -> None:
    """Measure, and print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "emulator.toml"
        config.write_text(CONFIG)
        with start_emulator(Path(folder) / "state", config=config) as emulator:
            document = {
                "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
                "python": platform.python_version(),
                "qrmi": version("qrmi"),
                "calls": {name: measure_calls(emulator, name) for name in TYPES},
                "starts_per_second": {name: measure_starts(emulator, name) for name in TYPES},
                "memory": measure_memory(emulator),
            }
    json.dump(document, sys.stdout, indent=2)
    print()


def connect(emulator: Emulator, name: str) -> QuantumResource:
    """Return QRMI's handle to a QPU."""
    document = json.loads(emulator.config_path.read_text())
    entry = next(item for item in document["resources"] if item["name"] == name)
    return QuantumResource.from_config(name, TYPES[name], entry["environment"])


def payload(name: str) -> Payload:
    """Return a small payload."""
    if name == "FRESNEL":
        return Payload.PasqalCloud(sequence='{"device": {"name": "FRESNEL"}}', job_runs=10)
    document = {"pubs": [[CIRCUIT, None, 100]], "version": 2, "support_qiskit": True}
    return Payload.QiskitPrimitive(input=json.dumps(document), program_id="sampler")


def measure_calls(emulator: Emulator, name: str) -> dict[str, dict[str, float]]:
    """Time the start, status and result calls of a single client."""
    resource, task = connect(emulator, name), payload(name)
    wait(resource, resource.task_start(task))
    ids: list[str] = []
    start = time_call(lambda: ids.append(resource.task_start(task)))
    wait(resource, ids[-1])
    status = time_call(lambda: resource.task_status(ids[0]))
    result = time_call(lambda: resource.task_result(ids[0]))
    return {"task_start": start, "task_status": status, "task_result": result}


def time_call(call: Callable[[], Any]) -> dict[str, float]:
    """Return the median and the 95th percentile of a call, in milliseconds."""
    samples = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        samples.append(1000 * (time.perf_counter() - begin))
    return {
        "median_ms": round(statistics.median(samples), 3),
        "p95_ms": round(statistics.quantiles(samples, n=20)[-1], 3),
    }


def wait(resource: QuantumResource, task_id: str) -> None:
    """Wait until a task has completed."""
    while resource.task_status(task_id) != TaskStatus.Completed:
        time.sleep(0.001)


def measure_starts(emulator: Emulator, name: str) -> float:
    """Return how many tasks four processes can start per second."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES + 1)
    clients = [
        context.Process(target=start_many, args=(emulator.config_path, name, barrier))
        for _ in range(PROCESSES)
    ]
    for client in clients:
        client.start()
    barrier.wait(60)
    begin = time.perf_counter()
    for client in clients:
        client.join()
    seconds = time.perf_counter() - begin
    if any(client.exitcode for client in clients):
        raise RuntimeError("a client process failed")
    return round(PROCESSES * STARTS / seconds)


def start_many(config: Path, name: str, barrier: Any) -> None:
    """Start tasks in a client process."""
    entry = next(
        item for item in json.loads(config.read_text())["resources"] if item["name"] == name
    )
    resource = QuantumResource.from_config(name, TYPES[name], entry["environment"])
    task = payload(name)
    resource.task_start(task)
    barrier.wait(60)
    for _ in range(STARTS):
        resource.task_start(task)


def measure_memory(emulator: Emulator) -> dict[str, float]:
    """Return the resident memory of the emulator and its workers after 10,000 tasks, in MB."""
    resource, task = connect(emulator, "ibm_null"), payload("ibm_null")
    while emulator.counters()["tasks"]["accepted"] < TASKS:
        for _ in range(500):
            resource.task_start(task)
    while emulator.counters()["tasks"]["finished"] < emulator.counters()["tasks"]["accepted"]:
        time.sleep(0.1)
    server = psutil.Process(emulator.process.pid)
    processes = [server, *server.children(recursive=True)]
    resident = sum(process.memory_info().rss for process in processes) / 1e6
    return {"tasks": emulator.counters()["tasks"]["finished"], "resident_mb": round(resident, 1)}


if __name__ == "__main__":
    main()
