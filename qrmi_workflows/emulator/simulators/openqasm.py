"""Read OpenQASM 3, with all that Qiskit writes.

qiskit-qasm3-import 0.6 reads conditions only of the form `bits == number`, parameter expressions
only with the four operations, and no aliases as Qiskit writes them, variables or switch statements.
The classes here add these to its visitors.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

from qrmi_workflows.emulator.simulators import SimulationError
from qrmi_workflows.emulator.simulators.expressions import build_expression, to_condition
from qrmi_workflows.emulator.simulators.switches import rewrite_switches

__all__ = ["parse"]

# Qiskit writes `let a = {x, y[0]};`; the standard has `let a = x ++ y[0];`.
_ALIAS = re.compile(r"^(\s*let\s+[^\s=]+\s*=\s*)\{([^{}]*)\}\s*;", re.MULTILINE)
# The names of OpenQASM and, where they differ, of Qiskit's exporter; the method of a parameter.
_FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "sin": ("sin", math.sin),
    "cos": ("cos", math.cos),
    "tan": ("tan", math.tan),
    "arcsin": ("arcsin", math.asin),
    "arccos": ("arccos", math.acos),
    "arctan": ("arctan", math.atan),
    "asin": ("arcsin", math.asin),
    "acos": ("arccos", math.acos),
    "atan": ("arctan", math.atan),
    "exp": ("exp", math.exp),
    "log": ("log", math.log),
    "abs": ("abs", abs),
    "sign": ("sign", lambda value: (value > 0) - (value < 0)),
    "conj": ("conjugate", lambda value: value),
}


def parse(source: str) -> Any:
    """Return the circuit of an OpenQASM 3 program.

    Scalar bits get a register of their own, because results are returned by register.

    Raises:
        SimulationError: The program cannot be read.
    """
    import openqasm3

    try:
        text = _ALIAS.sub(_concatenate, rewrite_switches(source))
        state = _visitor().convert(openqasm3.parse(text))
    except Exception as error:  # the parser raises many types, including ANTLR's
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        raise SimulationError(
            f"the circuit is not OpenQASM 3 as supported here: {reason}"
        ) from error
    _register_scalars(state)
    return state.circuit


def _concatenate(alias: re.Match[str]) -> str:
    return f"{alias[1]}{' ++ '.join(item.strip() for item in alias[2].split(','))};"


def _register_scalars(state: Any) -> None:
    from qiskit.circuit import ClassicalRegister, Clbit

    for symbol in list(state.symbol_table.globals()):
        bit = symbol.data
        if isinstance(bit, Clbit) and not state.circuit.find_bit(bit).registers:
            state.circuit.add_register(ClassicalRegister(name=symbol.name, bits=[bit]))


@functools.cache
def _classes() -> tuple[type, type]:
    from qiskit_qasm3_import.converter import ConvertVisitor
    from qiskit_qasm3_import.expression import ValueResolver

    return (
        type("Visitor", (_Statements, ConvertVisitor), {}),
        type("Resolver", (_Values, ValueResolver), {}),
    )


def _visitor() -> Any:
    return _classes()[0]()


class _Statements:
    """Statements that qiskit-qasm3-import's visitor lacks or treats differently."""

    def _resolve_generic(self, node: Any, context: Any, strict: bool) -> Any:
        return _classes()[1](context, strict).resolve(node)

    def _resolve_condition(self, node: Any, context: Any) -> Any:
        return to_condition(build_expression(node, self._resolver(context)), node)

    def visit_ClassicalDeclaration(self, node: Any, context: Any) -> Any:  # noqa: N802
        """Declare bits under their own names, which results have."""
        from openqasm3 import ast
        from qiskit.circuit import ClassicalRegister, Clbit
        from qiskit_qasm3_import import types
        from qiskit_qasm3_import.data import Symbol
        from qiskit_qasm3_import.exceptions import raise_from_node

        name = node.identifier.name
        data: Any
        kind: Any
        if isinstance(node.type, ast.IntType) and node.init_expression is None:
            data, kind = _Selector(), types.Int()
        elif not isinstance(node.type, ast.BitType):
            type_name = type(node.type).__name__.removesuffix("Type").lower()
            raise_from_node(node, f"declarations of type '{type_name}' are not supported")
        elif node.type.size is None:
            data, kind = Clbit(), types.Bit()
            context.circuit.add_bits([data])
        else:
            size = self._resolver(context).visit(node.type.size)[0]
            data, kind = ClassicalRegister(size, name=name), types.BitArray(size)
            context.circuit.add_register(data)
        context.symbol_table.insert(Symbol(name, data, kind, context.scope, node))
        value = node.init_expression
        if isinstance(value, ast.QuantumMeasurement):
            context.circuit.measure(self._resolver(context).visit(value.qubit)[0], data)
        elif value is not None:
            raise_from_node(value, "initial values are supported only as measurements")
        return context

    def visit_ClassicalAssignment(self, node: Any, context: Any) -> Any:  # noqa: N802
        """Assign an expression to the variable by which a switch statement selects."""
        from openqasm3 import ast
        from qiskit_qasm3_import.exceptions import raise_from_node

        target = self._resolver(context).visit(node.lvalue)[0]
        if node.op is not ast.AssignmentOperator["="] or not isinstance(target, _Selector):
            raise_from_node(node, "assignments are supported only for switch statements")
        target.value = build_expression(node.rvalue, self._resolver(context))
        return context

    def visit_SwitchStatement(self, node: Any, context: Any) -> Any:  # noqa: N802
        """Add a switch statement in its final form."""
        from qiskit_qasm3_import.state import LocalScope

        target = build_expression(node.target, self._resolver(context))
        blocks = [([item.value for item in labels], body) for labels, body in node.cases]
        with context.circuit.switch(target) as case:
            if node.default is not None:
                blocks.append(([case.DEFAULT], node.default))
            for labels, body in blocks:
                with case(*labels), LocalScope(context) as inner:
                    for statement in body.statements:
                        self.visit(statement, inner)  # type: ignore[attr-defined]
        return context

    def visit_AliasStatement(self, node: Any, context: Any) -> Any:  # noqa: N802
        """Add an alias, also of single bits and under its own name."""
        from qiskit.circuit import ClassicalRegister, QuantumRegister
        from qiskit_qasm3_import import types
        from qiskit_qasm3_import.data import Symbol
        from qiskit_qasm3_import.exceptions import raise_from_node

        bits, kind = self._resolver(context).visit(node.value)
        bits = [bits] if isinstance(kind, (types.Bit, types.Qubit)) else bits
        register: Any
        if isinstance(kind, (types.Bit, types.BitArray)):
            register = ClassicalRegister(name=node.target.name, bits=bits)
            kind = types.BitArray(len(register))
        elif isinstance(kind, (types.Qubit, types.QubitArray)):
            register = QuantumRegister(name=node.target.name, bits=bits)
            kind = types.QubitArray(len(register))
        else:
            raise_from_node(node, f"aliases must be of bits or qubits, not '{kind.pretty()}'")
        context.circuit.add_register(register)
        context.symbol_table.insert(Symbol(node.target.name, register, kind, context.scope, node))
        return context

    def _resolver(self, context: Any) -> Any:
        return _classes()[1](context, True)


