"""Programs that make the calls of QRMI's examples for IQM Server and Felis, under a lease.

The SDKs of both vendors need other versions of Qiskit's packages than this project, so the programs
do without them: they make the same calls of `qrmi`, with input as these SDKs write it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from programs_under_lease import qpu_command, script

from qrmi_workflows import QuantumResult

GARNET = "garnet_mock"
FELIS = "ab_emu_40q_logical_noiseless"

# IQM Server

FLIP = [
    {"name": "prx", "locus": ["QB1"], "args": {"angle": np.pi, "phase": 0.0}},
    {"name": "measure", "locus": ["QB1"], "args": {"key": "m"}},
]
REQUEST = {"circuits": [{"name": "flip", "instructions": FLIP}], "shots": 50}

# As iqm-client writes a transpiled circuit: all fields of a request, and the keys of Qiskit's bits.
QISKIT_REQUEST = """
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter
from qiskit.circuit.library import CZGate, Measure, RGate
from qiskit.transpiler import Target

def to_target(architecture):
    index = {name: number for number, name in enumerate(architecture["qubits"])}
    gates = {
        name: [tuple(index[qubit] for qubit in locus) for locus in loci]
        for name, gate in architecture["gates"].items()
        for loci in [gate["implementations"][gate["default_implementation"]]["loci"]]
    }
    target = Target(num_qubits=len(index))
    target.add_instruction(RGate(Parameter("t"), Parameter("p")), dict.fromkeys(gates["prx"]))
    both_ways = [*gates["cz"], *(pair[::-1] for pair in gates["cz"])]
    target.add_instruction(CZGate(), dict.fromkeys(both_ways))
    target.add_instruction(Measure(), dict.fromkeys(gates["measure"]))
    return target

def to_request(circuit, architecture, shots):
    isa = transpile(circuit, target=to_target(architecture), seed_transpiler=5)
    instructions = []
    for item in isa.data:
        locus = [architecture["qubits"][isa.find_bit(qubit).index] for qubit in item.qubits]
        name, args = item.operation.name, {}
        if name == "r":
            name, (angle, phase) = "prx", map(float, item.operation.params)
            args = {"angle": angle, "phase": phase}
        elif name == "measure":
            [(register, bit)] = isa.find_bit(item.clbits[0]).registers
            place = isa.cregs.index(register)
            args = {"key": f"{register.name}_{register.size}_{place}_{bit}"}
        instructions.append({"name": name, "locus": locus, "args": args, "implementation": None})
    return {
        "circuits": [{"name": circuit.name, "instructions": instructions, "metadata": {}}],
        "custom_settings": None,
        "calibration_set_id": architecture["calibration_set_id"],
        "qubit_mapping": None,
        "shots": shots,
        "max_circuit_duration_over_t2": None,
        "heralding_mode": "none",
        "move_validation_mode": "strict",
        "move_gate_frame_tracking_mode": "full",
        "active_reset_cycles": None,
        "dd_mode": "disabled",
        "dd_strategy": None,
    }

def ghz(size):
    circuit = QuantumCircuit(size)
    circuit.h(0)
    for qubit in range(1, size):
        circuit.cx(0, qubit)
    circuit.barrier()
    circuit.measure_all()
    return circuit
"""

SERVER_EXAMPLE = """
import json, sys, time
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

name, request, kind = sys.argv[1:]
qrmi = QuantumResource(name, ResourceType.IQMServer)
print(qrmi, qrmi.resource_id(), qrmi.resource_type(), qrmi.is_accessible())
lock = qrmi.acquire()
print(json.loads(qrmi.target().value).keys(), qrmi.metadata())
payload = Payload.IQMServer(
    iqmjson=open(request).read(), job_type=kind, use_timeslot=False, tag=None
)
task = qrmi.task_start(payload)
while (status := qrmi.task_status(task)) in (TaskStatus.Running, TaskStatus.Queued):
    time.sleep(0.1)
