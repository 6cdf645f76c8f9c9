"""The code blocks of the documentation's pages."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["blocks", "blocks_with_kinds"]


def blocks_with_kinds(page: Path) -> list[tuple[str, str]]:
    """Return each code block of a page with its kind (`python`), which may be empty."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks(page: Path, *kinds: str) -> list[str]:
    """Return the code blocks of a page that are of one of these kinds, in order."""
    return [block for kind, block in blocks_with_kinds(page) if kind in kinds]
