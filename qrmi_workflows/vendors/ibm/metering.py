"""Shots of IBM's payloads, and the time of execution that IBM's results report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from qrmi_workflows.vendors.ibm.coalescing import DEFAULT_SHOTS, parameter_sets

__all__ = ["count_shots", "reported_seconds"]

_SPANS = '"execution_spans"'


def count_shots(content: Mapping[str, Any]) -> int | None:
    """Return the shots of a sampler's PUBs, for all of their parameter sets.

    An estimator has a precision instead: IBM chooses the shots.
    """
    if content["program_id"] != "sampler":
        return None
    parameters = content["parameters"]
    default = parameters.get("shots") or (parameters.get("options") or {}).get("default_shots")
    pubs = [[pub] if isinstance(pub, str) else pub for pub in parameters["pubs"]]
    own = [pub[2] if len(pub) > 2 else None for pub in pubs]
    shots = [int(each or default or DEFAULT_SHOTS) for each in own]
    return sum(each * parameter_sets(pub) for each, pub in zip(shots, pubs, strict=True))


def reported_seconds(text: str) -> float | None:
    """Return the total length of a result's execution spans; `None` if it has none.

    A span is the time in which the QPU executed some of the task's shots, without the preparation
    that IBM may bill too (https://quantum.cloud.ibm.com/docs/api/qiskit-ibm-runtime/execution-span).
    The spans are at the end of a text that may have many megabytes, so the rest is not parsed.
    """
    if (found := text.rfind(_SPANS)) < 0:
        return None
    rest = text[found + len(_SPANS) :].lstrip(": \n")
    spans, _ = json.JSONDecoder().raw_decode(rest)
    spans = _decoded(spans)
    if isinstance(spans, Mapping):
        spans = [(each["start"], each["stop"]) for each in map(_decoded, spans["spans"])]
    seconds = sum((_time(end) - _time(start)).total_seconds() for start, end, *_ in spans)
    return round(seconds, 6) if seconds > 0 else None


def _decoded(value: Any) -> Any:
    """Return what an object in Qiskit's encoding holds; a value of plain JSON as it is."""
    return value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value


def _time(value: Any) -> datetime:
    value = _decoded(value)
    return datetime.fromisoformat(value["date"] if isinstance(value, Mapping) else value)
