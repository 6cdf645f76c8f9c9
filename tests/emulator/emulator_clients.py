"""The real `qrmi` client pointed at an emulator, and small payloads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from qiskit import QuantumCircuit, qasm3
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

from qrmi_workflows.emulator import Emulator

TYPES = {
    "ibm-quantum-compute-service": ResourceType.IBMQuantumComputeService,
    "ibm-quantum-system": ResourceType.IBMQuantumSystem,
    "pasqal-cloud": ResourceType.PasqalCloud,
    "pasqal-local": ResourceType.PasqalLocal,
}
FINAL = (TaskStatus.Completed, TaskStatus.Failed, TaskStatus.Cancelled)


def read_resources(emulator: Emulator) -> dict[str, dict[str, Any]]:
    """Return the entries of `qrmi_config.json` by name."""
    document = json.loads(emulator.config_path.read_text(encoding="utf-8"))
    return {item["name"]: item for item in document["resources"]}


def connect(emulator: Emulator, name: str, **extra: str) -> QuantumResource:
    """Return QRMI's handle to an emulated QPU."""
    entry = read_resources(emulator)[name]
    return QuantumResource.from_config(name, TYPES[entry["type"]], entry["environment"] | extra)


def wait(resource: QuantumResource, task_id: str, seconds: float = 30) -> TaskStatus:
    """Poll a task until it has ended."""
    deadline = time.monotonic() + seconds
    while (status := resource.task_status(task_id)) not in FINAL:
        assert time.monotonic() < deadline, f"task {task_id} is still {status}"
        time.sleep(0.005)
    return status


def primitive(program: str, pubs: list[Any], **fields: Any) -> Payload:
    """Return a payload as upstream's `task_runner` makes it."""
    document = {"pubs": pubs, "version": 2, "support_qiskit": True, "options": {}, **fields}
    return Payload.QiskitPrimitive(input=json.dumps(document), program_id=program)


def run(resource: QuantumResource, payload: Payload) -> str:
    """Run one task and return its raw result."""
    task_id = resource.task_start(payload)
    status = wait(resource, task_id)
    assert status == TaskStatus.Completed, resource.task_logs(task_id)
    return str(resource.task_result(task_id).value)


def bell(width: int = 2) -> str:
    """Return a Bell pair, or a longer GHZ state, that is measured, in OpenQASM 3."""
    circuit = QuantumCircuit(width)
    circuit.h(0)
    for qubit in range(width - 1):
        circuit.cx(qubit, qubit + 1)
    circuit.measure_all()
    return qasm3.dumps(circuit)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that no event announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
