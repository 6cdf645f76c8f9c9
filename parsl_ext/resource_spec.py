"""The keys of `parsl_resource_specification` that `QPUExecutor` understands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from parsl.executors.errors import InvalidResourceSpecification

__all__ = ["require_valid_spec"]


def require_valid_spec(specification: Mapping[str, Any] | None) -> None:
    """Refuse a specification with keys other than `qpu` (0 or 1) and `priority` (a number).

    Raises
    ------
    InvalidResourceSpecification
        The specification is not a dict, or has another key or a value that is not allowed.
    """
    if not isinstance(specification or {}, Mapping):
        raise InvalidResourceSpecification(
            set(), f"{specification!r}: must be a dict whose keys are priority and qpu."
        )
    keys = dict(specification or {})
    qpu, priority = keys.pop("qpu", 1), keys.pop("priority", 0)
    if type(qpu) is not int or qpu not in (0, 1):
        raise InvalidResourceSpecification(
            {"qpu"}, f"qpu={qpu!r}: must be 1 if the call uses the QPU, or 0 if it does not."
        )
    if keys:
        raise InvalidResourceSpecification(
            set(keys), f"unknown key {min(keys)!r}: must be one of: priority, qpu. Remove it."
        )
    # Parsl's interchange (2026.10.26) sorts calls by priority, and crashes on values without an
    # order.
    if not isinstance(priority, int | float) or math.isnan(priority):
        raise InvalidResourceSpecification(
            {"priority"}, f"priority={priority!r}: must be a number; lower numbers run first."
        )
