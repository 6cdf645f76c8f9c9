"""What a program in OpenQASM 3 asks of a QPU, found without a compiler.

A scanner, not a parser: it finds the calls of gates and their qubits, inputs and measurements, in
milliseconds and with no quantum package. What it does not understand it leaves to the vendor.
Grammar: https://openqasm.com/grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["GateCall", "Program", "scan"]

_IGNORED = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"|^\s*(?:#?pragma|@)[^\n]*', re.S | re.M)
_PART = re.compile(r"([^;{}]*)([;{}])")
_INPUT = re.compile(r"input\s+.*?([^\s\]]+)\s*", re.S)
_QUBITS = re.compile(r"qubit\s*(?:\[\s*(\d+)\s*\])?\s*(\w+)|qreg\s+(\w+)\s*(?:\[\s*(\d+)\s*\])?")
_MEASURE = re.compile(r"\bmeasure\s+([$\w]+(?:\s*\[[^\]]*\])?)")
_MODIFIER = re.compile(r"(?:inv|pow|(?:neg)?ctrl)\s*(?:\([^@]*\))?\s*@\s*")
_CALL = re.compile(r"([^\W\d]\w*)(?:\s*\(.*\)\s*|\s+)([$\w]+(?:[^()={}]*))", re.S)
_OPERAND = re.compile(r"\$(\d+)|(\w+)\s*(?:\[\s*(\d+)\s*\])?")
_DEFINITIONS = frozenset({"gate", "def", "cal", "defcal"})
_NO_CALLS = re.compile(
    "OPENQASM|include|input|output|const|let|bit|creg|int|uint|float|angle|bool|complex|duration|"
    "stretch|array|return|break|continue|end|extern|opaque|barrier|reset|delay|box|nop|gphase|"
    "measure|defcalgrammar|for|switch|case|default|mutable|readonly"
)
_CONDITIONS = frozenset({"if", "else", "while"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCall:
    """One call of a gate.

    Attributes:
        name: The gate's name.
        qubits: The physical qubits that it acts on; `None` for one that only a compiler knows.
    """

    name: str
    qubits: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a program asks for.

    Attributes:
        inputs: Its parameters, in the order in which they are declared.
        calls: The different gate calls, in the order in which they appear.
        measured: The qubits that it measures; `None` for one that only a compiler knows.
    """

    inputs: tuple[str, ...]
    calls: tuple[GateCall, ...]
    measured: tuple[int | None, ...]


@lru_cache(maxsize=64)
def scan(text: str) -> Program:
    """Find what a program asks for; declared qubits count from 0 on, `$n` is the n-th."""
    scanner = _Scanner()
    for part in _parts(_IGNORED.sub(" ", text)):
        scanner.take(part)
    return Program(
        inputs=tuple(scanner.inputs), calls=tuple(scanner.calls), measured=tuple(scanner.measured)
    )


def _parts(text: str) -> Iterator[str]:
    """Yield statements and the heads of blocks, without what gates are defined by."""
    skipped = 0  # how many braces deep in a definition
    for match in _PART.finditer(text):
        part, end = match[1].strip(), match[2]
        if skipped:
            skipped += {"{": 1, "}": -1, ";": 0}[end]
        elif end == "{" and _word(part) in _DEFINITIONS:
            skipped = 1
        elif part:
            yield part


class _Scanner:
    """Collects what the parts of a program ask for."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.calls: dict[GateCall, None] = {}
        self.measured: dict[int | None, None] = {}
        self._registers: dict[str, tuple[int, int]] = {}
        self._width = 0

    def take(self, part: str) -> None:
        while _word(part) in _CONDITIONS:
            part = _behind_condition(part)
        if found := _MEASURE.search(part):
            self.measured |= dict.fromkeys(self._qubits(found[1]))
        elif match := _QUBITS.fullmatch(part):
            self._declare(match[2] or match[3], int(match[1] or match[4] or 1))
        elif match := _INPUT.fullmatch(part):
            self.inputs.append(match[1])
        elif not _NO_CALLS.fullmatch(_word(part)):
            self._take_call(_MODIFIER.sub("", part))

    def _take_call(self, part: str) -> None:
        if match := _CALL.fullmatch(part):
            qubits = tuple(qubit for one in match[2].split(",") for qubit in self._qubits(one))
            self.calls[GateCall(name=match[1], qubits=qubits)] = None

    def _declare(self, name: str, size: int) -> None:
        self._registers[name] = (self._width, size)
        self._width += size

    def _qubits(self, operand: str) -> list[int | None]:
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


def _word(part: str) -> str:
    match = re.match(r"\w+", part)
    return match[0] if match else ""


def _behind_condition(part: str) -> str:
    """Return the statement behind `if (…)`, `while (…)` or `else`, where no block follows."""
    rest = part[len(_word(part)) :].strip()
    if not rest.startswith("("):
        return rest
    depth = 0
    for place, sign in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0:
            return rest[place + 1 :].strip()
    return ""
