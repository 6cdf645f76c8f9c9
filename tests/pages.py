"""The code blocks of the documentation's pages."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["blocks", "blocks_with_kinds", "example_command"]

EXAMPLES = Path(__file__).parents[1] / "examples"


def blocks_with_kinds(page: Path) -> list[tuple[str, str]]:
    """Return each code block of a page with its kind (`python`), which may be empty."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks(page: Path, *kinds: str) -> list[str]:
    """Return the code blocks of a page that are of one of these kinds, in order."""
    return [block for kind, block in blocks_with_kinds(page) if kind in kinds]


def example_command(program: str) -> str:
    """Return the command with which examples/README.md runs an example in its folder."""
    lines = (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if f"]({program})" in line]
    return " && ".join(re.findall(r"`([^`]+)`", row.split("|")[3]))
