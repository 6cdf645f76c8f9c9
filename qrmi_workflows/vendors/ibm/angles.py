"""Check the angles of `rzz`, which IBM's QPUs have from 0 to π/2 only.

https://quantum.cloud.ibm.com/docs/guides/fractional-gates
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qrmi_workflows.errors import PayloadError

__all__ = ["check_angles"]

# The tolerance of IBM's own check (qiskit-ibm-runtime 0.51.0, utils/utils.py).
_TOLERANCE = 1e-10
_CONSTANTS = {"pi": np.pi, "π": np.pi, "tau": 2 * np.pi, "τ": 2 * np.pi, "euler": np.e, "ℇ": np.e}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{"arccos": np.arccos, "arcsin": np.arcsin, "arctan": np.arctan, "ceiling": np.ceil},
    **{"cos": np.cos, "exp": np.exp, "floor": np.floor, "log": np.log, "mod": np.mod},
    **{"pow": np.power, "sin": np.sin, "sqrt": np.sqrt, "tan": np.tan, "abs": np.abs},
}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.Mod: operator.mod, ast.Pow: operator.pow},
    **{ast.USub: operator.neg, ast.UAdd: operator.pos},
}


def check_angles(angles: tuple[str, ...], parameters: Mapping[str, Any], where: str) -> None:
    """Refuse an angle that the QPU does not have.

    An expression that is not understood here is left to the vendor.

    Args:
        angles: The angles, as expressions in OpenQASM.
        parameters: The values of the program's parameters, by name.
        where: The program's name, for messages.

    Raises:
        PayloadError: An angle is outside of the range, or not a number.
    """
    for angle in angles:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                values = np.atleast_1d(_evaluate(ast.parse(angle, mode="eval").body, parameters))
            # The comparison is false for a value that is not a number.
            is_valid = (values >= -_TOLERANCE) & (values <= np.pi / 2 + _TOLERANCE)
        except (ArithmeticError, LookupError, RecursionError, SyntaxError, TypeError, ValueError):
            continue
        if not is_valid.all():
            value = float(values[~is_valid][0])
            given = (
                f"{value:g}" if angle.replace(" ", "") == repr(value) else f"{angle} = {value:g}"
            )
            raise PayloadError(
                f"{where}: the angle of an rzz gate is {given}; must be in [0, π/2] (IBM's error "
                "1517). Bind the parameters before you transpile, which moves angles into this "
                "range, or use `convert_to_rzz_valid_pub` of qiskit-ibm-runtime."
            )


def _evaluate(node: ast.AST, parameters: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return np.float64(value)
        case ast.Name(id=name):
            if name in parameters:
                return np.asarray(parameters[name], dtype=float)
            return _CONSTANTS[name]
        case ast.UnaryOp(op=sign, operand=operand):
            return _OPERATORS[type(sign)](_evaluate(operand, parameters))
        case ast.BinOp(left=left, op=sign, right=right):
            return _OPERATORS[type(sign)](_evaluate(left, parameters), _evaluate(right, parameters))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_evaluate(arg, parameters) for arg in args))
    raise ValueError(ast.dump(node))
