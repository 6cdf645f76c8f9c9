"""Rewrite control flow in the forms that Aer simulates correctly.

Aer 0.18 lacks boxes, switches on an expression, and shifts, arithmetic and indices in conditions.
It inverts the cast of an integer to a Boolean. Here, a box becomes its content, a switch a chain of
conditions, and a condition of that kind a decision tree on its bits.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError

__all__ = ["simplify_control_flow"]

MAX_BITS = 12
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "EQUAL": operator.eq,
    "NOT_EQUAL": operator.ne,
    "LESS": operator.lt,
    "LESS_EQUAL": operator.le,
    "GREATER": operator.gt,
    "GREATER_EQUAL": operator.ge,
    "BIT_AND": operator.and_,
    "BIT_OR": operator.or_,
    "BIT_XOR": operator.xor,
    "LOGIC_AND": operator.and_,
    "LOGIC_OR": operator.or_,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "SHIFT_LEFT": operator.lshift,
    "SHIFT_RIGHT": operator.rshift,
    "ADD": operator.add,
    "SUB": operator.sub,
    "MUL": operator.mul,
    "DIV": operator.floordiv,
}


def simplify_control_flow(circuit: Any) -> Any:
    """Return an equivalent circuit whose control flow Aer simulates correctly.

    Raises:
        SimulationError: The circuit has variables, or a condition on too many bits.
    """
    if circuit.num_vars:
        raise SimulationError("classical variables are not emulated; use classical registers")
    if not circuit.has_control_flow_op():
        return circuit
    simplified = circuit.copy_empty_like()
    for instruction in circuit.data:
        operation = instruction.operation
        if operation.name == "box":
            _inline(simplify_control_flow(operation.body), instruction, simplified)
            continue
        if getattr(operation, "blocks", None):
            instruction = instruction.replace(operation=_simplify(instruction))
        simplified.append(instruction, copy=False)
    return simplified


def _inline(body: Any, instruction: Any, circuit: Any) -> None:
    qubits = dict(zip(body.qubits, instruction.qubits, strict=True))
    clbits = dict(zip(body.clbits, instruction.clbits, strict=True))
    for item in body.data:
        own = [qubits[qubit] for qubit in item.qubits], [clbits[bit] for bit in item.clbits]
        circuit.append(item.operation, *own, copy=False)


def _simplify(instruction: Any) -> Any:
    from qiskit.circuit import IfElseOp, SwitchCaseOp, WhileLoopOp

    operation = instruction.operation
    blocks = [simplify_control_flow(block) for block in operation.blocks]
    if isinstance(operation, SwitchCaseOp):
        cases = [labels for labels, _ in operation.cases_specifier()]
        return _chain(operation.target, list(zip(cases, blocks, strict=True)))
    if isinstance(operation, IfElseOp):
        return IfElseOp(_condition(operation.condition), *blocks)
    if isinstance(operation, WhileLoopOp):
        return WhileLoopOp(_condition(operation.condition), *blocks)
    return operation.replace_blocks(blocks)


def _chain(target: Any, cases: list[Any]) -> Any:
    """Return the chain of conditions for the cases of a switch statement."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import CASE_DEFAULT, IfElseOp
    from qiskit.circuit.classical import expr, types

    labels, block = cases[0]
    if CASE_DEFAULT in labels:
        condition = expr.lift(True)
    else:
        value = expr.lift(target)
        is_bit = isinstance(value.type, types.Bool)
        tests = [expr.equal(value, bool(label) if is_bit else label) for label in labels]
        condition = functools.reduce(expr.logic_or, tests)
    if not cases[1:]:
        return IfElseOp(_condition(condition), block)
    rest = QuantumCircuit(block.qubits, block.clbits, *block.cregs)
    rest.append(_chain(target, cases[1:]), rest.qubits, rest.clbits)
    return IfElseOp(_condition(condition), block, rest)


def _condition(condition: Any) -> Any:
    from qiskit.circuit.classical import expr

    if isinstance(condition, tuple):
        return condition
    if _is_supported(condition):
        return condition
    bits = list(dict.fromkeys(_bits(condition)))
    if len(bits) > MAX_BITS:
        raise SimulationError(
            f"a condition with shifts, arithmetic or casts depends on {len(bits)} bits; at most "
            f"{MAX_BITS} are emulated"
        )
    tree = _tree(condition, bits, {})
    return expr.lift(tree) if isinstance(tree, bool) else tree


def _tree(condition: Any, bits: list[Any], known: dict[Any, bool]) -> Any:
    """Return a condition as a choice on the first bit between two conditions on the others."""
    from qiskit.circuit.classical import expr

    if not bits:
        return bool(_evaluate(condition, known))
    bit, rest = bits[0], bits[1:]
    no, yes = (_tree(condition, rest, {**known, bit: value}) for value in (False, True))
    if isinstance(no, bool) and isinstance(yes, bool):
        if no == yes:
            return no
        return expr.lift(bit) if yes else expr.logic_not(bit)
    return expr.logic_or(expr.logic_and(bit, yes), expr.logic_and(expr.logic_not(bit), no))


def _is_supported(node: Any) -> bool:
    from qiskit.circuit.classical import expr, types

    match node:
        case expr.Var() | expr.Value():
            return True
        case expr.Unary():
            return _is_supported(node.operand)
        case expr.Cast():
            return _is_supported(node.operand) and (
                isinstance(node.type, types.Uint) and isinstance(node.operand.type, types.Uint)
            )
        case expr.Binary():
            sides = _is_supported(node.left) and _is_supported(node.right)
            return sides and node.op.name in _COMPARISONS
    return False


def _bits(node: Any) -> list[Any]:
    from qiskit.circuit import Clbit
    from qiskit.circuit.classical import expr

    found: list[Any] = []
    for variable in expr.iter_vars(node):
        found += [variable.var] if isinstance(variable.var, Clbit) else list(variable.var)
    return found


def _evaluate(node: Any, bits: dict[Any, bool]) -> int:
    """Return the value of an expression for values of its bits."""
    from qiskit.circuit import Clbit
    from qiskit.circuit.classical import expr

    match node:
        case expr.Value():
            return int(node.value)
        case expr.Var(var=Clbit() as bit):
            return int(bits[bit])
        case expr.Var():
            return sum(bits[bit] << rank for rank, bit in enumerate(node.var))
        case expr.Cast():
            return _fit(_evaluate(node.operand, bits), node.type)
        case expr.Index():
            return _evaluate(node.target, bits) >> _evaluate(node.index, bits) & 1
        case expr.Unary():
            value = _evaluate(node.operand, bits)
            return int(not value) if node.op.name == "LOGIC_NOT" else _fit(~value, node.type)
        case expr.Binary() if node.op.name in _COMPARISONS | _ARITHMETIC:
            sides = _evaluate(node.left, bits), _evaluate(node.right, bits)
            function = (_COMPARISONS | _ARITHMETIC)[node.op.name]
            try:
                value = function(*sides)
            except ZeroDivisionError:
                raise SimulationError("a condition divides by 0") from None
            return int(value) if node.op.name in _COMPARISONS else _fit(value, node.type)
    raise SimulationError(f"a condition has the unsupported expression {node!r:.200}")


def _fit(value: int, kind: Any) -> int:
    """Reduce a value to its type: integers lose their upper bits, as in OpenQASM."""
    from qiskit.circuit.classical import types

    if isinstance(kind, types.Bool):
        return value & 1 if value < 0 else int(value != 0)
    width: int = kind.width
    return int(value) & ((1 << width) - 1)
