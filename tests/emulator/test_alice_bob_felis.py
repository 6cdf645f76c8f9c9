"""Alice & Bob's Felis, through the real `qrmi` client."""

from __future__ import annotations

import json
from math import pi

import numpy as np
import pytest
from emulator_clients import ask, read_resources, wait
from qrmi import Payload, QrmiError, TaskStatus

NAME = "ab_emu_40q_logical_noiseless"


def pointer(kind: str, index: int) -> str:
    return f"%{kind}* " + (f"inttoptr (i64 {index} to %{kind}*)" if index else "null")


def call(name: str, *qubits: int, before: str = "", result: int | None = None) -> str:
    """Return one operation in PyQIR's notation."""
    arguments = [before] if before else []
    arguments += [pointer("Qubit", qubit) for qubit in qubits]
    arguments += [] if result is None else [pointer("Result", result)]
    form = name if "__" in name else f"{name}__body"
    return f"  call void @__quantum__qis__{form}({', '.join(arguments)})\n"


def program(*lines: str, recorded: tuple[int, ...]) -> str:
    output = "".join(
        f"  call void @__quantum__rt__result_record_output({pointer('Result', index)}, i8* null)\n"
        for index in recorded
    )
    return f"define void @main() #0 {{\nentry:\n{''.join(lines)}{output}  ret void\n}}\n"


def payload(qir: str, shots: int = 1000) -> Payload:
    return Payload.AliceBobFelis(human_qir=qir, input_params=json.dumps({"nbShots": shots}))


def histogram(resource, qir: str) -> dict[str, int]:
    task = resource.task_start(payload(qir))
    assert wait(resource, task) == TaskStatus.Completed
    rows = [line.split(",") for line in resource.task_result(task).value.splitlines()]
    return {bits: int(count) for bits, count in rows}


def test_every_method_of_a_resource_and_a_ghz_state(qpu):
    """Every method works, and three entangled qubits have two outcomes."""
    resource = qpu(NAME)
    assert "online" in str(resource.status().status).lower()
    target = json.loads(resource.target().value)
    assert (target["name"], target["numQubits"]) == ("EMU:40Q:LOGICAL_NOISELESS", 40)
    token = resource.acquire()
    ghz = program(
        call("prepare_x", 0, before="i1 false"),
        call("cnot", 0, 1),
        call("cnot", 1, 2),
        *(call("mz", qubit, result=qubit) for qubit in range(3)),
        recorded=(2, 1, 0),
    )
    counts = histogram(resource, ghz)
    assert set(counts) == {"000", "111"}
    assert abs(counts["000"] - 500) < 5 * np.sqrt(250)
    resource.release(token)
    assert resource.metadata()["felis_target"] == "EMU:40Q:LOGICAL_NOISELESS"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([call("prepare_x", 0, before="i1 true"), call("mx", 0, result=0)], "1"),
        ([call("prepare_y", 0, before="i1 true"), call("my", 0, result=0)], "1"),
        ([call("prepare_y", 0, before="i1 false"), call("my", 0, result=0)], "0"),
        ([call("rx", 0, before=f"double {pi!r}"), call("mz", 0, result=0)], "1"),
        ([call("ry", 0, before="double 0x400921FB54442D18"), call("mz", 0, result=0)], "1"),
        (
            [call("h", 0), call("s", 0), call("s__adj", 0), call("h", 0), call("mz", 0, result=0)],
            "0",
        ),
        (
            [
                call("h", 0),
                *[call("t", 0)] * 3,
                call("t__adj", 0),
                *[call("t", 0)] * 2,
                call("h", 0),
                call("mz", 0, result=0),
            ],
            "1",
        ),
    ],
)
def test_each_operation_does_what_its_name_says(qpu, lines, expected):
    """Operations include preparations, bases, adjoints, and angles in both of LLVM's notations."""
    assert histogram(qpu(NAME), program(*lines, recorded=(0,))) == {expected: 1000}


def test_unsupported_programs_fail(qpu):
    """A task fails for an unknown operation, a branch, or a program that measures nothing."""
    resource = qpu(NAME)
    measure = call("mz", 0, result=0)
    for lines in ([call("flux", 0), measure], ["  br i1 %0, label %a, label %b\n"], [call("h", 0)]):
        task = resource.task_start(payload(program(*lines, recorded=(0,))))
        assert wait(resource, task) == TaskStatus.Failed


def test_bad_requests_get_fastapis_error_document(qpu, emulator):
    """Errors are in `detail`. A job without its input is not queued and can be cancelled."""
    with pytest.raises(QrmiError, match="nbShots"):
        qpu(NAME).task_start(payload("", shots=0))
    with pytest.raises(QrmiError, match="not found"):
        qpu(NAME).task_status("00000000-0000-4000-8000-000000000000")
    assert ask(emulator, "GET", "/alice-bob-felis/v1/targets/")[0] == 401
    key = read_resources(emulator)[NAME]["environment"]["QRMI_AB_FELIS_API_KEY"]
    headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
    body = {
        "target": "EMU:40Q:LOGICAL_NOISELESS",
        "inputDataFormat": "HUMAN_QIR",
        "outputDataFormat": "HISTOGRAM",
        "inputParams": {"nbShots": 10},
    }
    path = "/alice-bob-felis/v1/jobs/"
    _, job = ask(emulator, "POST", path, body, headers)
    assert [event["type"] for event in job["events"]] == ["CREATED"]
    assert ask(emulator, "GET", f"{path}{job['id']}/output", headers=headers)[0] == 409
    assert ask(emulator, "POST", f"{path}{job['id']}/input", b"no form", headers)[0] == 422
    assert ask(emulator, "DELETE", f"{path}{job['id']}", headers=headers)[0] == 204
    _, job = ask(emulator, "GET", f"{path}{job['id']}", headers=headers)
    assert [event["type"] for event in job["events"]] == ["CREATED", "CANCELLED"]
    status, error = ask(emulator, "POST", path, {**body, "target": "EMU:1Q:X"}, headers)
    assert (status, error) == (404, {"detail": "Target EMU:1Q:X not found."})
