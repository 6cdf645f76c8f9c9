"""The emulator reads whatever OpenQASM 3 Qiskit writes, with its meaning and its names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm3
from qiskit.circuit import Clbit, Parameter
from qiskit.circuit.classical import expr, types
from qiskit.primitives.containers import BindingsArray

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.control_flow import simplify_control_flow
from qrmi_workflows.emulator.simulators.openqasm import parse
from qrmi_workflows.emulator.simulators.sampling import Engine, is_random, sample_registers

ENGINE = Engine(method="statevector", noise=None, seed=1)
HEADER = 'OPENQASM 3.0; include "stdgates.inc";\n'


def outcomes(circuit: Any) -> dict[str, str]:
    """Return the value of each register of a circuit that is deterministic."""
    registers = sample_registers(simplify_control_flow(circuit), BindingsArray(), 3, ENGINE)
    values = {name: bits.get_bitstrings() for name, bits in registers.items()}
    assert all(len(set(texts)) == 1 for texts in values.values())
    return {name: texts[0] for name, texts in values.items()}


CONDITIONS: dict[str, tuple[Callable[[Any], Any], Callable[[int], bool]]] = {
    "^": (lambda a: expr.bit_xor(a[0], a[1]), lambda a: a in (1, 2)),
    "<": (lambda a: expr.less(a, 2), lambda a: a < 2),
    "<=": (lambda a: expr.less_equal(a, 1), lambda a: a <= 1),
    ">": (lambda a: expr.greater(a, 1), lambda a: a > 1),
    ">=": (lambda a: expr.greater_equal(a, 3), lambda a: a >= 3),
    "!=": (lambda a: expr.not_equal(a, 2), lambda a: a != 2),
    "==": (lambda a: expr.equal(a, 2), lambda a: a == 2),
    "&&": (lambda a: expr.logic_and(a[0], expr.logic_not(a[1])), lambda a: a == 1),
    "||": (lambda a: expr.logic_or(a[0], a[1]), lambda a: a > 0),
    "~": (lambda a: expr.bit_not(a[0]), lambda a: a % 2 == 0),
    "&": (lambda a: expr.equal(expr.bit_and(a, 2), 2), lambda a: a & 2 == 2),
    "|": (lambda a: expr.equal(expr.bit_or(a, 1), 3), lambda a: a | 1 == 3),
    "<<": (lambda a: expr.equal(expr.shift_left(a, 1), 2), lambda a: (a << 1) & 3 == 2),
    ">>": (lambda a: expr.equal(expr.shift_right(a, 1), 1), lambda a: a >> 1 == 1),
    "+": (lambda a: expr.less(expr.add(a, 1), 2), lambda a: (a + 1) % 4 < 2),
    "-": (lambda a: expr.equal(expr.sub(a, 1), 3), lambda a: (a - 1) % 4 == 3),
    "*": (lambda a: expr.equal(expr.mul(a, 3), 3), lambda a: (a * 3) % 4 == 3),
    "[]": (lambda a: expr.index(a, 1), lambda a: a & 2 == 2),
    "bool": (lambda a: expr.cast(a, types.Bool()), lambda a: a > 0),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions(name):
    """Each operator, for all values of a register of two bits."""
    make, holds = CONDITIONS[name]
    for value in range(4):
        register = ClassicalRegister(2, "a")
        circuit = QuantumCircuit(QuantumRegister(3), register, ClassicalRegister(1, "out"))
        for bit in range(2):
            if value >> bit & 1:
                circuit.x(bit)
        circuit.measure([0, 1], register)
        with circuit.if_test(make(register)):
            circuit.x(2)
        circuit.measure(2, circuit.cregs[1][0])
        assert outcomes(parse(qasm3.dumps(circuit)))["out"] == str(int(holds(value))), value


@pytest.mark.parametrize(
    "condition", ["c", "c[0] == 1", "1 == c[0]", "c == 1", 'c == "01"', "true"]
)
def test_conditions_as_people_write_them(condition):
    """A register alone, and bits compared with 0 and 1."""
    text = f"bit[2] c; bit[1] d; x $0; c[0] = measure $0; if ({condition}) {{ x $1; }}"
    assert outcomes(parse(f"{HEADER}{text} d[0] = measure $1;"))["d"] == "1"


EXPRESSIONS: dict[str, tuple[Callable[..., Any], Callable[[float, float], float]]] = {
    "sin": (lambda p, q: p.sin(), lambda p, q: math.sin(p)),
    "cos": (lambda p, q: (p + 1).cos() * q, lambda p, q: math.cos(p + 1) * q),
    "tan": (lambda p, q: p.tan(), lambda p, q: math.tan(p)),
    "asin": (lambda p, q: p.arcsin(), lambda p, q: math.asin(p)),
    "acos": (lambda p, q: p.arccos(), lambda p, q: math.acos(p)),
    "atan": (lambda p, q: (p * q).arctan(), lambda p, q: math.atan(p * q)),
    "exp": (lambda p, q: (-p).exp(), lambda p, q: math.exp(-p)),
    "log": (lambda p, q: q.log(), lambda p, q: math.log(q)),
    "abs": (lambda p, q: abs(p - q), lambda p, q: abs(p - q)),
    "sign": (lambda p, q: (p - q).sign(), lambda p, q: -1.0),
    "conj": (lambda p, q: p.conjugate(), lambda p, q: p),
    "**": (lambda p, q: p**2 - 2**q, lambda p, q: p**2 - 2**q),
    "-**": (lambda p, q: -(p**2), lambda p, q: -(p**2)),
    "/": (lambda p, q: p / q / 3, lambda p, q: p / q / 3),
    "*pi": (lambda p, q: p * np.pi - q * p, lambda p, q: p * np.pi - q * p),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_of_parameters(name):
    """Each function, by the angle that a gate has after the export and the binding."""
    make, compute = EXPRESSIONS[name]
    p, q = Parameter("alpha"), Parameter("beta")
    circuit = QuantumCircuit(1)
    circuit.rx(make(p, q), 0)
    circuit.rz(p + q, 0)
    bound = parse(qasm3.dumps(circuit)).assign_parameters({"alpha": 0.4, "beta": 1.7})
    assert float(bound.data[0].operation.params[0]) == pytest.approx(compute(0.4, 1.7))


def test_registers_that_share_bits():
    """Each register has its own bits, also in a condition."""
    first = ClassicalRegister(2, "a")
    second = ClassicalRegister(bits=[first[1], Clbit()], name="b")
    circuit = QuantumCircuit(QuantumRegister(3), first, second)
    circuit.x(1)
    circuit.measure([0, 1], [0, 1])
    with circuit.if_test((second, 1)):
        circuit.x(2)
    circuit.measure(2, second[1])
    text = qasm3.dumps(circuit, allow_aliasing=True)
    assert outcomes(parse(text)) == {"a": "10", "b": "11"}


def test_qubit_registers_that_share_qubits():
    """An alias of qubits, and of a single one."""
    qubits = QuantumRegister(3, "q")
    shared = QuantumRegister(bits=[qubits[1], qubits[2]], name="r")
    single = QuantumRegister(bits=[qubits[0]], name="s")
    circuit = QuantumCircuit(qubits, shared, single, ClassicalRegister(3, "c"))
    circuit.x(shared[0])
    circuit.x(single[0])
    circuit.measure(qubits, circuit.cregs[0])
    assert outcomes(parse(qasm3.dumps(circuit, allow_aliasing=True))) == {"c": "011"}


def test_names_and_scalar_bits_are_kept():
    """Results are returned under the names of the program's declarations."""
    text = "bit θ; bit[2] Out; bit c; x $0; θ = measure $0; Out[1] = measure $0; c = measure $1;"
    assert outcomes(parse(HEADER + text)) == {"Out": "10", "θ": "1", "c": "0"}


