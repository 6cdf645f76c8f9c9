"""Random dynamic circuits and their exact distributions, computed without a quantum simulator.

A program is a list of statements. `exact` follows all its branches with density matrices in NumPy;
`to_circuit` writes the same program for Qiskit. The two have nothing in common but the program.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter
from qiskit.circuit.classical import expr

__all__ = ["Exact", "Program", "all_labels", "exact", "expectation", "make_program", "to_circuit"]

# Expressions of two parameters: the number, and what Qiskit is given.
EXPRESSIONS = {
    "a": (lambda a, b: a, lambda a, b: a),
    "a*b/2": (lambda a, b: a * b / 2, lambda a, b: a * b / 2),
    "-sin(a)+b": (lambda a, b: -math.sin(a) + b, lambda a, b: -a.sin() + b),
    "exp(b/4)": (lambda a, b: math.exp(b / 4), lambda a, b: (b / 4).exp()),
    "a**2-b": (lambda a, b: a**2 - b, lambda a, b: a**2 - b),
    "abs(a-b)": (lambda a, b: abs(a - b), lambda a, b: abs(a - b)),
    "cos(a*b)": (lambda a, b: math.cos(a * b), lambda a, b: (a * b).cos()),
}


@dataclass(kw_only=True)
class Program:
    """A random program.

    Attributes:
        qubits: The number of qubits.
        registers: The sizes of the classical registers `r0`, `r1`, ….
        statements: Tuples that start with the kind of statement.
        values: The values of the parameters a and b; empty: none.
    """

    qubits: int
    registers: list[int]
    statements: list[Any] = field(default_factory=list)
    values: tuple[float, ...] = ()


@dataclass(kw_only=True)
class Exact:
    """The unnormalised density matrix for each value of the classical bits, lowest bit first."""

    branches: dict[tuple[int, ...], Any]

    def probabilities(self) -> dict[tuple[int, ...], float]:
        """Return the probability of each value of the classical bits."""
        return {bits: float(np.trace(rho).real) for bits, rho in self.branches.items()}


def make_program(seed: int, *, qubits: int, bits: int, size: int, static: bool = False) -> Program:
    """Make a random program.

    Args:
        seed: The seed.
        qubits: The number of qubits.
        bits: The number of classical bits, in one to three registers.
        size: The number of statements at the top level.
        static: Whether it has only gates.
    """
    random = np.random.default_rng(seed)
    count = int(random.integers(1, min(3, bits) + 1))
    cuts = sorted(random.choice(np.arange(1, bits), count - 1, replace=False)) if count > 1 else []
    sizes = [int(item) for item in np.diff([0, *cuts, bits])]
    values = tuple(random.uniform(0.2, 2.5, 2)) if random.random() < 0.6 else ()
    program = Program(qubits=qubits, registers=sizes, values=values)
    for qubit in range(qubits):
        program.statements.append(("gate", "ry", _angle(random, program), (qubit,)))
    program.statements += _block(random, program, size, 0 if static else 2, static)
    return program


def _block(random: Any, program: Program, size: int, depth: int, static: bool) -> list[Any]:
    return [_statement(random, program, depth, static) for _ in range(size)]


def _statement(random: Any, program: Program, depth: int, static: bool) -> Any:
    roll = 0.0 if static else random.random()
    if roll < 0.5 or (depth == 0 and roll > 0.8):
        return _gate(random, program)
    if roll < 0.68:
        return ("measure", int(random.integers(program.qubits)), _bit(random, program))
    if roll < 0.75:
        return ("reset", int(random.integers(program.qubits)))
    if roll < 0.8:
        return ("barrier",)
    inner = _block(random, program, int(random.integers(1, 4)), depth - 1, static)
    if roll < 0.9:
        other = _block(random, program, 2, depth - 1, static) if random.random() < 0.5 else []
        return ("if", _condition(random, program, 2), inner, other)
    if roll < 0.94:
        return ("for", int(random.integers(1, 4)), inner)
    if roll < 0.97:
        return ("switch", int(random.integers(len(program.registers))), inner)
    # A loop that ends: each round rotates a qubit and measures it into the bit it waits for.
    qubit, bit = int(random.integers(program.qubits)), _bit(random, program)
    return ("while", bit, [("gate", "sx", (), (qubit,)), ("measure", qubit, bit)])


def _gate(random: Any, program: Program) -> Any:
    names = ["h", "x", "s", "t", "sx", "rz", "ry", "rx"]
    if program.qubits > 1 and random.random() < 0.5:
        names = ["cx", "cz", "rzz", "swap", "cp"]
    name = str(random.choice(names))
    two = name in ("cx", "cz", "rzz", "swap", "cp")
    qubits = random.choice(program.qubits, 2 if two else 1, replace=False)
    angle = _angle(random, program) if name in ("rz", "ry", "rx", "rzz", "cp") else ()
    return ("gate", name, angle, tuple(int(qubit) for qubit in qubits))


def _angle(random: Any, program: Program) -> Any:
    if program.values and random.random() < 0.5:
        return str(random.choice(list(EXPRESSIONS)))
    return float(random.uniform(-3, 3))


def _bit(random: Any, program: Program) -> tuple[int, int]:
    register = int(random.integers(len(program.registers)))
    return register, int(random.integers(program.registers[register]))


def _condition(random: Any, program: Program, depth: int) -> Any:
    kind = str(random.choice(["bit", "not", "==", "!=", "<", ">=", "^", "&&", "||"]))
    if kind in ("^", "&&", "||") and depth:
        sides = [_condition(random, program, depth - 1) for _ in range(2)]
        return (kind, *sides)
    if kind in ("==", "!=", "<", ">="):
        register = int(random.integers(len(program.registers)))
        return (kind, register, int(random.integers(2 ** program.registers[register])))
    return ("not" if kind == "not" else "bit", _bit(random, program))


def to_circuit(program: Program) -> QuantumCircuit:
    """Write a program for Qiskit."""
    registers = [ClassicalRegister(size, f"r{rank}") for rank, size in enumerate(program.registers)]
    circuit = QuantumCircuit(QuantumRegister(program.qubits, "q"), *registers)
    parameters = [Parameter("a"), Parameter("b")] if program.values else []
    _write(circuit, program.statements, registers, parameters)
    for parameter in set(parameters) - set(circuit.parameters):  # the values are for both
        circuit.rz(parameter, 0)
        circuit.rz(-parameter, 0)
    return circuit


def _write(circuit: Any, statements: list[Any], registers: Any, parameters: Any) -> None:
    for statement in statements:
        match statement:
            case ("gate", name, (), qubits):
                getattr(circuit, name)(*qubits)
            case ("gate", name, angle, qubits):
                if isinstance(angle, str):
                    angle = EXPRESSIONS[angle][1](*parameters)
                getattr(circuit, name)(angle, *qubits)
            case ("measure", qubit, (register, bit)):
                circuit.measure(qubit, registers[register][bit])
            case ("reset", qubit):
                circuit.reset(qubit)
            case ("barrier",):
                circuit.barrier()
            case ("if", condition, inner, other):
                with circuit.if_test(_to_expr(condition, registers)) as else_:
                    _write(circuit, inner, registers, parameters)
                if other:
                    with else_:
                        _write(circuit, other, registers, parameters)
            case ("for", count, inner):
                with circuit.for_loop(range(count)):
                    _write(circuit, inner, registers, parameters)
            case ("switch", register, inner):
                with circuit.switch(registers[register]) as case:
                    with case(*[0, 2][: registers[register].size]):
                        _write(circuit, inner, registers, parameters)
                    with case(case.DEFAULT):
                        circuit.x(0)
            case ("while", (register, bit), inner):
                with circuit.while_loop((registers[register][bit], 1)):
                    _write(circuit, inner, registers, parameters)


def _to_expr(condition: Any, registers: Any) -> Any:
    match condition:
        case ("bit", (register, bit)):
            return expr.lift(registers[register][bit])
        case ("not", (register, bit)):
            return expr.logic_not(registers[register][bit])
        case (("^" | "&&" | "||") as kind, left, right):
            function = {"^": expr.bit_xor, "&&": expr.logic_and, "||": expr.logic_or}[kind]
            return function(_to_expr(left, registers), _to_expr(right, registers))
        case (kind, register, number):
            functions = {
                "==": expr.equal,
                "!=": expr.not_equal,
                "<": expr.less,
                ">=": expr.greater_equal,
            }
            return functions[kind](registers[register], number)
    raise AssertionError(condition)


_HALF = math.sqrt(0.5)
_FIXED = {
    "h": [[_HALF, _HALF], [_HALF, -_HALF]],
    "x": [[0, 1], [1, 0]],
    "s": [[1, 0], [0, 1j]],
    "t": [[1, 0], [0, cmath.exp(1j * math.pi / 4)]],
    "sx": [[(1 + 1j) / 2, (1 - 1j) / 2], [(1 - 1j) / 2, (1 + 1j) / 2]],
    # Two qubits: the first operand is the left factor.
    "cx": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],
    "cz": np.diag([1, 1, 1, -1]),
    "swap": [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
}
_TINY = 1e-14


def _matrix(name: str, angle: float) -> Any:
    half, phase = angle / 2, cmath.exp(1j * angle / 2)
    rotations = {
        "rx": [[math.cos(half), -1j * math.sin(half)], [-1j * math.sin(half), math.cos(half)]],
        "ry": [[math.cos(half), -math.sin(half)], [math.sin(half), math.cos(half)]],
        "rz": np.diag([1 / phase, phase]),
        "rzz": np.diag([1 / phase, phase, phase, 1 / phase]),
        "cp": np.diag([1, 1, 1, phase**2]),
    }
    return np.array(_FIXED.get(name, rotations.get(name)), dtype=complex)


def exact(program: Program) -> Exact:
    """Follow all branches of a program."""
    dimensions = (2,) * (2 * program.qubits)
    rho = np.zeros(dimensions, dtype=complex)
    rho[(0,) * (2 * program.qubits)] = 1
    start = {(0,) * sum(program.registers): rho}
    branches = _run(program, program.statements, start)
    size = 2**program.qubits
    return Exact(branches={bits: rho.reshape(size, size) for bits, rho in branches.items()})


def _run(program: Program, statements: list[Any], branches: dict[Any, Any]) -> dict[Any, Any]:
    for statement in statements:
        branches = _step(program, statement, branches)
    return branches


def _step(program: Program, statement: Any, branches: dict[Any, Any]) -> dict[Any, Any]:
    match statement:
        case ("gate", name, angle, qubits):
            if isinstance(angle, str):
                angle = EXPRESSIONS[angle][0](*program.values)
            matrix = _matrix(name, angle or 0.0)
            return {bits: _conjugate(rho, matrix, qubits) for bits, rho in branches.items()}
        case ("measure", qubit, bit):
            return _merge(_measurements(program, qubit, bit, branches))
        case ("reset", qubit):
            return {bits: _reset(rho, qubit) for bits, rho in branches.items()}
        case ("barrier",):
            return branches
        case ("if", condition, inner, other):
            chosen, rest = _split(branches, lambda bits: _holds(program, condition, bits))
            return _merge(_both(_run(program, inner, chosen), _run(program, other, rest)))
        case ("for", count, inner):
            for _ in range(count):
                branches = _run(program, inner, branches)
            return branches
        case ("switch", register, inner):
            chosen, rest = _split(branches, lambda bits: _value(program, register, bits) in (0, 2))
            default = [("gate", "x", (), (0,))]
            return _merge(_both(_run(program, inner, chosen), _run(program, default, rest)))
        case ("while", bit, inner):
            return _while(program, bit, inner, branches)
    raise AssertionError(statement)


def _both(one: dict[Any, Any], other: dict[Any, Any]) -> Iterator[Any]:
    yield from one.items()
    yield from other.items()


def _while(
    program: Program, bit: Any, inner: list[Any], branches: dict[Any, Any]
) -> dict[Any, Any]:
    place = _place(program, bit)
    done: list[Any] = []
    while branches:
        branches, ended = _split(branches, lambda bits: bits[place] == 1)
        done += ended.items()
        branches = {
            bits: rho
            for bits, rho in _run(program, inner, branches).items()
            if abs(np.einsum(rho, _diagonal(program.qubits))) > 1e-12
        }
    return _merge(done)


def _diagonal(qubits: int) -> list[int]:
    return [*range(qubits), *range(qubits)]


def _conjugate(rho: Any, matrix: Any, qubits: tuple[int, ...]) -> Any:
    count = rho.ndim // 2
    for gate, offset in ((matrix, 0), (matrix.conj(), count)):
        axes = [qubit + offset for qubit in qubits]
        tensor = gate.reshape((2,) * (2 * len(qubits)))
        rho = np.tensordot(tensor, rho, axes=(range(len(qubits), 2 * len(qubits)), axes))
        rho = np.moveaxis(rho, range(len(qubits)), axes)
    return rho


def _project(rho: Any, qubit: int, value: int) -> Any:
    projector = np.zeros((2, 2))
    projector[value, value] = 1
    return _conjugate(rho, projector, (qubit,))


def _reset(rho: Any, qubit: int) -> Any:
    flipped = _conjugate(_project(rho, qubit, 1), np.array(_FIXED["x"], dtype=complex), (qubit,))
    return _project(rho, qubit, 0) + flipped


def _measurements(program: Program, qubit: int, bit: Any, branches: Any) -> Iterator[Any]:
    place = _place(program, bit)
    for bits, rho in branches.items():
        for value in (0, 1):
            yield (*bits[:place], value, *bits[place + 1 :]), _project(rho, qubit, value)


def _merge(items: Any) -> dict[Any, Any]:
    merged: dict[Any, Any] = {}
    for bits, rho in items:
        merged[bits] = merged[bits] + rho if bits in merged else rho
    return {bits: rho for bits, rho in merged.items() if np.abs(rho).max() > _TINY}


def _split(branches: Any, holds: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
    chosen = {bits: rho for bits, rho in branches.items() if holds(bits)}
    return chosen, {bits: rho for bits, rho in branches.items() if bits not in chosen}


def _place(program: Program, bit: tuple[int, int]) -> int:
    return sum(program.registers[: bit[0]]) + bit[1]


def _value(program: Program, register: int, bits: tuple[int, ...]) -> int:
    start = _place(program, (register, 0))
    own = bits[start : start + program.registers[register]]
    return sum(bit << rank for rank, bit in enumerate(own))


def _holds(program: Program, condition: Any, bits: tuple[int, ...]) -> bool:
    match condition:
        case ("bit", bit):
            return bits[_place(program, bit)] == 1
        case ("not", bit):
            return bits[_place(program, bit)] == 0
        case ("^", left, right):
            return _holds(program, left, bits) != _holds(program, right, bits)
        case ("&&", left, right):
            return _holds(program, left, bits) and _holds(program, right, bits)
        case ("||", left, right):
            return _holds(program, left, bits) or _holds(program, right, bits)
        case (kind, register, number):
            value = _value(program, register, bits)
            return {
                "==": value == number,
                "!=": value != number,
                "<": value < number,
                ">=": value >= number,
            }[kind]
    raise AssertionError(condition)


_PAULIS = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}


def expectation(state: Exact, label: str) -> float:
    """Return the expectation value of a Pauli term, whose last letter is for qubit 0."""
    matrix = np.eye(1)
    for letter in reversed(label):  # the first qubit is the left factor
        matrix = np.kron(matrix, _PAULIS[letter])
    return float(sum(np.trace(matrix @ rho).real for rho in state.branches.values()))


def all_labels(qubits: int) -> list[str]:
    """Return all Pauli terms on a number of qubits, without the identity."""
    return ["".join(letters) for letters in itertools.product("IXYZ", repeat=qubits)][1:]