print(status)
print("result", json.dumps(json.loads(qrmi.task_result(task).value)))
print(qrmi.task_logs(task))
qrmi.task_stop(task)
qrmi.release(lock)
"""

QISKIT_EXAMPLE = """
import json, time
from collections import Counter
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus
from qrmi import get_job_qpu_resources_and_types

found = zip(*get_job_qpu_resources_and_types())
[name] = [qpu.strip() for qpu, kind in found if kind == "iqm-server"]
qrmi = QuantumResource(name.replace(":", "_"), ResourceType.IQMServer)
target = json.loads(qrmi.target().value)
assert {"calibration_set", "quality_metrics"} < set(target)
request = to_request(ghz(5), target["dynamic_quantum_architecture"], 1000)
payload = Payload.IQMServer(
    iqmjson=json.dumps(request), job_type="circuit", use_timeslot=False, tag=None
)
task = qrmi.task_start(payload)
while (status := qrmi.task_status(task)) in (TaskStatus.Running, TaskStatus.Queued):
    time.sleep(0.1)
assert status == TaskStatus.Completed
[measured] = json.loads(qrmi.task_result(task).value)["measurements"]
bits = [measured[f"meas_5_0_{bit}"] for bit in reversed(range(5))]
print(json.dumps(Counter("".join(str(bit) for [bit] in shot) for shot in zip(*bits))))
"""

GENERATOR = """
import json
from qrmi import QuantumResource, ResourceType

target = json.loads(QuantumResource("garnet_mock", ResourceType.IQMServer).target().value)
request = to_request(ghz(3), target["dynamic_quantum_architecture"], 1024)
payload = {"iqmjson": request, "job_type": "circuit", "use_timeslot": False, "tag": None}
json.dump(payload, open("input.json", "w"), indent=2)
json.dump(request, open("request.json", "w"), indent=2)
"""


def check_ghz(counts: dict[str, int], size: int) -> None:
    """Only two outcomes, each half of the shots within five standard errors."""
    shots = sum(counts.values())
    assert set(counts) == {"0" * size, "1" * size}
    assert abs(counts["0" * size] - shots / 2) < 5 * np.sqrt(shots / 4)


def test_upstreams_command_runs_on_iqm_server(under_lease):
    payload = {"iqmjson": REQUEST, "job_type": "circuit", "use_timeslot": False, "tag": None}
    Path("input.json").write_text(json.dumps(payload))

    under_lease(GARNET, "task_runner", GARNET, "input.json", "raw.json")
    qpu_command("run", "input.json", "-o", "result.json", "--qpu", GARNET)

    assert json.loads(Path("raw.json").read_text())["measurements"] == [{"m": [[1]] * 50}]
    assert QuantumResult.load("result.json").counts() == {"1": 50}


def test_the_example_of_iqms_resource_runs(under_lease):
    """It acquires under the lease that it runs in, and stops a task that has ended."""
    Path("request.json").write_text(json.dumps(REQUEST))

    command = script(SERVER_EXAMPLE, GARNET, "request.json", "circuit")
    printed = under_lease(GARNET, *command).splitlines()

    assert "TaskStatus.Completed" in printed
    [result] = [line for line in printed if line.startswith("result")]
    assert json.loads(result.removeprefix("result"))["measurements"] == [{"m": [[1]] * 50}]


@pytest.mark.slow
def test_the_example_of_iqms_qiskit_backend_runs(under_lease):
    """It finds its QPU in the environment, and transpiles for its target."""
    printed = under_lease(GARNET, *script(QISKIT_REQUEST + QISKIT_EXAMPLE))

    counts = json.loads(printed)
    assert sum(counts.values()) == 1000
    check_ghz(counts, 5)


@pytest.mark.slow
def test_payloads_of_iqms_generator_run(under_lease):
    """It writes a complete payload, and IQM JSON alone; `qpu run` takes both."""
    under_lease(GARNET, *script(QISKIT_REQUEST + GENERATOR))

    under_lease(GARNET, "task_runner", GARNET, "input.json", "raw.json")
    for name in ("input", "request"):
        qpu_command("run", f"{name}.json", "-o", f"{name}_result.json", "--qpu", GARNET)
        check_ghz(QuantumResult.load(f"{name}_result.json").counts("meas"), 3)

    [measured] = json.loads(Path("raw.json").read_text())["measurements"]
    assert set(measured) == {f"meas_3_0_{bit}" for bit in range(3)}
    assert measured["meas_3_0_0"] == measured["meas_3_0_2"]


# Alice & Bob's Felis


def qir(result: str, *lines: str) -> str:
    """Return a program in QIR that records the only result."""
    body = "".join(f"  {line}\n" for line in lines)
    value = {"void": "void", "i64": "i64 0"}[result]
    return f"define {result} @main() #0 {{\nentry:\n{body}  ret {value}\n}}\n"


# In the notation of Q#, which upstream's first generator uses: operations of QIR's base profile.
GENERIC = qir(
    "i64",
    "call void @__quantum__rt__initialize(i8* null)",
    "call void @__quantum__qis__x__body(%Qubit* inttoptr (i64 0 to %Qubit*))",
    "call void @__quantum__qis__m__body(%Qubit* inttoptr (i64 0 to %Qubit*), "
    "%Result* inttoptr (i64 0 to %Result*))",
    "call void @__quantum__rt__array_record_output(i64 1, i8* getelementptr inbounds "
    "([4 x i8], [4 x i8]* @0, i64 0, i64 0))",
    "call void @__quantum__rt__result_record_output(%Result* inttoptr (i64 0 to %Result*), "
    "i8* getelementptr inbounds ([6 x i8], [6 x i8]* @1, i64 0, i64 0))",
)
# In the notation of PyQIR, which the second one uses: Alice & Bob's own operations on |+>.
NATIVE = qir(
    "void",
    "call void @__quantum__qis__prepare_x__body(i1 false, %Qubit* null)",
    "call void @__quantum__qis__mx__body(%Qubit* null, %Result* null)",
    "call void @__quantum__rt__array_record_output(i64 1, i8* null)",
    "call void @__quantum__rt__result_record_output(%Result* null, i8* null)",
)

FELIS_EXAMPLE = """
import json, sys, time
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