def test_a_condition_that_aer_lacks_and_that_depends_on_many_bits_is_refused():
    """The decision tree would be too large."""
    circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(20, "c"))
    with circuit.if_test(expr.less(expr.shift_left(circuit.cregs[0], 1), 7)):
        circuit.x(0)
    with pytest.raises(SimulationError, match="depends on 20 bits; at most 12"):
        simplify_control_flow(parse(qasm3.dumps(circuit)))


@pytest.mark.parametrize("features", [0, qasm3.ExperimentalFeatures.SWITCH_CASE_V1])
def test_switches_on_an_expression(features):
    """Both forms of the switch statement, of which a case has two labels."""
    for value in range(4):
        circuit = QuantumCircuit(QuantumRegister(4), ClassicalRegister(2, "a"))
        circuit.add_register(ClassicalRegister(2, "out"))
        for bit in range(2):
            if value >> bit & 1:
                circuit.x(bit)
        circuit.measure([0, 1], [0, 1])
        with circuit.switch(expr.bit_xor(circuit.cregs[0], 1)) as case:
            with case(0, 1):
                circuit.x(2)
            with case(2):
                circuit.x(3)
            with case(case.DEFAULT):
                circuit.x([2, 3])
        circuit.measure([2, 3], circuit.cregs[1])
        text = qasm3.dumps(circuit, experimental=qasm3.ExperimentalFeatures(features))
        expected = {0: "01", 1: "01", 2: "10", 3: "11"}[value ^ 1]
        assert outcomes(parse(text))["out"] == expected


