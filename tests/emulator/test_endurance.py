"""Accepted tasks survive the emulator's death, and memory use does not grow with their number."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import psutil
import pytest
from emulator_clients import bell, connect, primitive, wait
from qiskit import QuantumCircuit, qasm3
from qrmi import Payload, QrmiError, TaskStatus
from waiting import wait_until

from qrmi_workflows.emulator import start_emulator

NULL = """
[qpus.ibm_null]
type = "ibm-quantum-compute-service"
simulator = "null"

[qpus.FRESNEL]
type = "pasqal-cloud"
simulator = "null"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "null.toml"
    path.write_text(NULL)
    return path


def test_no_accepted_task_is_lost_if_the_emulator_is_killed(tmp_path, config):
    """Two clients submit as fast as they can; after a restart, every task they know completes."""
    payloads = {
        "ibm_null": primitive("sampler", [[bell()]]),
        "FRESNEL": Payload.PasqalCloud(sequence='{"device": {}}', job_runs=3),
    }
    task_ids: dict[str, list[str]] = {name: [] for name in payloads}
    first = start_emulator(tmp_path / "state", config=config)

    def submit(name: str) -> None:
        resource = connect(first, name)
        try:
            while True:
                task_ids[name].append(resource.task_start(payloads[name]))
        except QrmiError:
            return

    clients = [threading.Thread(target=submit, args=(name,)) for name in payloads]
    for client in clients:
        client.start()
    wait_until(lambda: all(len(ids) >= 100 for ids in task_ids.values()), "100 tasks of each QPU")
    first.process.kill()
    first.process.wait()
    for client in clients:
        client.join(30)
    with start_emulator(tmp_path / "state", config=config) as second:
        for name, ids in task_ids.items():
            resource = connect(second, name)
            assert {wait(resource, task) for task in ids} == {TaskStatus.Completed}
        accepted = second.counters()["tasks"]["accepted"]
        known = sum(map(len, task_ids.values()))
        assert known <= accepted <= known + 2  # each client may have lost one response


@pytest.mark.slow
def test_a_simulation_interrupted_by_kill_9_runs_again(tmp_path):
    """A task that was running when the emulator was killed completes after a restart."""
    circuit = QuantumCircuit(17)
    for layer in range(40):
        for qubit in range(17):
            circuit.ry(0.3 + layer, qubit)
            circuit.cx(qubit, (qubit + 1) % 17)
    payload = primitive("estimator", [[qasm3.dumps(circuit), "Z" * 17, [], 0]])
    first = start_emulator(tmp_path / "state")
    resource = connect(first, "ibm_fez")
    task = resource.task_start(payload)
    assert resource.task_status(task) == TaskStatus.Running
    workers = psutil.Process(first.process.pid).children(recursive=True)
    first.process.kill()
    first.process.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    with start_emulator(tmp_path / "state"):
        assert wait(resource, task) == TaskStatus.Completed
        assert json.loads(resource.task_result(task).value)


@pytest.mark.slow
def test_stored_objects_survive_kill_9(tmp_path):
    """After a restart, an existing handle finds its results in the System API's object store."""
    qpus = ("ibm_system=ibm-quantum-system",)
    first = start_emulator(tmp_path / "state", qpus)
    resource = connect(first, "ibm_system")
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert wait(resource, task) == TaskStatus.Completed
    result = resource.task_result(task).value
    first.process.kill()
    first.process.wait()
    with start_emulator(tmp_path / "state", qpus):
        assert resource.task_result(task).value == result
        assert "without noise" in resource.task_logs(task)


@pytest.mark.slow
def test_memory_use_does_not_grow_with_the_number_of_tasks(tmp_path, config):
    """The first 3,000 tasks may fill caches, but the next 7,000 add next to nothing."""
    with start_emulator(tmp_path / "state", config=config) as emulator:
        resource, payload = connect(emulator, "ibm_null"), primitive("sampler", [[bell()]])
        server = psutil.Process(emulator.process.pid)

        def run_tasks(count: int) -> int:
            for _ in range(count):
                resource.task_start(payload)
            wait_until(lambda: emulator.counters()["tasks"]["queued"] == 0, "an empty queue")
            return int(server.memory_info().rss)

        before = run_tasks(3000)
        after = run_tasks(7000)
        assert emulator.counters()["tasks"]["accepted"] == 10_000
        assert after - before < 10e6
        assert after < 300e6


def test_simulations_do_not_delay_other_requests(tmp_path):
    """They run in separate processes, so a status request still takes milliseconds."""
    import statistics
    import time

    circuit = QuantumCircuit(23)
    for layer in range(60):
        for qubit in range(23):
            circuit.ry(0.3 + layer, qubit)
            circuit.cx(qubit, (qubit + 1) % 23)
    with start_emulator(tmp_path / "state") as emulator:
        resource = connect(emulator, "ibm_fez")
        task = resource.task_start(
            primitive("estimator", [[qasm3.dumps(circuit), "Z" * 23, [], 0]])
        )
        samples = []
        while resource.task_status(task) == TaskStatus.Running and len(samples) < 200:
            started = time.perf_counter()
            resource.task_status(task)
            samples.append(time.perf_counter() - started)
        assert len(samples) > 20
        assert statistics.median(samples) < 0.1
        resource.task_stop(task)
