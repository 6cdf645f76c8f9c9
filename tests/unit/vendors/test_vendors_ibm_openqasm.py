"""The scanner of OpenQASM 3."""

from __future__ import annotations

import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister

from qrmi_workflows.vendors.ibm.circuits import to_openqasm
from qrmi_workflows.vendors.ibm.openqasm import GateCall, is_openqasm, scan


def test_gates_in_control_flow_are_found():
    """The circuit has both branches of a condition and the cases of a switch."""
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

    program = scan(to_openqasm(circuit))

    assert program.calls == (
        GateCall(name="x", qubits=(2,)),
        GateCall(name="sx", qubits=(3,)),
        GateCall(name="cz", qubits=(0, 1)),
        GateCall(name="h", qubits=(2,)),
    )
    assert program.measured == (0, 1)


def test_only_gate_calls_are_taken_for_gate_calls():
    """Comments, definitions, declarations and other statements look similar."""
    program = scan(
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
    assert program.inputs == ("a", "_β")
    assert program.measured == (None, 3, 0)
    assert [(call.name, call.qubits) for call in program.calls] == [
        ("mine", (1, 3)),
        ("x", (0,)),
        ("rx", (2,)),
        ("y", (0,)),
        ("z", (9,)),
        ("h", (None,)),
    ]


@pytest.mark.parametrize(
    "text", ["", "{{{", "}}", "x", ";;;", "gate {", 'include "', "if (((", "bit[ ;"]
)
def test_malformed_text_is_left_to_the_vendor(text):
    assert scan(text).calls == ()


def test_many_comments_are_skipped_as_fast_as_one():
    comments = "/* one */ // two\n" * 5000

    assert is_openqasm(f"{comments}OPENQASM 3.0;")
    assert is_openqasm(f"{comments}qubit q;")
    assert not is_openqasm(f"{comments}{{}};")
    assert not is_openqasm(f"{comments}/* no end")
