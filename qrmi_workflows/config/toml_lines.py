"""On which line of a TOML file a key is written; Python's parser does not keep positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["line_of"]


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """Return the number of the line on which a key is written, counted from 1.

    The beginnings of the file are parsed, each one line longer, until one has the key. So any valid
    way to write a key is understood: tables, dotted keys, inline tables. This is slow, and meant
    for messages.

    Args:
        text: The file's content, which must be valid TOML.
        keys: The path to the key: `["qpus", "ibm_fez", "lanes"]`.

    Returns:
        The line; `None` if the key is not written.
    """
    import tomllib  # only messages need it here

    lines, begin = text.splitlines(), 1
    for count in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue  # it ends within a value of several lines
        if _has(document, keys):
            return begin
        begin = count + 1
    return None


def _has(document: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(document, dict) or key not in document:
            return False
        document = document[key]
    return True
