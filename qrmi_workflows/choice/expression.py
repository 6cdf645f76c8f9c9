"""The expressions of `where=`: conditions on what is known of a QPU.

simpleeval evaluates them: one file without dependencies that reads Python's own syntax, which users
of this project know. (cel-python has a language of its own, and asteval is an interpreter with
statements, loops and attributes.) Before simpleeval sees an expression, `Expression` refuses all
but comparisons, `and`, `or`, `not`, arithmetic with numbers, and calls of a few functions. There
are no attributes, subscripts, powers or comprehensions, so the length of the text bounds the time.
"""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, TypeAlias

from qrmi_workflows.errors import RequestError
from qrmi_workflows.vendors.registry import describe_unknown

__all__ = ["CHANGING", "FIELDS", "Expression", "Value", "compile_expression"]

Value: TypeAlias = str | int | float | bool | frozenset[str] | None

FIELDS: Mapping[str, str] = {
    "name": "the QPU's name",
    "type": "its resource type (`pasqal-cloud`)",
    "vendor": "its vendor's short name (`ibm`)",
    "qubits": "how many qubits, or atoms, a task can use",
    "gates": "the names of its gates and instructions, or of its channels of pulses",
    "lanes": "how many tasks it prepares at a time, as the site policy says",
    "state": "the vendor's word for its state (`online`, `paused`, `offline`)",
    "queue": "how many tasks wait for it at the vendor",
    "free": "how many units of it no job holds",
    "waiting": "how many jobs wait for it",
    "calibration_age": "hours since it was calibrated",
}
"""What an expression may name, and what it is."""

CHANGING = frozenset({"state", "queue", "free", "waiting", "calibration_age"})
"""The fields that may be different in a moment."""

_EXAMPLE: Mapping[str, Value] = {
    "name": "ibm_fez",
    "type": "ibm-quantum-compute-service",
    "vendor": "ibm",
    "qubits": 156,
    "gates": frozenset({"cz"}),
    "lanes": 5,
    "state": "online",
    "queue": 3,
    "free": 1,
    "waiting": 0,
    "calibration_age": 2.5,
}
_STATES = ("online", "paused", "offline", "unknown")
_MOST_NODES = 200
_MOST_TRIALS = 500
_LARGEST = 1e9
_FUNCTIONS = {"len": len, "min": min, "max": max, "abs": abs, "matches": fnmatchcase}
_NODES = (
    ast.Expression,
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
    *(ast.In, ast.NotIn, ast.Is, ast.IsNot),
    *(ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Set, ast.Call),
)