def test_boxes_and_loops_of_gates():
    """A box, also inside a condition, is its content; a loop of gates has exact values."""
    text = """bit[2] c; x $0; box { c[0] = measure $0; }
    if (c[0]) { box { x $1; } } for int i in [0:2] { x $1; } c[1] = measure $1;"""
    assert outcomes(parse(HEADER + text)) == {"c": "01"}
    assert not is_random(parse(HEADER + "for int i in [0:2] { sx $0; }"))


@pytest.mark.parametrize("target", ["bit", "register", "expression"])
def test_switches_of_circuits_that_come_in_qpy(target):
    """Qiskit's own instruction becomes conditions."""
    for value in range(4):
        register = ClassicalRegister(2, "a")
        circuit = QuantumCircuit(QuantumRegister(3), register, ClassicalRegister(1, "out"))
        for bit in range(2):
            if value >> bit & 1:
                circuit.x(bit)
        circuit.measure([0, 1], register)
        on, chosen = {
            "bit": (register[1], value & 2),
            "register": (register, value == 1),
            "expression": (expr.bit_xor(register, 2), value == 3),
        }[target]
        with circuit.switch(on) as case:
            with case(1):
                circuit.x(2)
            with case(case.DEFAULT):
                circuit.z(2)
        circuit.measure(2, circuit.cregs[1][0])
        assert outcomes(circuit)["out"] == str(int(bool(chosen)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("float[64] f; f = 1.0;", "declarations of type 'float'"),
        ("bit[2] c; if (sin(c[0])) { x $0; }", "takes only numbers"),
        ("rx(frob(2)) $0;", "the function 'frob' is not supported"),
        ("bit[2] c; bit[1] d; if (c && ) { x $0; }", "not OpenQASM 3"),
        ("bit[2] c; c[0] = true;", "only for switch statements"),
        ("bit[2] c = 3;", "only as measurements"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(text, reason):
    """The reason names the construct."""
    with pytest.raises(SimulationError, match=reason.replace("(", r"\(")):
        parse(HEADER + text)


def test_operators_bind_as_in_the_standard():
    """`!`, `&`, `^`, `|`, `&&` and `||` for all values of three bits."""
    text = "c[0] ^ c[1] & c[2] | c[0] && !c[1] || c[2]"
    for one, two, three in itertools.product([0, 1], repeat=3):
        flips = "".join(f"x ${rank}; " for rank, bit in enumerate((one, two, three)) if bit)
        circuit = parse(
            f"{HEADER}bit[3] c; bit[1] d; {flips} c[0] = measure $0; c[1] = measure $1; "
            f"c[2] = measure $2; if ({text}) {{ x $3; }} d[0] = measure $3;"
        )
        expected = (((one ^ (two & three)) | one) and not two) or three
        assert outcomes(circuit)["d"] == str(int(bool(expected)))
