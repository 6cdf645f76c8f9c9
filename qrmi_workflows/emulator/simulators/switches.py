"""Rewrite switch statements of OpenQASM 3 from Qiskit's preliminary form to the final one.

Qiskit exports `switch` in a preliminary form with `ExperimentalFeatures.SWITCH_CASE_V1`, which
QRMI's primitives enable: `case 1:` instead of `case 1 {`, and a `break;` after each block. The
rewriting is line by line and relies on the layout of Qiskit's exporter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["rewrite_switches"]

_CASE = re.compile(r"(\s*)(?:case (\d+)|(default)):( \{)?")


def rewrite_switches(source: str) -> str:
    """Return an equivalent program whose switch statements have the final form."""
    if "switch" not in source:
        return source
    return "\n".join(_rewrite(source.splitlines())) + "\n"


def _rewrite(lines: list[str]) -> Iterator[str]:
    labels: list[str] = []
    open_blocks: list[str] = []  # the indents of the cases that are not closed yet
    closed: str | None = None
    for line in lines:
        if closed is not None and line == f"{closed}break;":
            closed = None
            continue
        closed = None
        if case := _CASE.fullmatch(line):
            labels.append(case[2] or case[3])
            if case[4] is not None:  # otherwise another label of the same block follows
                indent = case[1]
                yield f"{indent}{_head(labels)} {{"
                open_blocks.append(indent)
                labels = []
        else:
            yield line
            if open_blocks and line == f"{open_blocks[-1]}}}":
                closed = open_blocks.pop()


def _head(labels: list[str]) -> str:
    return "default" if "default" in labels else f"case {', '.join(labels)}"