name, program = sys.argv[1:]
qrmi = QuantumResource(name, ResourceType.AliceBobFelis)
lock = qrmi.acquire()
print(json.loads(qrmi.target().value)["name"], qrmi.metadata())
parameters = json.dumps({"nbShots": 50, "averageNbPhotons": 4})
payload = Payload.AliceBobFelis(human_qir=open(program).read(), input_params=parameters)
task = qrmi.task_start(payload)
while (status := qrmi.task_status(task)) in (TaskStatus.Running, TaskStatus.Queued):
    time.sleep(0.1)
print(status)
print(qrmi.task_result(task).value)
qrmi.task_stop(task)
qrmi.release(lock)
"""


@pytest.mark.parametrize(("program", "bit"), [(GENERIC, "1"), (NATIVE, "0")])
def test_the_example_of_felis_runs_programs_of_both_generators(under_lease, program, bit):
    Path("circuit.ll").write_text(program)

    command = script(FELIS_EXAMPLE, FELIS, "circuit.ll")
    printed = under_lease(FELIS, *command).split()
    qpu_command("run", "circuit.ll", "--shots", "50", "-o", "result.json", "--qpu", FELIS)

    assert printed[-2:] == ["TaskStatus.Completed", f"{bit},50"]
    assert QuantumResult.load("result.json").counts() == {bit: 50}


def test_upstreams_command_runs_on_felis(under_lease):
    """It quotes the program as a JSON string once more."""
    payload = {"human_qir": GENERIC, "input_params": {"nbShots": 40}}
    Path("input.json").write_text(json.dumps(payload))

    under_lease(FELIS, "task_runner", FELIS, "input.json", "raw.txt")
    qpu_command("run", "input.json", "-o", "result.json", "--qpu", FELIS)

    assert Path("raw.txt").read_text().split() == ["1,40"]
    assert QuantumResult.load("result.json").counts() == {"1": 40}
