"""Rewrite the switch statements of OpenQASM 3 as chains of conditions.

Qiskit exports `switch` in a preliminary form (`ExperimentalFeatures.SWITCH_CASE_V1`, which QRMI's
primitives enable), but qiskit-qasm3-import 0.6 reads neither this form nor the final one. The
rewriting is line by line and relies on the layout of Qiskit's exporter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["rewrite_switches"]

_DECLARATION = re.compile(r"\s*int(\[\d+\])? switch_dummy\w*;")
_TARGET = re.compile(r"\s*(switch_dummy\w*) = (.+);")
_SWITCH = re.compile(r"(\s*)switch \((\w+)\) \{")
_CASE = re.compile(r"\s*(?:case (\d+)|(default)):( \{)?")
_BIT = re.compile(r"\w+\[\d+\]")


def rewrite_switches(source: str) -> str:
    """Return an equivalent program without switch statements."""
    if "switch" not in source:
        return source
    return "\n".join(_rewrite(source.splitlines(), {})) + "\n"


def _rewrite(lines: list[str], targets: dict[str, str]) -> Iterator[str]:
    rest = iter(lines)
    for line in rest:
        if _DECLARATION.fullmatch(line):
            continue
        if target := _TARGET.fullmatch(line):
            targets[target[1]] = target[2]
        elif switch := _SWITCH.fullmatch(line):
            body = list(_take_until(rest, f"{switch[1]}}}"))
            yield from _chain(targets.get(switch[2], switch[2]), body, targets)
        else:
            yield line


def _take_until(lines: Iterator[str], end: str) -> Iterator[str]:
    for line in lines:
        if line == end:
            return
        yield line


def _chain(target: str, body: list[str], targets: dict[str, str]) -> Iterator[str]:
    rest, labels, depth = iter(body), list[str | None](), 0
    for line in rest:
        case = _CASE.fullmatch(line)
        if case is None:
            continue  # the `break;` after each case
        labels.append(case[1])
        if case[3] is None:
            continue  # another label of the same block follows
        indent = line[: len(line) - len(line.lstrip())]
        block = list(_rewrite(list(_take_until(rest, f"{indent}}}")), targets))
        for label in labels:
            if label is None:
                yield from block
            else:
                yield f"if ({_condition(target, label)}) {{"
                yield from block
                yield "} else {"
                depth += 1
        labels = []
    yield from ["}"] * depth


def _condition(target: str, label: str) -> str:
    if _BIT.fullmatch(target):
        return target if label == "1" else f"!{target}"
    return f"{target} == {label}"
