"""Clients of an emulator, above all the real `qrmi`, and small payloads."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from typing import Any

import numpy as np
import pulser
from pulser.abstract_repr import deserialize_device
from qiskit import QuantumCircuit, qasm3
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus
from waiting import wait_until

from qrmi_workflows.emulator import Emulator
from qrmi_workflows.vendors.registry import registered_type

TYPES = {
    "alice-bob-felis": ResourceType.AliceBobFelis,
    "ibm-quantum-compute-service": ResourceType.IBMQuantumComputeService,
    "ibm-quantum-system": ResourceType.IBMQuantumSystem,
    "iqm-server": ResourceType.IQMServer,
    "pasqal-cloud": ResourceType.PasqalCloud,
    "pasqal-local": ResourceType.PasqalLocal,
}
FINAL = (TaskStatus.Completed, TaskStatus.Failed, TaskStatus.Cancelled)


def read_resources(emulator: Emulator) -> dict[str, dict[str, Any]]:
    """Return the entries of the emulator's `qrmi_config.json` by name."""
    document = json.loads(emulator.config_path.read_text(encoding="utf-8"))
    return {item["name"]: item for item in document["resources"]}


def connect(emulator: Emulator, name: str, **extra: str) -> QuantumResource:
    """Return QRMI's handle to an emulated QPU, with the settings that our own handles get."""
    entry = read_resources(emulator)[name]
    known = registered_type(entry["type"])
    settings = {**(known.settings if known else {}), **entry["environment"], **extra}
    return QuantumResource.from_config(name, TYPES[entry["type"]], settings)


def wait(resource: QuantumResource, task_id: str) -> TaskStatus:
    """Wait until a task has ended; return its final status."""

    def final_status() -> TaskStatus | None:
        status = resource.task_status(task_id)
        return status if status in FINAL else None

    return wait_until(final_status, f"the end of task {task_id}")


def time_in_lane(emulator: Emulator, task_id: str) -> tuple[float, float]:
    """Return when a task that has ended got a lane and when it ended, by the emulator's record."""
    ((started, finished),) = _read(emulator, "started, finished FROM tasks WHERE id=?", task_id)
    return started, finished


def spans(emulator: Emulator, subject: str) -> list[tuple[float, float]]:
    """Return when a task, or a session, had the device, by the emulator's record."""
    return _read(emulator, "started, ended FROM spans WHERE subject=? ORDER BY rowid", subject)


def seconds_of(spans: list[tuple[float, float]]) -> float:
    """Return the length of all spans together."""
    return sum(ended - started for started, ended in spans)


def _read(emulator: Emulator, query: str, subject: str) -> list[Any]:
    with closing(sqlite3.connect(emulator.folder / "emulator.db")) as database:
        return database.execute(f"SELECT {query}", (subject,)).fetchall()


def primitive(program: str, pubs: list[Any], **fields: Any) -> Payload:
    """Return a payload like those of upstream's `task_runner`."""
    document = {"pubs": pubs, "version": 2, "support_qiskit": True, "options": {}, **fields}
    return Payload.QiskitPrimitive(input=json.dumps(document), program_id=program)


def run(resource: QuantumResource, payload: Payload) -> str:
    """Run one task and return its raw result."""
    task_id = resource.task_start(payload)
    status = wait(resource, task_id)
    assert status == TaskStatus.Completed, resource.task_logs(task_id)
    return str(resource.task_result(task_id).value)


def sample(resource: QuantumResource, *pub: Any, **fields: Any) -> Any:
    """Run one sampler PUB and return its data."""
    return ResultDecoder.decode(run(resource, primitive("sampler", [list(pub)], **fields)))[0].data


def estimate(resource: QuantumResource, *pub: Any, **fields: Any) -> Any:
    """Run one estimator PUB and return its data."""
    return ResultDecoder.decode(run(resource, primitive("estimator", [list(pub)], **fields)))[
        0
    ].data


def ask(
    emulator: Emulator, method: str, path: str, body: object = None, headers: Any = None
) -> tuple[int, Any]:
    """Send a raw HTTP request, and return the status and the decoded body."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - our own http address
        emulator.url + path, data=data, method=method, headers=headers or {}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


def ibm_headers(emulator: Emulator, resource_type: str = "ibm-quantum-compute-service") -> Any:
    """Exchange the emulator's API key for a token, and return the headers of a request."""
    credentials = json.loads((emulator.folder / "credentials.json").read_text(encoding="utf-8"))
    secrets = credentials["secrets"][resource_type]
    grant = "urn:ibm:params:oauth:grant-type:apikey"
    form = urllib.parse.urlencode({"grant_type": grant, "apikey": secrets["apikey"]}).encode()
    _, token = ask(emulator, "POST", f"/{resource_type}/identity/token", form)
    return {
        "Authorization": f"Bearer {token['access_token']}",
        "Service-CRN": secrets["crn"],
        "Content-Type": "application/json",
    }


def submit_raw(emulator: Emulator, program: str, params: object, qpu: str = "ibm_fez") -> str:
    """Submit parameters that QRMI itself would not send, and return the task's id."""
    body = {"program_id": program, "backend": qpu, "params": params}
    path = "/ibm-quantum-compute-service/jobs"
    status, job = ask(emulator, "POST", path, body, ibm_headers(emulator))
    assert status == 200, job
    return str(job["id"])


def device_of(resource: QuantumResource) -> Any:
    """Return the Pulser device described by a resource's target."""
    return deserialize_device(json.loads(resource.target().value)[0]["specs"])


def blockade(device: Any, distance: float = 5.0) -> str:
    """Return a sequence that drives two atoms from the ground state to one shared excitation."""
    register = pulser.Register.from_coordinates([(0, 0), (distance, 0)], prefix="q")
    return _driven(register, device, 352)


def pi_pulse(device: Any) -> str:
    """Return a sequence that excites one atom."""
    return _driven(pulser.Register.from_coordinates([(0, 0)], prefix="q"), device, 500)


def _driven(register: Any, device: Any, nanoseconds: int) -> str:
    if getattr(device, "requires_layout", False):
        register = register.with_automatic_layout(device)
    sequence = pulser.Sequence(register, device)
    sequence.declare_channel("global", "rydberg_global")
    sequence.add(pulser.Pulse.ConstantPulse(nanoseconds, 2 * np.pi, 0, 0), "global")
    sequence.measure()
    return str(sequence.to_abstract_repr())


def bell(width: int = 2) -> str:
    """Return a circuit in OpenQASM 3 that measures a Bell pair, or a wider GHZ state."""
    circuit = QuantumCircuit(width)
    circuit.h(0)
    for qubit in range(width - 1):
        circuit.cx(qubit, qubit + 1)
    circuit.measure_all()
    return qasm3.dumps(circuit)
