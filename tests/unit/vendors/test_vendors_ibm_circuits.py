"""What vendors find in programs before a QPU is asked: gates, qubits, inputs, devices."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pulser
import pytest
import qiskit_ibm_runtime
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.random import random_circuit

from qrmi_workflows.errors import ConfigError, PayloadError, ResultError
from qrmi_workflows.vendors.ibm import transpiler_target
from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.ibm.openqasm import GateCall, scan
from qrmi_workflows.vendors.registry import find_frontend, load_vendor, vendor_of_type


@functools.cache
def target(model: str) -> str:
    """Give a target of IBM's as QRMI does."""
    folder = Path(qiskit_ibm_runtime.__file__).parent / "fake_provider" / "backends" / model
    parts = {"configuration": "conf", "properties": "props"}
    return json.dumps(
        {
            name: json.loads((folder / f"{prefix}_{model}.json").read_text())
            for name, prefix in parts.items()
        }
    )


def sampled(text: str, values: Any = None, shots: int | None = None) -> dict[str, Any]:
    return {"program_id": "sampler", "parameters": {"pubs": [[text, values, shots]], "version": 2}}


def check(content: dict[str, Any], known: str | None) -> None:
    load_vendor("ibm").check(content, qpu="ibm_fez", target=known)


@pytest.mark.parametrize("model", ["fez", "brisbane"])
@pytest.mark.parametrize("seed", range(6))
def test_what_qiskit_transpiles_for_a_qpu_is_let_through(model, seed):
    """Random circuits with conditions, resets and mid-circuit measurement, on both gate sets."""
    isa = transpile(
        random_circuit(5, 6, measure=True, conditional=True, reset=True, seed=seed),
        target=transpiler_target(target(model)),
        seed_transpiler=seed,
    )
    check(sampled(to_openqasm(isa)), target(model))


@pytest.mark.parametrize("seed", range(6))
def test_each_wrong_gate_is_found(seed):
    """One gate of another kind, or on a pair that is not coupled, anywhere in a good circuit."""
    isa = transpile(
        random_circuit(5, 6, measure=True, seed=seed),
        target=transpiler_target(target("fez")),
        seed_transpiler=seed,
    )
    for spoil, said in (
        (lambda circuit: circuit.h(17), "the QPU has no gate 'h'"),
        (lambda circuit: circuit.ecr(0, 1), "the QPU has no gate 'ecr'"),
        (lambda circuit: circuit.cz(0, 2), r"no gate 'cz' on qubits \(0, 2\); .* one of: \(0, 1\)"),
    ):
        spoiled = isa.copy()
        spoil(spoiled)
        with pytest.raises(PayloadError, match=said):
            check(sampled(to_openqasm(spoiled)), target("fez"))


def test_a_gate_in_one_direction_only_is_refused_in_the_other():
    """Eagle's ECR gates have one."""
    head = 'OPENQASM 3.0; include "stdgates.inc"; gate ecr a, b { cx a, b; } bit c;'
    forward = f"{head} ecr $1, $0; c = measure $0;"
    backward = f"{head} ecr $0, $1; c = measure $0;"
    check(sampled(forward), target("brisbane"))
    with pytest.raises(PayloadError, match=r"no gate 'ecr' on qubits \(0, 1\)"):
        check(sampled(backward), target("brisbane"))


def test_a_circuit_in_blocks_and_switches_is_looked_through():
    circuit = QuantumCircuit(QuantumRegister(4, "q"), ClassicalRegister(2, "a"))
    circuit.measure([0, 1], [0, 1])
    with circuit.if_test((circuit.clbits[0], 1)) as otherwise:
        circuit.x(2)
    with otherwise:
        circuit.sx(3)
    with circuit.switch(circuit.cregs[0]) as case:
        with case(0, 1):
            circuit.cz(0, 1)
        with case(case.DEFAULT):
            circuit.h(2)

    found = scan(to_openqasm(circuit))

    assert found.calls == (
        GateCall(name="x", qubits=(2,)),
        GateCall(name="sx", qubits=(3,)),
        GateCall(name="cz", qubits=(0, 1)),
        GateCall(name="h", qubits=(2,)),
    )
    assert found.measured == (0, 1)


