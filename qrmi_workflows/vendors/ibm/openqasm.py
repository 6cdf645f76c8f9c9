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

from qrmi_workflows.vendors.ibm.registers import mask

__all__ = ["GateCall", "Program", "is_openqasm", "scan", "version"]

# The version is the first statement of a program; only white space and comments precede it.
# Possessive, since many comments could be divided in exponentially many ways.
_SPACE = r"\A(?:\s|//[^\n]*\n|(?>/\*.*?\*/))*+"
_VERSION = re.compile(_SPACE + r"OPENQASM\s+(\d+)", re.S)
_BEGINNING = re.compile(
    _SPACE + r"(?:include\s*[\"']|(?:qubit|bit|qreg|creg|input|output|gate|def|extern|const|let|"
    r"int|uint|float|angle|bool|defcalgrammar)\b\s*[\w\[]|[#]?pragma\b|@\w|[a-z]\w*\s+\$\d)",
    re.S,
)
_INCLUDE = re.compile(r"""include\s*["']([^"']*)["']""")
_STATEMENT = re.compile(r"([^;{}]*)([;{}])")
_INPUT = re.compile(r"input\s+.*?([^\s\]]+)\s*", re.S)
_QUBITS = re.compile(r"qubit\s*(?:\[\s*(\d+)\s*\])?\s*(\w+)|qreg\s+(\w+)\s*(?:\[\s*(\d+)\s*\])?")
_BITS = re.compile(r"(?:qubit|bit)\s*\[\s*0+\s*\]\s*(\w+).*|[qc]reg\s+(\w+)\s*\[\s*0+\s*\]", re.S)
_MEASURE = re.compile(r"\bmeasure\s+([$\w]+(?:\s*\[[^\]]*\])?)")
_GATE = re.compile(r"gate\s+(\w+)")
_MODIFIER = re.compile(r"(?:inv|pow|(?:neg)?ctrl)\s*(?:\([^@]*\))?\s*@\s*")
_CALL = re.compile(r"([^\W\d]\w*)(?:\s*\((.*)\)\s*|\s+)([$\w]+(?:[^()={}]*))", re.S)
_OPERAND = re.compile(r"\$(\d+)|(\w+)\s*(?:\[\s*(\d+)\s*\])?")
_DEFINITIONS = frozenset({"gate", "def", "cal", "defcal"})
# Statements with one of these keywords would otherwise look like a gate call (`reset q`).
_NOT_A_CALL = re.compile(
    "OPENQASM|include|input|output|const|let|bit|creg|int|uint|float|angle|bool|complex|duration|"
    "stretch|array|return|break|continue|end|extern|opaque|barrier|reset|delay|box|nop|gphase|"
    "measure|defcalgrammar|for|switch|case|default|mutable|readonly"
)
_CONDITIONS = frozenset({"if", "else", "while"})
_CONTROL_FLOW = frozenset({"if", "while", "for", "switch"})
_BUILT_IN = frozenset({"U", "CX", "gphase"})
# https://openqasm.com/language/standard_library.html, and what Qiskit's importer adds.
_STANDARD = frozenset(
    {
        *("p", "x", "y", "z", "h", "s", "sdg", "t", "tdg", "sx", "rx", "ry", "rz", "id"),
        *("cx", "cy", "cz", "cp", "crx", "cry", "crz", "ch", "swap", "ccx", "cswap", "cu"),
        *("CX", "phase", "cphase", "u1", "u2", "u3"),
    }
)


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
        angles: The angles of its `rzz` gates, as expressions.
        undefined: The gates that are called without a definition.
        control_flow: The first keyword that makes the circuit dynamic (`if`); `None` if it is not.
        declared: The number of declared qubits; 0 if it uses the QPU's (`$0`).
        empty: The registers without bits or qubits.
    """

    inputs: tuple[str, ...]
    calls: tuple[GateCall, ...]
    measured: tuple[int | None, ...]
    angles: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    control_flow: str | None = None
    declared: int = 0
    empty: tuple[str, ...] = ()


def version(text: str) -> str | None:
    """Return the major version that a program states; `None` if it states none."""
    match = _VERSION.match(text)
    if match is None:
        # Version 3 may leave it out; version 2 may not, but has a library of its own.
        return "2" if "qelib1.inc" in _INCLUDE.findall(text) else None
    return match[1]


def is_openqasm(text: str) -> bool:
    """Return whether a text is a program, with or without its version."""
    return bool(_VERSION.match(text) or (";" in text and _BEGINNING.match(text)))


@lru_cache(maxsize=64)
def scan(text: str) -> Program:
    """Scan a program.

    `$n` is qubit n. Declared qubits are numbered from 0 in the order of their declaration, as
    Qiskit exports a circuit without a layout.
    """
    scanner = _Scanner()
    for statement, kind in _statements(mask(text)):
        if kind is None:
            scanner.scan_statement(statement)
        elif kind == "def" and _MEASURE.search(statement):
            scanner.measured[None] = None  # of which qubits depends on the call
        elif match := _GATE.match(statement):
            scanner.defined.add(match[1])
    return Program(
        inputs=tuple(scanner.inputs),
        calls=tuple(scanner.calls),
        measured=tuple(scanner.measured),
        angles=tuple(scanner.angles),
        undefined=_undefined(text, scanner),
        control_flow=scanner.control_flow,
        declared=scanner.num_declared,
        empty=tuple(scanner.empty),
    )


def _undefined(text: str, scanner: _Scanner) -> tuple[str, ...]:
    included = set(_INCLUDE.findall(text)) if scanner.includes else set()
    if included - {"stdgates.inc"}:
        return ()  # the file may define any gate
    known = _BUILT_IN | scanner.defined | (_STANDARD if included else frozenset())
    return tuple(dict.fromkeys(call.name for call in scanner.calls if call.name not in known))


def _statements(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield the statements and the headers of blocks.

    Each comes with `None`, or with the kind of the definition (`gate`, `def`) that it is part of.
    """
    depth, kind = 0, None  # the depth of the braces in a definition
    for match in _STATEMENT.finditer(text):
        statement, end = match[1].strip(), match[2]
        if depth:
            yield statement, kind
            depth += {"{": 1, "}": -1, ";": 0}[end]
        elif end == "{" and (word := _first_word(statement)) in _DEFINITIONS:
            depth, kind = 1, word
            yield statement, kind
        elif statement:
            yield statement, None


class _Scanner:
    """Collects what the statements of a program require."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        # Dictionaries instead of sets, because they keep the order.
        self.calls: dict[GateCall, None] = {}
        self.measured: dict[int | None, None] = {}
        self.angles: dict[str, None] = {}
        self.empty: list[str] = []
        self.defined: set[str] = set()
        self.includes = False
        self.control_flow: str | None = None
        self.num_declared = 0
        self._registers: dict[str, tuple[int, int]] = {}  # name: first qubit, size

    def scan_statement(self, statement: str) -> None:
        if (word := _first_word(statement)) in _CONTROL_FLOW and self.control_flow is None:
            self.control_flow = word
        self.includes = self.includes or word == "include"
        if match := _BITS.fullmatch(statement):
            self.empty.append(match[1] or match[2])
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
            if match[1] == "rzz" and match[2] is not None:
                self.angles[match[2].strip()] = None
            operands = match[3].split(",")
            qubits = tuple(qubit for operand in operands for qubit in self._resolve(operand))
            self.calls[GateCall(name=match[1], qubits=qubits)] = None

    def _declare(self, name: str, size: int) -> None:
        self._registers[name] = (self.num_declared, size)
        self.num_declared += size

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
