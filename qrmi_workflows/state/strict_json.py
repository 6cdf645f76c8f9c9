"""JSON that every reader takes.

JSON has no numbers that are not finite, but Python's `json` writes and reads them bare
(`Infinity`). Here they are strings, as in the JSON of Protocol Buffers
(https://protobuf.dev/programming-guides/json/): "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["restore_numbers", "to_strict_json"]

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_strict_json(document: Any, *, indent: int | None = None) -> str:
    """Render a document as JSON; numbers that are not finite become strings.

    Raises:
        TypeError: The document holds an object that JSON does not have.
    """
    try:
        return json.dumps(document, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without_constants(document), indent=indent, allow_nan=False)


def restore_numbers(value: Any) -> Any:
    """Return a value read from JSON with the numbers that are not finite as numbers again."""
    if isinstance(value, str):
        return _NUMBERS.get(value, value)
    if isinstance(value, list):
        return [restore_numbers(item) for item in value]
    if isinstance(value, Mapping):
        return {key: restore_numbers(item) for key, item in value.items()}
    return value


def _without_constants(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [_without_constants(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _without_constants(item) for key, item in value.items()}
    return value
