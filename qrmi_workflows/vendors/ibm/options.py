"""The options of IBM's primitives, as IBM publishes them.

Source: the models of ibm-quantum-schemas 0.13.20261016 (`ibm_quantum_schemas.sampler.version_0_1`
and `ibm_quantum_schemas.estimator.version_0_1`; https://github.com/Qiskit/ibm-quantum-schemas). A
test compares this module with them. IBM's models ignore an unknown key in most of these objects: a
misspelt one would be paid for without effect, so it is refused here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ESTIMATOR_OPTIONS", "SAMPLER_OPTIONS"]

_Schema = dict[str, Any]

_BOOLEAN = {"type": "boolean"}
_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_STRING = {"type": "string"}
_NULL = {"type": "null"}
_ANYTHING: _Schema = {}
_POSITIVE = {"type": "integer", "minimum": 1}
_NATURAL = {"type": "integer", "minimum": 0}


def _object(**properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _any_of(*schemas: _Schema) -> _Schema:
    return {"anyOf": list(schemas)}


def _enum(*values: str) -> _Schema:
    return {"type": "string", "enum": list(values)}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


_AUTO = {"type": "string", "const": "auto"}
_STRATEGY = _enum("active", "active-accum", "active-circuit", "all")
_DYNAMICAL_DECOUPLING = _object(
    enable=_BOOLEAN,
    sequence_type=_enum("XX", "XpXm", "XY4"),
    extra_slack_distribution=_enum("middle", "edges"),
    scheduling_method=_enum("alap", "asap"),
    skip_reset_qubits=_BOOLEAN,
)
_SIMULATOR = _any_of(
    _object(
        noise_model=_ANYTHING,
        seed_simulator=_any_of(_INTEGER, _NULL),
        coupling_map=_any_of(_list({**_list(_INTEGER), "minItems": 2, "maxItems": 2}), _NULL),
        basis_gates=_any_of(_list(_STRING), _NULL),
    ),
    _NULL,
)
_EXTRAPOLATOR = _enum(
    *("linear", "exponential", "double_exponential"),
    *(f"polynomial_degree_{degree}" for degree in range(1, 8)),
    "fallback",
)
_EXECUTION = {
    "init_qubits": _BOOLEAN,
    "rep_delay": _any_of({"type": "number", "minimum": 0}, _NULL),
}

SAMPLER_OPTIONS = _object(
    default_shots=_POSITIVE,
    dynamical_decoupling=_DYNAMICAL_DECOUPLING,
    execution=_object(**_EXECUTION, meas_type=_enum("classified", "kerneled", "avg_kerneled")),
    twirling=_object(
        enable_gates=_BOOLEAN,
        enable_measure=_BOOLEAN,
        num_randomizations=_any_of(_POSITIVE, _AUTO),
        shots_per_randomization=_any_of(_POSITIVE, _AUTO),
        strategy=_STRATEGY,
    ),
    simulator=_SIMULATOR,
    experimental={"type": "object"},
)
"""The schema of a sampler's `options`."""

ESTIMATOR_OPTIONS = _object(
    default_precision={"type": "number", "exclusiveMinimum": 0},
    default_shots=_any_of(_POSITIVE, _NULL),
    seed_estimator=_any_of(_NATURAL, _NULL),
    dynamical_decoupling=_DYNAMICAL_DECOUPLING,
    resilience=_object(
        measure_mitigation=_any_of(_BOOLEAN, _NULL),
        measure_noise_learning=_object(
            num_randomizations=_POSITIVE, shots_per_randomization=_any_of(_POSITIVE, _AUTO)
        ),
        zne_mitigation=_any_of(_BOOLEAN, _NULL),
        zne=_object(
            amplifier=_enum("gate_folding", "gate_folding_front", "gate_folding_back", "pea"),
            noise_factors=_list(_NUMBER),
            extrapolator=_any_of(_EXTRAPOLATOR, _list(_EXTRAPOLATOR)),
            extrapolated_noise_factors=_any_of(_list(_NUMBER), _AUTO),
        ),
        pec_mitigation=_BOOLEAN,
        pec=_object(
            max_overhead=_any_of({"type": "number", "exclusiveMinimum": 0}, _NULL),
            noise_gain=_any_of({"type": "number", "minimum": 0}, _AUTO),
        ),
        layer_noise_learning=_object(
            max_layers_to_learn=_any_of(_NATURAL, _NULL),
            shots_per_randomization=_POSITIVE,
            num_randomizations=_POSITIVE,
            layer_pair_depths=_list(_INTEGER),
        ),
        layer_noise_model=_ANYTHING,
    ),
    execution=_object(**_EXECUTION),
    twirling=_object(
        enable_gates=_any_of(_BOOLEAN, _NULL),
        enable_measure=_any_of(_BOOLEAN, _NULL),
        num_randomizations=_any_of(_POSITIVE, _AUTO),
        shots_per_randomization=_any_of(_POSITIVE, _AUTO),
        strategy=_STRATEGY,
    ),
    simulator=_SIMULATOR,
    experimental={"type": "object"},
)
"""The schema of an estimator's `options`."""
