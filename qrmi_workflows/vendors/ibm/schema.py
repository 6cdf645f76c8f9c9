"""The JSON schema of IBM's payloads: the input of a primitive, version 2.

It covers only what can be refused before submission; IBM's own schemas have all options:
https://github.com/Qiskit/ibm-quantum-schemas/tree/main/schemas (`sampler_v2_schema.json` and
`estimator_v2_schema.json`).
"""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEMA"]

_SHOTS = {"type": ["integer", "null"], "minimum": 1}
_PRECISION = {"type": ["number", "null"], "minimum": 0}
# A string is OpenQASM 3; an object is a circuit that qiskit-ibm-runtime encoded as QPY.
_CIRCUIT = {"type": ["string", "object"], "minLength": 1}
# QRMI's sampler sends a PUB without parameter values and shots as the circuit alone.
_SAMPLER_PUB = {
    "type": ["array", "string"],
    "prefixItems": [_CIRCUIT, True, _SHOTS],
    "minItems": 1,
    "maxItems": 3,
    "minLength": 1,
}
_ESTIMATOR_PUB = {
    "type": "array",
    "prefixItems": [_CIRCUIT, True, True, _PRECISION],
    "minItems": 2,
    "maxItems": 4,
}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["program_id", "parameters"],
    "properties": {
        "program_id": {"enum": ["sampler", "estimator"]},
        "parameters": {
            "type": "object",
            "required": ["pubs"],
            "properties": {
                "pubs": {"type": "array", "minItems": 1},
                "version": {"const": 2},
                "shots": _SHOTS,
                "precision": _PRECISION,
                "options": {
                    "type": "object",
                    "properties": {"default_shots": _SHOTS, "default_precision": _PRECISION},
                },
            },
        },
    },
    "if": {"properties": {"program_id": {"const": "estimator"}}},
    "then": {"properties": {"parameters": {"properties": {"pubs": {"items": _ESTIMATOR_PUB}}}}},
    "else": {"properties": {"parameters": {"properties": {"pubs": {"items": _SAMPLER_PUB}}}}},
}
"""The schema of a payload's content."""
