"""The JSON schema of IBM's payloads: the inputs of the programs that QRMI's client knows.

The options are in `options`.
"""

from __future__ import annotations

from typing import Any

from qrmi_workflows.vendors.ibm.options import ESTIMATOR_OPTIONS, SAMPLER_OPTIONS

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


def _parameters(pub: dict[str, Any], options: dict[str, Any], **more: Any) -> dict[str, Any]:
    properties = {
        "pubs": {"type": "array", "minItems": 1, "items": pub},
        "version": {"const": 2},
        "support_qiskit": {"type": "boolean"},
        "options": options,
        **more,
    }
    return {
        "type": "object",
        "required": ["pubs"],
        "properties": properties,
        "additionalProperties": False,
    }


def _if_program(program: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "if": {"properties": {"program_id": {"const": program}}},
        "then": {"properties": {"parameters": parameters}},
    }


# The versions of this schema differ, and most of a program is encoded, so IBM checks it.
_EXECUTOR = {
    "type": "object",
    "required": ["schema_version", "quantum_program"],
    "properties": {
        "schema_version": {"type": "string"},
        "quantum_program": {"type": "object", "required": ["shots"]},
        "options": {"type": "object"},
    },
}
# QRMI's client (0.26.4) drops all other options.
_NOISE_LEARNER_OPTIONS = (
    *("experimental", "layer_pair_depths", "max_layers_to_learn", "num_randomizations"),
    *("shots_per_randomization", "simulator", "support_qiskit", "twirling_strategy"),
)
_NOISE_LEARNER = {
    "type": "object",
    "required": ["circuits"],
    "properties": {
        "circuits": {"type": "array", "minItems": 1, "items": _CIRCUIT},
        "version": {"const": 2},
        "support_qiskit": {"type": "boolean"},
        "options": {
            "type": "object",
            "properties": {name: {} for name in _NOISE_LEARNER_OPTIONS},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
_LEVEL = {"type": "integer", "minimum": 0, "maximum": 2}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["program_id", "parameters"],
    "properties": {
        "program_id": {"enum": ["sampler", "estimator", "executor", "noiselearner"]},
        "parameters": {"type": "object"},
    },
    "additionalProperties": False,
    "allOf": [
        # The service takes `shots` and `precision` for all PUBs although its models lack them: they
        # are in IBM's REST API, and QRMI's own primitives and examples send them.
        _if_program("sampler", _parameters(_SAMPLER_PUB, SAMPLER_OPTIONS, shots=_SHOTS)),
        _if_program(
            "estimator",
            _parameters(
                _ESTIMATOR_PUB, ESTIMATOR_OPTIONS, precision=_PRECISION, resilience_level=_LEVEL
            ),
        ),
        _if_program("executor", _EXECUTOR),
        _if_program("noiselearner", _NOISE_LEARNER),
    ],
}
"""The schema of a payload's content."""