class _Selector:
    """The integer variable that Qiskit declares for the target of a switch statement."""

    value: Any = None


class _Values:
    """Values that qiskit-qasm3-import's resolver lacks."""

    def visit_FunctionCall(self, node: Any) -> Any:  # noqa: N802
        """Resolve a mathematical function of a number or parameter."""
        from qiskit_qasm3_import import types
        from qiskit_qasm3_import.exceptions import raise_from_node

        numbers = (types.Int, types.Uint, types.Float, types.Angle)
        arguments = [self.visit(item) for item in node.arguments]  # type: ignore[attr-defined]
        if not all(isinstance(kind, numbers) for _, kind in arguments):
            raise_from_node(node, f"the function '{node.name.name}' takes only numbers")
        values = [value for value, _ in arguments]
        const = all(getattr(kind, "const", False) for _, kind in arguments)
        name = node.name.name
        if name == "sqrt" and len(values) == 1:
            return values[0] ** 0.5, types.Float(const=const)
        if name == "pow" and len(values) == 2:
            return values[0] ** values[1], types.Float(const=const)
        if name not in _FUNCTIONS or len(values) != 1:
            raise_from_node(node, f"the function '{name}' is not supported")
        method, function = _FUNCTIONS[name]
        value = values[0]
        value = getattr(value, method)() if hasattr(value, "parameters") else function(value)
        return value, types.Float(const=const)

    def visit_BinaryExpression(self, node: Any) -> Any:  # noqa: N802
        """Resolve a power, or what qiskit-qasm3-import resolves."""
        from qiskit_qasm3_import import types

        if node.op.name != "**":
            return super().visit_BinaryExpression(node)  # type: ignore[misc]
        base, exponent = (self.visit(item) for item in (node.lhs, node.rhs))  # type: ignore[attr-defined]
        const = bool(base[1].const and exponent[1].const)
        return base[0] ** exponent[0], types.Float(const=const)

    def visit_Concatenation(self, node: Any) -> Any:  # noqa: N802
        """Concatenate registers, and single bits, as in an alias that Qiskit writes."""
        from qiskit_qasm3_import import types

        parts: list[Any] = []
        kinds: set[Any] = set()
        for item in (node.lhs, node.rhs):
            value, kind = self.visit(item)  # type: ignore[attr-defined]
            single = isinstance(kind, (types.Bit, types.Qubit, types.HardwareQubit))
            parts += [value] if single else list(value)
            is_bit = isinstance(kind, (types.Bit, types.BitArray))
            kinds.add(types.BitArray if is_bit else types.QubitArray)
        if len(kinds) != 1:
            return None, types.Error()
        return tuple(parts), kinds.pop()(len(parts))