def test_what_is_no_gate_call_is_not_taken_for_one():
    found = scan(
        """// h $0;
        OPENQASM 3.0; include "stdgates.inc"; /* x $1;
        y $2; */
        pragma vendor h $3;
        @vendor h $3
        gate mine(p) a, b { h a; cx a, b; { } rx(p) b; }
        def f(int[8] n) -> bit { return measure $4; }
        qubit q; qubit[3] r; bit[2] c; const int[32] n = 2; let s = r[0:1]; let t = {_q0, _q1};
        input float[64] a; input angle _β;
        barrier q, r; delay[100ns] r[1]; reset r[2]; gphase(pi / 2);
        inv @ ctrl(1) @ pow(1 / 2) @ mine(2 * (a + _β)) r[0], r[2];
        x q; rx ( a ) r [ 1 ] ; if (c[0] == (1)) y q; else z $9; for int i in {0, 3} { h r[i]; }
        c[0] = measure r[2]; measure q -> c[1]; while (c[0]) { int k = 1; k = k + 1; }
        """
    )
    assert found.inputs == ("a", "_β")
    assert found.measured == (3, 0)
    assert [(call.name, call.qubits) for call in found.calls] == [
        ("mine", (1, 3)),
        ("x", (0,)),
        ("rx", (2,)),
        ("y", (0,)),
        ("z", (9,)),
        ("h", (None,)),
    ]


def test_text_that_is_no_program_is_left_to_the_vendor():
    for text in ("", "{{{", "}}", "x", ";;;", "gate {", 'include "', "if (((", "bit[ ;"):
        assert scan(text).calls == ()


def test_parameters_need_values_for_each_of_them():
    """In the shapes in which values broadcast; the last axis runs over the parameters."""
    theta = ParameterVector("θ", 3)
    circuit = QuantumCircuit(3)
    for rank in range(3):
        circuit.rz(theta[rank], rank)
    circuit.measure_all()
    text = to_openqasm(circuit)
    one = QuantumCircuit(1)
    one.rz(Parameter("a"), 0)
    one.measure_all()
    for good in ([1, 2, 3], [[1, 2, 3]], [[[0.0] * 3] * 2] * 4, {"__type__": "ndarray"}):
        check(sampled(text, good), None)
    for good in ([1.0], [[1.0], [2.0]], [0.1, 0.2, 0.3], 0.5):
        check(sampled(to_openqasm(one), good), None)
    for bad, said in (
        (None, "unbound parameters"),
        ([], "unbound parameters"),
        ([1, 2], r"shape \(2,\) do not match its 3 parameters"),
        ([[1, 2, 3, 4]], r"shape \(1, 4\)"),
        (["a", "b", "c"], "not an array of numbers"),
        ([[1, 2, 3], [4]], "not an array of numbers"),
    ):
        with pytest.raises(PayloadError, match=said):
            check(sampled(text, bad), None)
    with pytest.raises(PayloadError, match="match its 0 parameters"):
        check(sampled("OPENQASM 3.0; bit c; c = measure $0;", [1.0]), None)


def test_a_circuit_that_measures_nothing_is_not_sampled():
    with pytest.raises(PayloadError, match="has no measurements"):
        check(sampled("OPENQASM 3.0; x $0;"), None)
    content = {"program_id": "estimator", "parameters": {"pubs": [["OPENQASM 3.0; x $0;", "Z"]]}}
    check(content, None)


@pytest.mark.parametrize("text", ["", "null", "{}", '{"configuration": null, "properties": {}}'])
def test_what_is_no_target_checks_nothing_and_is_never_kept(text):
    """The vendor has the last word then."""
    check(sampled("OPENQASM 3.0; bit c; h $0; c = measure $0;"), text)
    with pytest.raises(ResultError, match="Fetch it again"):
        load_vendor("ibm").calibrated(text)


