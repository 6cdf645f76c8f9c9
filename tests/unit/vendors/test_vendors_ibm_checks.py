"""Checks of PUBs before submission: ISA, parameter values, measurements and shots."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ibm_targets import snapshot_target
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.random import random_circuit

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.ibm import transpiler_target
from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.registry import load_vendor


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
    ):
        with pytest.raises(PayloadError, match=message):
            check(sampler_content(text, invalid), None)
    with pytest.raises(PayloadError, match="match its 0 parameters"):
        check(sampler_content("OPENQASM 3.0; bit c; c = measure $0;", [1.0]), None)


def test_a_sampler_needs_measurements_and_an_estimator_does_not():
    with pytest.raises(PayloadError, match="has no measurements"):
        check(sampler_content("OPENQASM 3.0; x $0;"), None)
    content = {"program_id": "estimator", "parameters": {"pubs": [["OPENQASM 3.0; x $0;", "Z"]]}}
    check(content, None)


@pytest.mark.parametrize("text", ["", "null", "{}", '{"configuration": null, "properties": {}}'])
def test_an_invalid_target_skips_the_check_of_gates(text):
    """The vendor checks the circuit as well."""
    check(sampler_content("OPENQASM 3.0; bit c; h $0; c = measure $0;"), text)


@pytest.mark.parametrize("circuit", ["OPENQASM 3.0;", {"__type__": "QuantumCircuit"}])
def test_more_shots_than_the_qpu_allows_are_refused(circuit):
    """Also for a circuit that is encoded as QPY and not inspected."""
    assert json.loads(snapshot_target("fez"))["configuration"]["max_shots"] == 100_000
    check(sampler_content(circuit, shots=100_000), snapshot_target("fez"))
    with pytest.raises(PayloadError, match="PUB 0: shots=100001: must be at most 100000"):
        check(sampler_content(circuit, shots=100_001), snapshot_target("fez"))


@pytest.mark.parametrize("defaults", [{"shots": 100_001}, {"options": {"default_shots": 100_001}}])
def test_the_payloads_own_default_counts_for_a_pub_without_shots(defaults):
    target = snapshot_target("fez")
    content = sampler_content("OPENQASM 3.0;")
    content["parameters"] |= defaults
    with pytest.raises(PayloadError, match="PUB 0: shots=100001: must be at most 100000"):
        check(content, target)
    content["parameters"]["pubs"] = ["OPENQASM 3.0;"]
    with pytest.raises(PayloadError, match="PUB 0: shots=100001"):
        check(content, target)
    content["parameters"]["pubs"] = [["OPENQASM 3.0;", None, 10]]
    check(content, target)
