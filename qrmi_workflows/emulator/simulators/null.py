"""Small valid results without a simulation, for benchmarks of everything else.

Arrays are in NumPy's file format, compressed and base64-encoded, as IBM's clients expect.
"""

from __future__ import annotations

import json
from typing import Any

from qrmi_workflows.emulator.simulators import Outcome

__all__ = ["count_pubs", "null_outcome", "plain_null_outcome"]

# Two shots of two bits, 00 and 11.
_BITS = (
    "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpG"
    "OgqGmjoKtQpkAy4GZgCtGxu5"
)
# The number 0.0.
_ZERO = (
    "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBuk2ahrqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+Rqa"
    "Ogq1ChQBLgYoAAAnVhs/"
)


def null_outcome(program: str, request: str) -> Outcome:
    """Return a fixed result of the program's kind.

    For each PUB, a sampler returns the two outcomes of a Bell pair and an estimator 0. A sequence
    returns all atoms in the ground state, a QIR program one bit 0, and IQM's circuits no
    measurements.
    """
    if program == "circuits":
        return Outcome(result=json.dumps({"measurements": [], "measurement_counts": []}))
    if program == "qir":
        return Outcome(result=f"0,{json.loads(request)['shots']}\n")
    if program == "sequence":
        return Outcome(result=json.dumps({"0": json.loads(request)["runs"]}))
    pub = _ESTIMATE if program == "estimator" else _SAMPLE
    return Outcome(result=_result([pub] * count_pubs(request)))


def plain_null_outcome(program: str, request: str) -> Outcome:
    """Return the fixed result of a primitive in IBM's plain JSON."""
    data: dict[str, Any] = {"meas": {"samples": ["0x0", "0x3"], "num_bits": 2}}
    if program == "estimator":
        data = {"evs": 0.0, "stds": 0.0}
    pub = {"data": data, "metadata": {"circuit_metadata": {}}}
    results = [pub] * count_pubs(request)
    return Outcome(result=json.dumps({"results": results, "metadata": {"version": 2}}))


def count_pubs(request: str) -> int:
    """Return how many PUBs a primitive's input has; 1 if that cannot be told."""
    try:
        return max(1, len(json.loads(request)["pubs"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return 1


def _typed(kind: str, value: object) -> dict[str, Any]:
    return {"__type__": kind, "__value__": value}


def _pub(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    data = _typed("DataBin", {"field_names": list(fields), "shape": [], "fields": fields})
    return _typed(kind, {"data": data, "metadata": {}})


def _result(pubs: list[dict[str, Any]]) -> str:
    value = {"pub_results": pubs, "metadata": {"version": 2}}
    return json.dumps(_typed("PrimitiveResult", value))


_MEASURED = _typed("BitArray", {"array": _typed("ndarray", _BITS), "num_bits": 2})
_SAMPLE = _pub("SamplerPubResult", {"meas": _MEASURED})
_ESTIMATE = _pub("PubResult", {"evs": _typed("ndarray", _ZERO), "stds": _typed("ndarray", _ZERO)})
