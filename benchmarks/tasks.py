"""Measure the overhead of tasks, of the journal and of the lease.

Each figure is a ratio or a difference of measurements made side by side in one run::

    python benchmarks/tasks.py [--quick]

- *task*: `Lease.run`, against raw QRMI calls that poll every 5 ms (the limit) and upstream's
  `SamplerV2` (the peer), for several durations on the device.
- *lanes*: many tasks through `Lease.map`, against the best time that the lanes allow.
- *journal*: milliseconds to record one task, with 10 to 100,000 records in the journal.
- *lease*: seconds that `qpu lease exec -- true` takes longer than `true`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DURATIONS = (0.0, 0.05, 0.5, 3.0)
LANES, LANE_TASK_SECONDS = 5, 0.05
PROGRAM = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'


def payload(shots: int) -> dict[str, Any]:
    """Return a payload whose content does not matter."""
    parameters = {"pubs": [[PROGRAM, None, shots]], "version": 2, "support_qiskit": True}
    return {"program_id": "sampler", "parameters": parameters}


@contextmanager
def emulated_site(folder: Path) -> Iterator[None]:
    """Start an emulator whose QPUs take fixed times, and point the environment at it."""
    from qrmi_workflows.emulator import start_emulator

    names = {f"ibm_{int(seconds * 1000)}ms": seconds for seconds in DURATIONS}
    tables = [
        f'[qpus.{name}]\ntype = "ibm-quantum-compute-service"\nsimulator = "null"\n'
        f"execution_seconds = {seconds}\nlanes = {LANES}\n"
        for name, seconds in names.items()
    ]
    tables.append(
        '[qpus.ibm_lanes]\ntype = "ibm-quantum-compute-service"\nsimulator = "null"\n'
        f"preparation_seconds = {LANE_TASK_SECONDS}\nexecution_seconds = 0\nlanes = {LANES}\n"
    )
    (folder / "emulator.toml").write_text("\n".join(tables))
    policy = "\n".join(f"[qpus.{name}]\nlanes = {LANES}" for name in [*names, "ibm_lanes"])
    (folder / "site.toml").write_text(policy)
    with start_emulator(folder / "emulator", config=folder / "emulator.toml") as running:
        os.environ["QPU_CONFIG"] = str(running.config_path)
        os.environ["QPU_SITE"] = str(folder / "site.toml")
        os.environ["QPU_STATE"] = str(folder / "state")
        yield


def seconds_of(work: Callable[[], object]) -> float:
    """Time a function call."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def measure_task(seconds: float, repeats: int) -> dict[str, float]:
    """Time one task by raw calls, by `Lease.run` and by upstream's primitive."""
    from qiskit import QuantumCircuit
    from qrmi import Payload, QuantumResource, ResourceType, TaskStatus
    from qrmi.primitives.ibm import SamplerV2

    from qrmi_workflows import open_lease
    from qrmi_workflows.config.qpus import load_qpus

    name = f"ibm_{int(seconds * 1000)}ms"
    lease = open_lease(name)
    # Share the lease's session: tasks of another one would wait until it is closed.
    token = {
        "QRMI_JOB_ACQUISITION_TOKEN": lease.environment()[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"]
    }
    environment = {**load_qpus()[name].environment, **token}
    raw = QuantumResource.from_config(name, ResourceType.IBMQuantumComputeService, environment)
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    final_states = (TaskStatus.Completed, TaskStatus.Failed, TaskStatus.Cancelled)

    def limit() -> None:
        task = raw.task_start(
            Payload.QiskitPrimitive(
                input=json.dumps(payload(1)["parameters"]), program_id="sampler"
            )
        )
        while raw.task_status(task) not in final_states:
            time.sleep(0.005)
        raw.task_result(task)

    def upstream() -> None:
        job = SamplerV2(raw).run([circuit], shots=1)
        job.result()

    times: dict[str, list[float]] = {"limit": [], "ours": [], "upstream": []}
    with lease:
        limit()
        lease.run(payload(1))
        for _ in range(repeats):  # interleaved, so that other load affects both alike
            times["limit"].append(seconds_of(limit))
            times["ours"].append(seconds_of(lambda: lease.run(payload(1))))
        for _ in range(min(repeats, 3)):
            times["upstream"].append(seconds_of(upstream))
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "device_seconds": seconds,
        **{f"{key}_seconds": round(value, 4) for key, value in medians.items()},
        "ours_over_limit": round(medians["ours"] / medians["limit"], 3),
        "upstream_over_limit": round(medians["upstream"] / medians["limit"], 3),
        "within_10ms_and_5_percent": medians["ours"] <= 1.05 * medians["limit"] + 0.010,
    }


def measure_lanes(tasks: int) -> dict[str, float]:
    """Time many tasks on all lanes."""
    from qrmi_workflows import open_lease

    with open_lease("ibm_lanes") as lease:
        lease.run(payload(1))
        seconds = seconds_of(lambda: list(lease.map(payload(1) for _ in range(tasks))))
    best = tasks * LANE_TASK_SECONDS / LANES
    return {
        "tasks": tasks,
        "lanes": LANES,
        "seconds": round(seconds, 2),
        "of_best": round(best / seconds, 3),
    }


def measure_journal(sizes: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Time the recording of one task while the journal grows."""
    from qrmi_workflows.journal.journal import Journal
    from qrmi_workflows.results import QuantumResult

    result = QuantumResult(
        qpu="q", type="t", program="sampler", task_id="id", payload_digest="d",
        submitted="", completed="", data=[], vendor_result="x" * 400,
    )  # fmt: skip
    step, medians, number = Journal().step("benchmark"), {}, 0

    def task() -> None:
        nonlocal number
        number += 1
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        entry, _ = step.claim(digest, qpu="q", program="sampler")
        entry.submitted("id")
        entry.completed(result)

    task()
    example = next(step.folder.glob("*.json")).read_bytes()
    for size in sizes:
        for index in range(len(list(step.folder.glob("*.json"))), size):
            (step.folder / f"{index:032x}-q-0.json").write_bytes(example)
        medians[str(size)] = round(
            statistics.median(seconds_of(task) for _ in range(repeats)) * 1000, 3
        )
    return medians


def measure_lease(repeats: int) -> dict[str, float]:
    """Time the commands that run at the start of every job."""
    qpu = [sys.executable, "-m", "qrmi_workflows"]
    commands = {
        "true": ["true"],
        "lease exec true": [*qpu, "lease", "exec", "--qpu", "ibm_0ms", "--", "true"],
        "help": [*qpu, "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, argv in commands.items():
            times[name].append(
                seconds_of(lambda argv=argv: subprocess.run(argv, check=True, capture_output=True))
            )
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "lease_exec_more_than_true_seconds": round(medians["lease exec true"] - medians["true"], 3),
        "help_seconds": round(medians["help"], 3),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="repeat less, for a quick check")
    quick = parser.parse_args().quick
    repeats = 5 if quick else 15
    sizes = (10, 1_000) if quick else (10, 1_000, 10_000, 100_000)
    with tempfile.TemporaryDirectory(prefix="qpu-bench-") as folder, emulated_site(Path(folder)):
        figures = {
            "task": [measure_task(seconds, 3 if seconds > 1 else repeats) for seconds in DURATIONS],
            "lanes": measure_lanes(100 if quick else 1_000),
            "journal_ms": measure_journal(sizes, 50 if quick else 200),
            "lease": measure_lease(repeats),
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
