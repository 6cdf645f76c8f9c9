"""IQM Server, through the real `qrmi` client."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from math import pi
from typing import Any

import pytest
from emulator_clients import ask, read_resources, wait
from qrmi import (
    AuthenticationFailedError,
    InvalidInputError,
    Payload,
    ResourceStatusCode,
    TaskNotFoundError,
    TaskStatus,
)


def operation(name: str, *qubits: int, **arguments: Any) -> dict[str, Any]:
    locus = [f"QB{qubit}" for qubit in qubits]
    return {"name": name, "locus": locus, "args": arguments, "implementation": None}


def ghz(*chain: int) -> dict[str, Any]:
    """Return a GHZ state along coupled qubits, in IQM's native operations."""
    instructions = [operation("prx", chain[0], angle=pi / 2, phase=pi / 2)]
    for one, other in pairwise(chain):
        instructions += [
            operation("prx", other, angle=pi / 2, phase=-pi / 2),
            operation("cz", one, other),
            operation("prx", other, angle=pi / 2, phase=pi / 2),
        ]
    instructions.append(operation("barrier", *chain))
    instructions += [operation("measure", qubit, key=f"m{qubit}") for qubit in chain]
    return {"name": "ghz", "instructions": instructions, "metadata": None}


def payload(*circuits: dict[str, Any], shots: Any = 400, job_type: str = "circuit") -> Payload:
    body = json.dumps({"circuits": list(circuits), "shots": shots})
    return Payload.IQMServer(iqmjson=body, job_type=job_type, use_timeslot=False, tag="test")


def test_equal_circuits_of_a_task_are_independent(qpu):
    """Each circuit has random numbers of its own."""
    resource = qpu("garnet_mock")
    task = resource.task_start(payload(*[ghz(1, 2)] * 3))
    assert wait(resource, task) == TaskStatus.Completed
    result = json.loads(resource.task_result(task).value)
    assert len({json.dumps(item, sort_keys=True) for item in result["measurements"]}) == 3


def test_every_method_of_a_resource_and_a_ghz_state(qpu):
    """Every method works, and a task may hold two circuits: a GHZ state and a flipped qubit."""
    resource = qpu("garnet_mock")
    assert resource.status().status == ResourceStatusCode.Online
    target = json.loads(resource.target().value)
    assert len(target["dynamic_quantum_architecture"]["qubits"]) == 20
    assert ["QB4", "QB5"] in target["static_quantum_architecture"]["connectivity"]
    token = resource.acquire()
    flipped = {
        "name": "x",
        "instructions": [
            operation("prx", 7, angle=pi, phase=0.0),
            operation("measure", 7, key="m"),
        ],
    }
    task = resource.task_start(payload(ghz(1, 2, 5, 6, 7), flipped))
    assert wait(resource, task) == TaskStatus.Completed
    result = json.loads(resource.task_result(task).value)
    counts = result["measurement_counts"][0]["counts"]
    assert set(counts) == {"00000", "11111"}
    assert abs(counts["00000"] - 200) < 50
    assert result["measurements"][1] == {"m": [[1]] * 400}
    assert "completed" in resource.task_logs(task)
    resource.release(token)
    assert resource.metadata()["backend_name"] == "garnet:mock"


def headers_of(emulator) -> dict[str, str]:
    token = read_resources(emulator)["garnet_mock"]["environment"]["QRMI_IQM_ISA_TOKEN"]
    return {"Authorization": f"Bearer {token}"}


def test_a_blocking_status_request_returns_when_the_task_is_cancelled(qpu, emulator):
    """QRMI's status call blocks by design until the task has ended.

    The test cancels through the API because `task_stop` of QRMI 0.26.4 first requests the status,
    and therefore blocks for up to half a minute.
    """
    resource = qpu("adonis")
    task = resource.task_start(payload(ghz(1, 3, 2)))
    seen: list[TaskStatus] = []
    waiting = threading.Thread(target=lambda: seen.append(resource.task_status(task)))
    waiting.start()
    path = f"/iqm-server/api/v1/jobs/{task}/cancel"
    assert ask(emulator, "POST", path, b"", headers_of(emulator))[0] == 200
    waiting.join(20)  # it would return by itself after half a minute
    assert seen == [TaskStatus.Cancelled]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (payload(), "at least one circuit"),
        (payload(ghz(1, 2), shots=0), "shots"),
        (payload(ghz(1, 2), shots=1_000_001), "from 1 to 1000000"),
        (payload(ghz(1, 20)), "no coupler"),
        (payload(ghz(1, 2), job_type="sweep"), "must be 'circuit'"),
        (payload({"name": "x"}), "instructions"),
        (payload({"instructions": [operation("prx", 1, angle=1.0)]}), "lacks 'phase'"),
    ],
)
def test_bad_requests_raise_qrmis_own_exception(qpu, bad, reason):
    """QRMI recognises IQM's error document."""
    with pytest.raises(InvalidInputError, match=reason):
        qpu("garnet_mock").task_start(bad)


def test_unsupported_circuits_fail(qpu):
    """A task fails for an operation of other machines, or a circuit that measures nothing."""
    resource = qpu("garnet_mock")
    for circuit in (
        {"instructions": [operation("move", 1, 2)]},
        {"instructions": [operation("prx", 1, angle=1.0, phase=0.0)]},
    ):
        task = resource.task_start(payload(circuit))
        assert wait(resource, task) == TaskStatus.Failed


def test_unknown_tokens_and_tasks_get_iqms_error_document(qpu, emulator):
    """The statuses are 401 and 404."""
    with pytest.raises(AuthenticationFailedError):
        qpu("garnet_mock", QRMI_IQM_ISA_TOKEN="wrong").task_start(payload(ghz(1, 2)))
    with pytest.raises(TaskNotFoundError):
        qpu("garnet_mock").task_status("00000000-0000-4000-8000-000000000000")
    path = "/iqm-server/api/v1/jobs/x"
    status, body = ask(emulator, "GET", path, headers=headers_of(emulator))
    assert status == 404
    assert body["error_code"] == "job_not_found"
    assert body.keys() == {"error_code", "message", "request_id"}
