"""Checks of PUBs before submission: ISA, parameter values, measurements and shots."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ibm_targets import snapshot_target
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Clbit, Parameter, ParameterVector, Qubit
from qiskit.circuit.random import random_circuit
from qiskit_ibm_runtime import RuntimeEncoder

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm import transpiler_target
from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.registry import load_vendor

HEAD = 'OPENQASM 3.0; include "stdgates.inc";'
MEASURED = "OPENQASM 3.0; bit[1] c; c[0] = measure $0;"


def sampler_content(circuit: Any, values: Any = None, shots: int | None = None) -> dict[str, Any]:
    pubs = [[circuit, values, shots]]
    return {"program_id": "sampler", "parameters": {"pubs": pubs, "version": 2}}


def check(content: dict[str, Any], target: str | None) -> None:
    load_vendor("ibm").check(content, qpu="ibm_fez", target=target)


@pytest.mark.parametrize("model", ["fez", "brisbane"])
@pytest.mark.parametrize("seed", range(6))
def test_a_transpiled_circuit_is_accepted(model, seed):
    """The circuits have conditions, resets and mid-circuit measurements, for both gate sets."""
    isa = transpile(
        random_circuit(5, 6, measure=True, conditional=True, reset=True, seed=seed),
        target=transpiler_target(snapshot_target(model)),
        seed_transpiler=seed,
    )
    check(sampler_content(to_openqasm(isa)), snapshot_target(model))


@pytest.mark.parametrize("seed", range(6))
def test_a_single_wrong_gate_is_found(seed):
    """A gate that the QPU lacks, or a pair that is not coupled, makes a valid circuit invalid."""
    isa = transpile(
        random_circuit(5, 6, measure=True, seed=seed),
        target=transpiler_target(snapshot_target("fez")),
        seed_transpiler=seed,
    )
    for add_gate, message in (
        (lambda circuit: circuit.h(17), "the QPU has no gate 'h'"),
        (lambda circuit: circuit.ecr(0, 1), "the QPU has no gate 'ecr'"),
        (
            lambda circuit: circuit.cz(0, 2),
            r"no gate 'cz' on qubits \(0, 2\); .* one of: \(0, 1\)",
        ),
    ):
        invalid = isa.copy()
        add_gate(invalid)
        with pytest.raises(PayloadError, match=message):
            check(sampler_content(to_openqasm(invalid)), snapshot_target("fez"))


def test_the_direction_of_a_gate_matters():
    """Eagle QPUs have each ECR gate in one direction only."""
    head = 'OPENQASM 3.0; include "stdgates.inc"; gate ecr a, b { cx a, b; } bit c;'
    forward = f"{head} ecr $1, $0; c = measure $0;"
    backward = f"{head} ecr $0, $1; c = measure $0;"
    check(sampler_content(forward), snapshot_target("brisbane"))
    with pytest.raises(PayloadError, match=r"no gate 'ecr' on qubits \(0, 1\)"):
        check(sampler_content(backward), snapshot_target("brisbane"))


def test_every_parameter_needs_a_value():
    """Values may have any shape whose last axis runs over the parameters."""
    theta = ParameterVector("θ", 3)
    circuit = QuantumCircuit(3)
    for rank in range(3):
        circuit.rz(theta[rank], rank)
    circuit.measure_all()
    text = to_openqasm(circuit)
    with_one_parameter = QuantumCircuit(1)
    with_one_parameter.rz(Parameter("a"), 0)
    with_one_parameter.measure_all()
    for valid in ([1, 2, 3], [[1, 2, 3]], [[[0.0] * 3] * 2] * 4, {"__type__": "ndarray"}):
        check(sampler_content(text, valid), None)
    for valid in ([1.0], [[1.0], [2.0]], [0.1, 0.2, 0.3], 0.5):
        check(sampler_content(to_openqasm(with_one_parameter), valid), None)
    for invalid, message in (
        (None, "unbound parameters"),
        ([], "unbound parameters"),
        ([1, 2], r"shape \(2,\) do not match its 3 parameters"),
        ([[1, 2, 3, 4]], r"shape \(1, 4\)"),
        (["a", "b", "c"], "not an array of numbers"),
        ([[1, 2, 3], [4]], "not an array of numbers"),
        ([1, 10**400, 3], "not an array of numbers"),
    ):
        with pytest.raises(PayloadError, match=message):
            check(sampler_content(text, invalid), None)
    with pytest.raises(PayloadError, match="match its 0 parameters"):
        check(sampler_content("OPENQASM 3.0; bit c; c = measure $0;", [1.0]), None)


def test_a_sampler_needs_measurements_and_an_estimator_does_not():
    with pytest.raises(PayloadError, match="has no measurements"):
        check(sampler_content(f"{HEAD} x $0;"), None)
    content = {"program_id": "estimator", "parameters": {"pubs": [[f"{HEAD} x $0;", "Z"]]}}
    check(content, None)


@pytest.mark.parametrize("text", ["", "null", "{}", '{"configuration": null, "properties": {}}'])
def test_an_invalid_target_skips_the_check_of_gates(text):
    """The vendor checks the circuit as well."""
    check(sampler_content(f"{HEAD} bit c; h $0; c = measure $0;"), text)


@pytest.mark.parametrize("circuit", [MEASURED, {"__type__": "QuantumCircuit"}])
def test_more_shots_than_the_qpu_allows_are_refused(circuit):
    """Also for a circuit that is encoded as QPY and not inspected."""
    assert json.loads(snapshot_target("fez"))["configuration"]["max_shots"] == 100_000
    check(sampler_content(circuit, shots=100_000), snapshot_target("fez"))
    with pytest.raises(PayloadError, match="PUB 0: shots=100001: must be at most 100000"):
        check(sampler_content(circuit, shots=100_001), snapshot_target("fez"))


@pytest.mark.parametrize("defaults", [{"shots": 100_001}, {"options": {"default_shots": 100_001}}])
def test_the_payloads_own_default_counts_for_a_pub_without_shots(defaults):
    target = snapshot_target("fez")
    content = sampler_content(MEASURED)
    content["parameters"] |= defaults
    with pytest.raises(PayloadError, match="PUB 0: shots=100001: must be at most 100000"):
        check(content, target)
    content["parameters"]["pubs"] = [MEASURED]
    with pytest.raises(PayloadError, match="PUB 0: shots=100001"):
        check(content, target)
    content["parameters"]["pubs"] = [[MEASURED, None, 10]]
    check(content, target)


def refused(message: str, circuit: Any, *, target: str | None = None, **options: Any) -> None:
    content = sampler_content(circuit, shots=1)
    content["parameters"]["options"] = options
    with pytest.raises(PayloadError, match=message):
        check(content, target)


def encoded(circuit: QuantumCircuit) -> dict[str, Any]:
    """Return a circuit as qiskit-ibm-runtime sends it."""
    document: dict[str, Any] = json.loads(json.dumps(circuit, cls=RuntimeEncoder))
    return document


@pytest.mark.parametrize("gate", ["rzz(0.1) $0, $1;", "ecr $0, $1;", "mine $0;"])
def test_a_gate_without_a_definition_is_refused(gate):
    """Even if the QPU has it: the service's parser knows those of OpenQASM's library alone."""
    message = r"uses the gate '\w+' without a definition \(IBM's error 1603\)"
    refused(message, f"{HEAD} bit[1] c; {gate} c[0] = measure $0;")
    refused(message, "OPENQASM 3.0; bit[1] c; x $0; c[0] = measure $0;")
    name = gate.split("(")[0].split(" ")[0]
    defined = f"gate {name}{'(a)' * ('(' in gate)} p{', q' * (',' in gate)} {{ U(0, 0, 0) p; }}"
    check(sampler_content(f"OPENQASM 3.0; {defined} bit[1] c; {gate} c[0] = measure $0;"), None)
    mine = f'OPENQASM 3.0; include "mine.inc"; bit[1] c; {gate} c[0] = measure $0;'
    check(sampler_content(mine), None)


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (HEAD, "has no measurements"),
        (f"{HEAD} qubit[2] q; bit[2] c;", "has no measurements"),
        (f"{MEASURED} bit[0] none;", "register 'none' is empty; must have at least one bit"),
        (f"{MEASURED} qubit[0] q;", "register 'q' is empty"),
        (f"{MEASURED} creg d[0];", "register 'd' is empty"),
        ('OPENQASM 2.0; include "qelib1.inc"; qreg q[1];', "in OpenQASM 2; must be OpenQASM 3"),
        ('include "qelib1.inc"; qreg q[1];', "in OpenQASM 2; must be OpenQASM 3"),
    ],
)
def test_an_empty_circuit_or_register_and_another_language_are_refused(circuit, message):
    refused(message, circuit)


def test_an_estimators_circuit_has_at_least_one_qubit():
    content = {"program_id": "estimator", "parameters": {"pubs": [[HEAD, "Z"]]}}
    with pytest.raises(PayloadError, match="is empty; must have at least one qubit"):
        check(content, None)


def test_a_measurement_in_a_subroutine_counts():
    text = f"{HEAD} def read(qubit q) -> bit {{ return measure q; }} bit[1] c; c[0] = read($0);"
    check(sampler_content(text), None)


@pytest.mark.parametrize("statement", ["if (c[0]) { x $0; }", "while (c[0]) { x $0; }"])
def test_dynamical_decoupling_in_a_dynamic_circuit_is_refused(statement):
    text = f"{MEASURED.replace('OPENQASM 3.0;', HEAD)} {statement}"
    refused("is dynamic .*decoupling must be off", text, dynamical_decoupling={"enable": True})
    check(sampler_content(text), None)
    content = sampler_content(MEASURED)
    content["parameters"]["options"] = {"dynamical_decoupling": {"enable": True}}
    check(content, None)


def test_fractional_gates_do_not_go_together_with_twirled_gates():
    circuit = QuantumCircuit(2, 1)
    circuit.rx(0.1, 0)
    circuit.rzz(0.1, 0, 1)
    circuit.measure(0, 0)
    text, message = to_openqasm(circuit), r"fractional gates rx, rzz; .*error 1519\)"

    refused(message, text, twirling={"enable_gates": True})
    refused(message, encoded(circuit), twirling={"enable_gates": True})
    check(sampler_content(text), None)
    content = {"program_id": "estimator", "parameters": {"pubs": [[text, "ZZ"]]}}
    check(content, None)
    content["parameters"]["options"] = {"resilience": {"pec_mitigation": True}}
    with pytest.raises(PayloadError, match=r"`resilience\.pec_mitigation` must be off"):
        check(content, None)


@pytest.mark.parametrize(
    ("circuit", "observables", "target", "message"),
    [
        ("qubit[2] q; x q[0];", "ZZZ", None, "have 3 qubits; must all have 2"),
        ("qubit[2] q; x q[0];", [["ZZ"], [{"Z": 1}]], None, "have 1 qubits; must all have 2"),
        ("x $0; x $3;", "ZZZ", None, "have 3 qubits; must all have at least 4"),
        ("x $0;", {"ZZ": 1, "ZZZ": 1}, None, "have 2 and 3 qubits; must all"),
        ("x $0;", "Z" * 157, "fez", "have 157 qubits; must all have 156"),
    ],
)
def test_observables_have_a_letter_for_each_qubit(circuit, observables, target, message):
    text = None if target is None else snapshot_target(target)
    content = {
        "program_id": "estimator",
        "parameters": {"pubs": [[f"{HEAD} {circuit}", observables]]},
    }
    with pytest.raises(PayloadError, match=message):
        check(content, text)
    right = {"qubit[2] q; x q[0];": "ZZ", "x $0; x $3;": "ZZZZ", "x $0;": "Z" * 156}[circuit]
    content["parameters"]["pubs"][0][1] = right
    check(content, text)


def test_circuits_in_qpy_are_checked_too():
    """What this Qiskit cannot read is left to the vendor."""
    circuit = QuantumCircuit(2, 1)
    circuit.h(0)
    circuit.measure(0, 0)
    loose = QuantumCircuit([Qubit(), Clbit()])
    loose.measure(0, 0)

    refused("not ISA .* no gate 'h'", encoded(circuit), target=snapshot_target("fez"))
    refused("has no measurements", encoded(QuantumCircuit(2)))
    refused("a classical bit is in no register", encoded(loose))
    check(sampler_content({"__type__": "QuantumCircuit", "__value__": "later"}), None)


@pytest.mark.parametrize(
    ("observables", "values", "fits"),
    [
        (["Z", "X"], [[1.0, 2.0]] * 3, False),
        ([["Z"], ["X"]], [[1.0, 2.0]] * 3, True),
        (["Z", {"X": 1.0}, "Y"], [[1.0, 2.0]] * 3, True),
        ("Z", [[1.0, 2.0]] * 3, True),
        ([["Z"], ["X", "Y"]], [1.0, 2.0], False),
    ],
)
def test_observables_and_parameter_values_broadcast(observables, values, fits):
    circuit = "OPENQASM 3.0; input float a; input float b; qubit[1] q; U(a, b, 0) q[0];"
    content = {
        "program_id": "estimator",
        "parameters": {"pubs": [[circuit, observables, values]]},
    }
    if fits:
        check(content, None)
    else:
        with pytest.raises(PayloadError, match="do not broadcast"):
            check(content, None)


@pytest.mark.parametrize("values", [[1.6], [[0.1], [1.6]], {"t": 1.6}, {"t": [0.1, 1.6]}])
def test_an_angle_out_of_range_is_found_however_its_value_is_given(values):
    circuit = (
        f"{HEAD} gate rzz(a) p, q {{}} input float t; bit[1] c; rzz(t) $0, $1; c[0] = measure $0;"
    )
    with pytest.raises(PayloadError, match=r"rzz gate is t = 1.6"):
        check(sampler_content(circuit, values), None)