@pytest.mark.parametrize("given", [{}, "target.json", "[]"])
def test_what_is_no_target_for_the_transpiler_is_refused_with_where_to_get_one(given):
    """The document, not its text; a file's name; another vendor's target."""
    with pytest.raises(ResultError, match=r"`qpu target NAME` .* as text"):
        transpiler_target(given)


def test_when_a_qpu_was_calibrated_is_in_its_target():
    assert load_vendor("ibm").calibrated(target("fez")) == "2025-02-26T15:16:25-05:00"


def sequence(device: Any) -> dict[str, Any]:
    made = pulser.Sequence(pulser.Register.from_coordinates([(0, 0), (6, 0)]), device)
    made.declare_channel("global", "rydberg_global")
    made.add(pulser.Pulse.ConstantPulse(200, 1, 0, 0), "global")
    return json.loads(made.to_abstract_repr())


def test_a_sequence_is_held_against_the_devices_of_its_qpu():
    specs = pulser.AnalogDevice.to_abstract_repr()
    known = json.dumps([{"device_type": "FRESNEL", "specs": specs}])
    local = json.dumps({"specs": specs})
    vendor = load_vendor("pasqal")
    most = pulser.AnalogDevice.max_runs

    good = {"sequence": sequence(pulser.AnalogDevice), "job_runs": most}
    vendor.check(good, qpu="FRESNEL", target=known)
    vendor.check(good, qpu="FRESNEL", target="[]")
    assert vendor.calibrated(known) is None
    with pytest.raises(ResultError, match="Fetch it again"):
        vendor.calibrated("[]")
    other = {"sequence": sequence(pulser.MockDevice), "job_runs": 1}
    for form in (known, local, specs):  # Pasqal Cloud's, Pasqal Local's, a device alone
        vendor.check(good, qpu="F", target=form)
        with pytest.raises(PayloadError, match="'MockDevice'; on QPU 'F', must be one of: Analog"):
            vendor.check(other, qpu="F", target=form)
    with pytest.raises(PayloadError, match=f"{most + 1} runs: must be at most {most} on QPU"):
        vendor.check({**good, "job_runs": most + 1}, qpu="F", target=known)
    crowded = {**good["sequence"], "register": good["sequence"]["register"] * 60}
    with pytest.raises(PayloadError, match="120 atoms: must be at most 80 on QPU 'F'"):
        vendor.check({"sequence": crowded, "job_runs": 1}, qpu="F", target=known)


def test_a_register_without_places_is_refused():
    layout = pulser.register.special_layouts.TriangularLatticeLayout(61, 6)
    made = pulser.Sequence(layout.make_mappable_register(3), pulser.MockDevice)
    content = {"sequence": json.loads(made.to_abstract_repr()), "job_runs": 1}
    with pytest.raises(PayloadError, match=r"register is mappable.*qubits"):
        load_vendor("pasqal").check(content, qpu="F", target=None)


def test_a_qpu_has_the_front_ends_of_its_vendor():
    assert find_frontend("sampler", qpu="a", resource_type="ibm-quantum-system")
    with pytest.raises(PayloadError, match="has no sampler; must be one of: pulser_backend"):
        find_frontend("sampler", qpu="F", resource_type="pasqal-cloud")
    with pytest.raises(ConfigError, match="unknown resource type 'other'"):
        find_frontend("sampler", qpu="o", resource_type="other")
    assert vendor_of_type("qiskit-runtime-service").name == "ibm"


@pytest.mark.parametrize("circuit", ["OPENQASM 3.0;", {"__type__": "QuantumCircuit"}])
def test_more_shots_than_a_qpu_takes_are_refused(circuit):
    assert json.loads(target("fez"))["configuration"]["max_shots"] == 100_000
    check(sampled(circuit, shots=100_000), target("fez"))
    with pytest.raises(PayloadError, match="PUB 0: shots=100001: must be at most 100000"):
        check(sampled(circuit, shots=100_001), target("fez"))