class Expression:
    """An expression that is known to be valid.

    Args:
        text: The text.

    Raises:
        RequestError: It is not an expression, or names a field that there is not.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        tree = _parse(text)
        self.fields = frozenset(
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id not in _FUNCTIONS
        )
        self._conditions = tuple(_conjuncts(tree.body))
        self._constants = _constants(tree)
        for condition in self._conditions:
            _require_answer(condition, text)

    def failures(self, known: Mapping[str, Value]) -> list[str]:
        """Return which of its conditions do not hold for a QPU, and why; empty if all do.

        The conditions are the parts between the `and`s at the top.

        Args:
            known: The QPU's fields; `None` if one is not known.
        """
        return [
            reason
            for condition in self._conditions
            if (reason := _failure(condition, known)) is not None
        ]

    def may_ever_hold(self, known: Mapping[str, Value]) -> bool:
        """Return whether the expression may hold for a QPU in some state, or after some time.

        The fields that change are tried with the values around the numbers that the expression
        compares them with. If that proves nothing, the answer is true.
        """
        numbers = {known.get(name) for name in self.fields - CHANGING}
        near = _near(each for each in (*self._constants, *numbers) if isinstance(each, int | float))
        values = {field: self._values(field, near) for field in self.fields & CHANGING}
        several = []
        for condition in self._conditions:
            changing = CHANGING.intersection(_named(condition))
            if len(changing) > 1:
                several.append(condition)
            elif not changing and _failure(condition, known) is not None:
                return False
            elif not _is_calculated(condition):
                for field in changing:
                    values[field] = [
                        each
                        for each in values[field]
                        if _failure(condition, {**known, field: each}) is None
                    ]
        if not all(values.values()):
            return False
        if not several or any(map(_is_calculated, several)):
            return True
        trials = itertools.product(*values.values())
        for number, tried in enumerate(trials):
            now = {**known, **dict(zip(values, tried, strict=True))}
            if number == _MOST_TRIALS or all(_failure(each, now) is None for each in several):
                return True
        return False

    def _values(self, field: str, near: Sequence[float]) -> list[Value]:
        if field == "state":
            words = [each for each in self._constants if isinstance(each, str)]
            return list(dict.fromkeys([*_STATES, *words]))
        if field == "calibration_age":
            return [*near, None]
        return [*sorted({float(int(value)) for value in near}), None]  # it is a count


@lru_cache(maxsize=64)
def compile_expression(text: str) -> Expression:
    """Return a valid expression; see `Expression`."""
    return Expression(text)


def _parse(text: str) -> ast.Expression:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own about `is` with a number, and the like
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply"
        if isinstance(error, SyntaxError | ValueError):
            reason = getattr(error, "msg", None) or "it has characters that are no text"
        raise _invalid(text, f"not an expression: {reason}") from error
    nodes = list(ast.walk(tree))
    if len(nodes) > _MOST_NODES:
        raise _invalid(text, "it has too many parts")
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in _FUNCTIONS and node not in called:
            raise _invalid(text, f"`{node.id}` is a function: `{node.id}(…)`")
        _require_allowed(node, text)
    return tree


def _require_allowed(node: ast.AST, text: str) -> None:
    if isinstance(node, ast.BinOp | ast.UnaryOp) and not isinstance(node.op, _NODES):
        raise _invalid(text, f"`{_shown(node)}` cannot be used")
    if not isinstance(node, _NODES):
        shown = _shown(node) if isinstance(node, ast.expr) else type(node).__name__
        raise _invalid(text, f"`{shown}` cannot be used")
    if isinstance(node, ast.Constant) and not isinstance(
        node.value, str | int | float | bool | None
    ):
        raise _invalid(text, f"`{_shown(node)}` cannot be used")
    if isinstance(node, ast.Call):
        is_function = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if not is_function or node.keywords:
            raise _invalid(text, f"`{_shown(node)}`: only {', '.join(_FUNCTIONS)} can be called")
    if isinstance(node, ast.Name) and node.id not in {*FIELDS, *_FUNCTIONS}:
        mistake = describe_unknown([node.id], list(FIELDS), "field")
        raise RequestError(f"where={_short(text)!r}: {mistake}. Correct it.")


def _conjuncts(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for value in node.values:
            yield from _conjuncts(value)
    else:
        yield node


def _constants(tree: ast.Expression) -> tuple[Value, ...]:
    found = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return tuple(each for each in found if isinstance(each, str | int | float))


def _near(numbers: Iterable[float]) -> list[float]:
    """Return the values around some numbers, and the smallest and largest that are likely."""
    likely = [float(each) for each in numbers if abs(each) < _LARGEST]
    near = {value + step for value in likely for step in (-1.0, -0.001, 0.0, 0.001, 1.0)}
    return sorted(value for value in {0.0, 1.0, _LARGEST, *near} if value >= 0)


def _named(condition: ast.expr) -> list[str]:
    """Return the fields that a condition names."""
    nodes = ast.walk(condition)
    found = (node.id for node in nodes if isinstance(node, ast.Name) and node.id in FIELDS)
    return list(dict.fromkeys(found))


def _is_calculated(condition: ast.expr) -> bool:
    """Return whether it depends on more than how its values compare."""
    return any(isinstance(node, ast.BinOp | ast.Call) for node in ast.walk(condition))


def _require_answer(condition: ast.expr, text: str) -> None:
    """Refuse a condition that is neither true nor false for a QPU of which all is known."""
    for part in _parts(condition):
        try:
            answer = _evaluate(part, _EXAMPLE)
        except ZeroDivisionError:
            continue  # for this QPU
        except Exception as error:
            raise _invalid(text, f"`{_shown(part)}`: {error}") from error
        if not isinstance(answer, bool):
            raise _invalid(text, f"`{_shown(part)}` is {answer!r:.60}, neither true nor false")
        for node in ast.walk(part):
            if isinstance(node, ast.Compare):
                _require_same_kind(node, text)


def _require_same_kind(comparison: ast.Compare, text: str) -> None:
    """Refuse comparisons that only look like a question.

    Values of different kinds are never equal, and `is` may differ for equal values.
    """
    operands = [comparison.left, *comparison.comparators]
    try:
        values: list[Any] = [_evaluate(each, _EXAMPLE) for each in operands]
    except ZeroDivisionError:
        return  # for this QPU
    for number, operator in enumerate(comparison.ops):
        left, right = values[number : number + 2]
        others: Iterable[object]
        if isinstance(operator, ast.Is | ast.IsNot) and left is not None and right is not None:
            shown = _shown(comparison)
            raise _invalid(text, f"`{shown}`: `is` compares with `None` only; write `==`")
        if isinstance(operator, ast.Eq | ast.NotEq):
            others = [right]
        elif isinstance(operator, ast.In | ast.NotIn) and not isinstance(right, str):
            others = right
        else:
            continue
        kind, kinds = _kind(left), {_kind(each) for each in others}
        if not kinds or None in (kind, *kinds) or kind in kinds:
            continue
        named = " and ".join(sorted(map(str, kinds)))
        hint = " (to ask for a gate: `'cz' in gates`)" if "gates" in _named(comparison) else ""
        raise _invalid(text, f"`{_shown(comparison)}` compares {kind} with {named}{hint}")


def _kind(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a set" if isinstance(value, set | frozenset) else "a list"


def _parts(condition: ast.expr) -> Iterator[ast.expr]:
    """Return what `and`, `or` and `not` connect."""
    if isinstance(condition, ast.BoolOp):
        for value in condition.values:
            yield from _parts(value)
    elif isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        yield from _parts(condition.operand)
    else:
        yield condition


def _failure(condition: ast.expr, known: Mapping[str, Value]) -> str | None:
    """Return why a condition does not hold; `None` if it does."""
    names = _named(condition)
    missing = [name for name in names if known.get(name) is None]
    try:
        answer = _truth(condition, known)
    except Exception as error:
        return f"`{_shown(condition)}`: {error}"
    if answer:
        return None
    if answer is None or missing:
        return f"`{_shown(condition)}`: {' and '.join(missing)} not known"
    values = (f"{name} is {_value(known[name])}" for name in names)
    return f"`{_shown(condition)}`: {', '.join(values) or 'never true'}"


def _truth(condition: ast.expr, known: Mapping[str, Value]) -> bool | None:
    """Return whether a condition holds; `None` if that depends on what is not known."""
    if isinstance(condition, ast.BoolOp):
        decides = isinstance(condition.op, ast.Or)
        is_unknown = False
        for value in condition.values:
            found = _truth(value, known)
            if found is decides:
                return decides
            is_unknown = is_unknown or found is None
        return None if is_unknown else not decides
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        found = _truth(condition.operand, known)
        return None if found is None else not found
    asks_for_none = any(
        isinstance(node, ast.Constant) and node.value is None for node in ast.walk(condition)
    )
    if not asks_for_none and any(known.get(name) is None for name in _named(condition)):
        return None
    return _evaluate(condition, known) is True


def _evaluate(condition: ast.expr, known: Mapping[str, Value]) -> object:
    from simpleeval import EvalWithCompoundTypes  # most processes choose nothing

    names = {field: known.get(field) for field in FIELDS}
    evaluator = EvalWithCompoundTypes(functions=dict(_FUNCTIONS), names=names)
    # Strings and lists could grow with each product.
    for kind in (ast.Add, ast.Mult):
        evaluator.operators[kind] = _of_numbers(evaluator.operators[kind])
    answer: object = evaluator.eval("", previously_parsed=condition)
    return answer


def _of_numbers(operator: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(left: object, right: object) -> object:
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            raise TypeError("only numbers can be added or multiplied")
        return operator(left, right)

    return apply


def _value(value: Value) -> str:
    if isinstance(value, frozenset):
        names = [_printable(name) for name in sorted(value)]
        more = f", … ({len(names)})" if len(names) > 12 else ""
        return f"{', '.join(names[:12])}{more}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return repr(value) if isinstance(value, str) else str(value)


def _printable(name: str) -> str:
    """Return a vendor's name without what a terminal would take for a command."""
    return "".join(each if each.isprintable() else "?" for each in name)


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}…"


def _invalid(text: str, reason: str) -> RequestError:
    return RequestError(
        f"where={_short(text)!r}: {reason.rstrip('.')}. Must be conditions on the fields "
        f'{", ".join(FIELDS)}: "qubits >= 100 and queue < 10". Correct it.'
    )
