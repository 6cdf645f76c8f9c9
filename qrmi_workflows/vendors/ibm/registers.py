"""Bring classical registers back under the names that users gave them.

A result has one field for each classical register. On the way to it, names change twice: Qiskit's
exporter renames registers that are called like a gate, a keyword or a constant of OpenQASM 3
(`crz`, `input`, `pi`), and the service's importer those that are not names in OpenQASM 2 (`Meas`,
`τ`; qiskit-qasm3-import 0.6.0, `_escape_qasm2`). Bits outside of a register have no field at all.

So a circuit is sent with names that survive, each of which contains the original one, and with a
register for every bit. `as_written` restores the original name from a result alone, in any process.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import lru_cache, partial

from qrmi_workflows.errors import PayloadError

__all__ = [
    "ambiguous_names",
    "as_written",
    "escape",
    "escaped",
    "mask",
    "rename",
    "with_registers",
]

_PREFIX = "as_written_"
_HEX = "hex_"
_NAME = r"[^\W\d]\w*"
# A field with one of these names hides an attribute of Qiskit's `DataBin`, which refuses it
# (qiskit 2.6, `DataBin._RESTRICTED_NAMES`).
_ATTRIBUTES = frozenset({"items", "keys", "ndim", "shape", "size", "values"})
# Comments, strings, and the lines of pragmas and annotations.
_IGNORED = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"|^\s*(?:#?pragma|@)[^\n]*', re.S | re.M)
_DECLARATION = re.compile(
    rf"[{{}}]|\b(?:bit\s*(?P<size>\[[^\]]*\])?\s*\b(?P<bit>{_NAME})(?=\s*[;=])"
    rf"|creg\s+(?P<creg>{_NAME})\s*(?P<length>\[[^\]]*\])?(?=\s*;))"
)
_TYPED = re.compile(
    r"\b(?:bit|creg|bool|u?int|float|angle|complex|duration|stretch|qubit|qreg|let|gate|def)"
    rf"\s*(?:\[[^\]]*\])?\s*\b({_NAME})"
)
_HEADER = re.compile(r"\b(?:gate|def)\b[^{;]*")
_WORD = re.compile(rf"{_IGNORED.pattern}|(?<![\w$]){_NAME}", re.S | re.M)
_DECLARED = re.compile(r"\bbit\s*\[[^\]]*\]\s*$|\bcreg\s+$")
_ALIAS = re.compile(r"\blet\b[^;]*;")


def escape(name: str) -> str:
    """Return the name under which a register is sent; its own, if that survives."""
    is_safe = (
        re.fullmatch("[a-z][a-zA-Z0-9_]*", name)
        and not name.startswith(_PREFIX)
        and not keyword.iskeyword(name)
        and name not in _ATTRIBUTES
    )
    if is_safe:
        return name
    return escaped(name)


def escaped(name: str) -> str:
    """Return a name that contains a register's own."""
    if re.fullmatch("[a-zA-Z0-9_]+", name) and not name.startswith(_HEX):
        return _PREFIX + name
    return _PREFIX + _HEX + name.encode().hex()


def as_written(name: str) -> str:
    """Return the name that the user gave to a register of a result."""
    if not name.startswith(_PREFIX):
        return name
    rest = name.removeprefix(_PREFIX)
    if not rest.startswith(_HEX):
        return rest
    try:
        return bytes.fromhex(rest.removeprefix(_HEX)).decode()
    except ValueError:  # not from here
        return name


def mask(text: str) -> str:
    """Blank a program's comments, strings and pragmas, without moving the rest."""
    return _IGNORED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def rename(text: str, names: dict[str, str]) -> str:
    """Rename variables of a program."""
    return _replace(text, names, lambda match: names[match[0]]) if names else text


@lru_cache(maxsize=16)
def with_registers(text: str, where: str = "the circuit") -> str:
    """Return a program whose results have a field of a lasting name for each classical variable.

    A bit (`bit c;`) becomes a register of one bit.

    Args:
        text: A program in OpenQASM 3.
        where: What it is, for messages.

    Raises:
        PayloadError: A name stands for several things, so it cannot be replaced.
    """
    masked = mask(text)
    aliased = " ".join(_ALIAS.findall(masked))
    names, bits = {}, set()
    for name, match in _global_declarations(masked):
        if match["size"] is None and match["length"] is None:
            if re.search(rf"\b{name}\b", aliased):  # it belongs to a register that is an alias
                continue
            bits.add(name)
        names[name] = name if name.startswith(_PREFIX) else escape(name)
    changed = bits | {name for name, sent in names.items() if name != sent}
    if not changed:
        return text
    _require_one_meaning(masked, changed, where)
    declared = _declare_registers(text, masked, bits)
    return _replace(declared, changed, partial(_send, names, bits))


def _declare_registers(text: str, masked: str, bits: set[str]) -> str:
    """Declare bits as registers; an initial value is then assigned in a statement of its own."""
    parts, position = [], 0
    for name, match in _global_declarations(masked):
        if name in bits:
            is_initialised = masked[match.end() : match.end() + 100].lstrip().startswith("=")
            assignment = f"; {name}" if is_initialised else ""
            parts += [text[position : match.start()], f"bit[1] {name}{assignment}"]
            position = match.end()
    return "".join([*parts, text[position:]])


def _send(names: Mapping[str, str], bits: set[str], match: re.Match[str]) -> str:
    """Return what replaces a variable: its new name, with the index of its only bit."""
    before = match.string[max(0, match.start() - 100) : match.start()]
    after = match.string[match.end() : match.end() + 100].lstrip()
    is_whole = match[0] in bits and not after.startswith("[") and not _DECLARED.search(before)
    return names[match[0]] + ("[0]" if is_whole else "")


def _global_declarations(masked: str) -> Iterator[tuple[str, re.Match[str]]]:
    depth = 0
    for match in _DECLARATION.finditer(masked):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and (name := match["bit"] or match["creg"]):
            yield name, match


def ambiguous_names(masked: str) -> set[str]:
    """Return the names that a masked program uses for several things, so they must stay."""
    declared = Counter(_TYPED.findall(masked))
    local = set(re.findall(_NAME, " ".join(_HEADER.findall(masked))))
    return local | {name for name, times in declared.items() if times > 1}


def _require_one_meaning(masked: str, names: Iterable[str], where: str) -> None:
    if unclear := sorted(ambiguous_names(masked).intersection(names)):
        raise PayloadError(
            f"{where}: the bit or register {unclear[0]!r} cannot be returned under its name, "
            "because the program uses the name for something else too; it must have one meaning. "
            "Rename one of them, or declare a register of another name (`bit[1] result;`)."
        )


def _replace(text: str, names: Container[str], replacement: Callable[[re.Match[str]], str]) -> str:
    """Replace names outside of comments and strings."""

    def replace(match: re.Match[str]) -> str:
        return replacement(match) if match[0] in names else match[0]

    return _WORD.sub(replace, text)
