"""Scan OpenQASM 3 for gates, qubits, parameters and measurements.

This is not a parser. It takes milliseconds and needs no quantum package, but it understands only
what circuits exported for a QPU contain, and ignores the rest. The grammar is at
https://openqasm.com/grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["GateCall", "Program", "scan"]

# Comments, strings, and the lines of pragmas and annotations.
_IGNORED = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"|^\s*(?:#?pragma|@)[^\n]*', re.S | re.M)
_STATEMENT = re.compile(r"([^;{}]*)([;{}])")
_INPUT = re.compile(r"input\s+.*?([^\s\]]+)\s*", re.S)
_QUBITS = re.compile(r"qubit\s*(?:\[\s*(\d+)\s*\])?\s*(\w+)|qreg\s+(\w+)\s*(?:\[\s*(\d+)\s*\])?")
_MEASURE = re.compile(r"\bmeasure\s+([$\w]+(?:\s*\[[^\]]*\])?)")
_MODIFIER = re.compile(r"(?:inv|pow|(?:neg)?ctrl)\s*(?:\([^@]*\))?\s*@\s*")
_CALL = re.compile(r"([^\W\d]\w*)(?:\s*\(.*\)\s*|\s+)([$\w]+(?:[^()={}]*))", re.S)
_OPERAND = re.compile(r"\$(\d+)|(\w+)\s*(?:\[\s*(\d+)\s*\])?")
_DEFINITIONS = frozenset({"gate", "def", "cal", "defcal"})
# Statements with one of these keywords would otherwise look like a gate call (`reset q`).
_NOT_A_CALL = re.compile(
    "OPENQASM|include|input|output|const|let|bit|creg|int|uint|float|angle|bool|complex|duration|"
    "stretch|array|return|break|continue|end|extern|opaque|barrier|reset|delay|box|nop|gphase|"
    "measure|defcalgrammar|for|switch|case|default|mutable|readonly"
)
_CONDITIONS = frozenset({"if", "else", "while"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCall:
    """A gate applied to qubits.

    Attributes:
        name: The gate's name.
        qubits: The numbers of the qubits; `None` for an operand that only a compiler can resolve.
    """

    name: str
    qubits: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program's requirements on a QPU.

    Attributes:
        inputs: The names of its parameters, in the order of their declaration.
        calls: The distinct gate calls, in the order of their first appearance.
        measured: The numbers of the measured qubits; `None` for an operand that only a compiler
            can resolve.
    """

    inputs: tuple[str, ...]
    calls: tuple[GateCall, ...]
    measured: tuple[int | None, ...]


@lru_cache(maxsize=64)
def scan(text: str) -> Program:
    """Scan a program.

    `$n` is qubit n. Declared qubits are numbered from 0 in the order of their declaration, as
    Qiskit exports a circuit without a layout.
    """
    scanner = _Scanner()
    for statement in _statements(_IGNORED.sub(" ", text)):
        scanner.scan_statement(statement)
    return Program(
        inputs=tuple(scanner.inputs), calls=tuple(scanner.calls), measured=tuple(scanner.measured)
    )


def _statements(text: str) -> Iterator[str]:
    """Yield the statements and the headers of blocks, except for the bodies of definitions."""
    depth = 0  # of the braces in a definition
    for match in _STATEMENT.finditer(text):
        statement, end = match[1].strip(), match[2]
        if depth:
            depth += {"{": 1, "}": -1, ";": 0}[end]
        elif end == "{" and _first_word(statement) in _DEFINITIONS:
            depth = 1
        elif statement:
            yield statement


class _Scanner:
    """Collects what the statements of a program require."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        # Dictionaries instead of sets, because they keep the order.
        self.calls: dict[GateCall, None] = {}
        self.measured: dict[int | None, None] = {}
        self._registers: dict[str, tuple[int, int]] = {}  # name: first qubit, size
        self._num_declared = 0

    def scan_statement(self, statement: str) -> None:
        while _first_word(statement) in _CONDITIONS:
            statement = _skip_condition(statement)
        if measurement := _MEASURE.search(statement):
            self.measured |= dict.fromkeys(self._resolve(measurement[1]))
        elif match := _QUBITS.fullmatch(statement):
            self._declare(match[2] or match[3], int(match[1] or match[4] or 1))
        elif match := _INPUT.fullmatch(statement):
            self.inputs.append(match[1])
        elif not _NOT_A_CALL.fullmatch(_first_word(statement)):
            self._scan_call(_MODIFIER.sub("", statement))

    def _scan_call(self, statement: str) -> None:
        if match := _CALL.fullmatch(statement):
            operands = match[2].split(",")
            qubits = tuple(qubit for operand in operands for qubit in self._resolve(operand))
            self.calls[GateCall(name=match[1], qubits=qubits)] = None

    def _declare(self, name: str, size: int) -> None:
        self._registers[name] = (self._num_declared, size)
        self._num_declared += size

    def _resolve(self, operand: str) -> list[int | None]:
        """Return the qubits of an operand; `[None]` for aliases, slices and whole registers."""
        match = _OPERAND.fullmatch(operand.strip())
        if match is None:
            return [None]
        if match[1] is not None:
            return [int(match[1])]
        if match[2] not in self._registers:
            return [None]
        first, size = self._registers[match[2]]
        if match[3] is not None:
            return [first + int(match[3])]
        return [first] if size == 1 else [None]


def _first_word(statement: str) -> str:
    match = re.match(r"\w+", statement)
    return match[0] if match else ""


def _skip_condition(statement: str) -> str:
    """Return the statement after `if (…)`, `while (…)` or `else`; empty if a block follows."""
    rest = statement[len(_first_word(statement)) :].strip()
    if not rest.startswith("("):
        return rest
    depth = 0
    for position, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return rest[position + 1 :].strip()
    return ""
