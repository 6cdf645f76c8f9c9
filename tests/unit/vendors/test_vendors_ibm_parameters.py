"""Parameter values arrive at the parameters that they are meant for."""

from __future__ import annotations

import itertools
import json
from typing import Any

from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import ParameterVector

from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.registry import load_vendor


def on_the_wire(program: str, *pub: Any) -> str:
    """Return a PUB's circuit as the vendor gets it."""
    content = {"program_id": program, "parameters": {"pubs": [list(pub)]}}
    fields = load_vendor("ibm").encode(content).fields
    text: str = json.loads(fields["input"])["pubs"][0][0]
    return text


def test_sorting_parameters_by_name_does_not_change_their_order():
    """Values are sent by position, and a service may sort the parameters that it reads."""
    for count, name in itertools.product((1, 2, 12, 101), ("θ", "a", "input")):
        circuit = QuantumCircuit(1)
        for angle in ParameterVector(name, count):
            circuit.rz(angle, 0)

        imported = qasm3.loads(on_the_wire("estimator", to_openqasm(circuit), "Z", [0.0] * count))

        in_circuit = [each.operation.params[0].name for each in imported.data]
        assert [parameter.name for parameter in imported.parameters] == in_circuit


def test_a_programs_own_names_are_sent_where_their_order_or_a_mapping_needs_them():
    sorted_ = "input float a; input float b; rz(a + b) $0;"
    unsorted = "input float b; input float a; rz(a + b) $0; // a"
    ambiguous = f"{unsorted}\ngate mine(a) q {{ rz(a) q; }}"

    assert on_the_wire("sampler", sorted_, [1.0, 2.0]) == sorted_
    assert on_the_wire("sampler", unsorted, [1.0, 2.0]) == (
        "input float parameter_0; input float parameter_1; rz(parameter_1 + parameter_0) $0; // a"
    )
    assert on_the_wire("sampler", unsorted, {"a": 1.0, "b": 2.0}) == unsorted
    assert on_the_wire("estimator", unsorted, {"Z": 1}, {"a": 1.0, "b": 2.0}, 0.1) == unsorted
    assert on_the_wire("sampler", ambiguous, [1.0, 2.0]) == ambiguous


def test_new_names_are_not_those_of_other_variables():
    text = "input float b; input float a; bit[2] parameter_0; rz(a + b) $0;"

    assert on_the_wire("sampler", text, [1.0, 2.0]) == (
        "input float input_parameter_0; input float input_parameter_1; bit[2] parameter_0; "
        "rz(input_parameter_1 + input_parameter_0) $0;"
    )


def test_a_circuit_alone_is_sent_as_a_pub():
    """QRMI's client refuses a string among the PUBs."""
    content = {"program_id": "sampler", "parameters": {"pubs": ["OPENQASM 3.0;"]}}

    fields = load_vendor("ibm").encode(content).fields

    assert json.loads(fields["input"])["pubs"] == [["OPENQASM 3.0;"]]
