"""Classical expressions of OpenQASM 3, as Qiskit's expressions."""

from __future__ import annotations

from typing import Any

__all__ = ["build_expression", "to_condition"]

_BINARY = {
    "==": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "&&": "logic_and",
    "||": "logic_or",
    "&": "bit_and",
    "|": "bit_or",
    "^": "bit_xor",
    "<<": "shift_left",
    ">>": "shift_right",
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
}
_UNARY = {"!": "logic_not", "~": "bit_not"}


def build_expression(node: Any, resolver: Any) -> Any:
    """Return Qiskit's expression of a node, or a constant as a Python value.

    Args:
        node: A node of the syntax tree.
        resolver: Resolves names and indices.
    """
    from openqasm3 import ast
    from qiskit.circuit.classical import expr
    from qiskit_qasm3_import.exceptions import raise_from_node

    try:
        match node:
            case ast.BinaryExpression() if node.op.name in _BINARY:
                sides = [build_expression(side, resolver) for side in (node.lhs, node.rhs)]
                return getattr(expr, _BINARY[node.op.name])(*_match_bits(*sides))
            case ast.UnaryExpression() if node.op.name in _UNARY:
                operand = build_expression(node.expression, resolver)
                return getattr(expr, _UNARY[node.op.name])(operand)
            case ast.Cast():
                return expr.cast(build_expression(node.argument, resolver), _type(node, resolver))
            case ast.IndexExpression(index=[index]) if not _is_bits(node.collection, resolver):
                target = build_expression(node.collection, resolver)
                return expr.index(target, build_expression(index, resolver))
    except (TypeError, ValueError) as error:
        raise_from_node(node, f"unsupported expression: {error}")
    value = resolver.visit(node)[0]
    value = getattr(value, "value", value)  # the target of a switch statement
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, (list, tuple)):
        from qiskit.circuit import ClassicalRegister

        value = ClassicalRegister(bits=list(value))
    return expr.lift(value)


def to_condition(expression: Any, node: Any) -> Any:
    """Return an expression as a condition: bits are true if any of them is 1."""
    from qiskit.circuit.classical import expr, types
    from qiskit_qasm3_import.exceptions import raise_from_node

    if isinstance(expression, (bool, int)):
        return expr.lift(bool(expression))
    if isinstance(expression.type, types.Bool):
        return expression
    if not isinstance(expression.type, types.Uint):
        raise_from_node(node, f"conditions must be Boolean, not '{expression.type}'")
    return expr.not_equal(expression, 0)


def _match_bits(left: Any, right: Any) -> tuple[Any, Any]:
    """Return the two sides of an operation; 0 and 1 compared with one bit are Boolean."""
    from qiskit.circuit.classical import types

    sides = [left, right]
    for own, other in ((0, 1), (1, 0)):
        if isinstance(getattr(sides[other], "type", None), types.Bool) and sides[own] in (0, 1):
            sides[own] = bool(sides[own])
    return sides[0], sides[1]


def _is_bits(node: Any, resolver: Any) -> bool:
    from qiskit_qasm3_import import types

    return isinstance(resolver.visit(node)[1], (types.BitArray, types.QubitArray))


def _type(node: Any, resolver: Any) -> Any:
    from openqasm3 import ast
    from qiskit.circuit.classical import types

    if isinstance(node.type, ast.BoolType):
        return types.Bool()
    if isinstance(node.type, (ast.UintType, ast.BitType)) and node.type.size is not None:
        return types.Uint(resolver.visit(node.type.size)[0])
    raise TypeError("only casts to bool, uint[n] and bit[n] are supported")
