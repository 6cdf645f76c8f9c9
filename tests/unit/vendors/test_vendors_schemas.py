"""The check of payloads without jsonschema agrees with jsonschema."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from qrmi_workflows.vendors import registry
from qrmi_workflows.vendors.schemas import UndecidedError, matches

VENDORS = ("alice-bob", "ibm", "iqm", "oqtopus", "pasqal")
CIRCUIT = "OPENQASM 3.0;"
SAMPLER_OPTIONS: dict[str, Any] = {
    "default_shots": 10,
    "dynamical_decoupling": {"enable": True, "sequence_type": "XX"},
    "execution": {"init_qubits": False, "rep_delay": 0.1, "meas_type": "kerneled"},
    "twirling": {"num_randomizations": "auto", "strategy": "active"},
    "simulator": {"seed_simulator": 1, "coupling_map": [[0, 1]], "noise_model": {}},
    "experimental": {},
}
ESTIMATOR_OPTIONS: dict[str, Any] = {
    "default_precision": 0.5,
    "seed_estimator": None,
    "resilience": {
        "zne": {"noise_factors": [1, 3.5], "extrapolator": ["linear", "fallback"]},
        "pec": {"max_overhead": 100.0, "noise_gain": "auto"},
        "layer_noise_learning": {"max_layers_to_learn": 4, "layer_pair_depths": [0, 1]},
    },
}
PAYLOADS: list[dict[str, Any]] = [
    {
        "program_id": "sampler",
        "parameters": {
            "pubs": [CIRCUIT, [CIRCUIT], [CIRCUIT, None, 10], [{"__type__": "c"}, {"a": 1.0}, 5]],
            "version": 2,
            "shots": 10,
            "options": SAMPLER_OPTIONS,
        },
    },
    {
        "program_id": "estimator",
        "parameters": {
            "pubs": [[CIRCUIT, "ZZ"], [CIRCUIT, {"ZZ": 1.0}, [], 0.1]],
            "support_qiskit": True,
            "resilience_level": 1,
            "options": ESTIMATOR_OPTIONS,
        },
    },
    {
        "program_id": "executor",
        "parameters": {"schema_version": "v0.2", "quantum_program": {"shots": 1}, "options": {}},
    },
    {
        "program_id": "noiselearner",
        "parameters": {"circuits": [CIRCUIT], "options": {"twirling_strategy": "active"}},
    },
    {"sequence": {"register": []}, "job_runs": 10},
    {"iqmjson": {"circuits": []}, "job_type": "circuit", "use_timeslot": None, "tag": "mine"},
    {"human_qir": "define void", "input_params": {"nbShots": 10, "other": 1}},
    {"job_type": "estimation", "program": [CIRCUIT], "shots": 3, "operator": [{"pauli": "Z0"}]},
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 10.0, 0.5, 2.0, 10**9, float("nan"), float("inf")),
    *("", "auto", "active", "estimator", "x" * 60, [], ["x"], [[0, 1]], [CIRCUIT], {}, {"a": 1}),
]


def strict_validator(schema: Any) -> Any:
    """Return the validator that finds the words for what is wrong."""
    draft = jsonschema.Draft202012Validator
    checker = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return jsonschema.validators.extend(draft, type_checker=checker)(schema)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def changed(payload: Any, source: random.Random) -> Any:
    """Return a copy with one value replaced, removed or added."""
    copied = copy.deepcopy(payload)
    path = source.choice(list(places(copied))[1:] or [()])
    if not path:
        return copied
    parent = copied
    for key in path[:-1]:
        parent = parent[key]
    how = source.choice(["replace", "replace", "remove", "add"])
    value = copy.deepcopy(source.choice(VALUES))
    if how == "remove":
        del parent[path[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[source.choice(["unknown", "shots", "options", "tag"])] = copy.deepcopy(
            source.choice(VALUES)
        )
    else:
        parent[path[-1]] = value
    return copied


def is_accepted(instance: Any, schema: Any) -> bool | None:
    """Return what `matches` says; `None` if it leaves the judgement to jsonschema."""
    try:
        return matches(instance, schema)
    except UndecidedError:
        return None


@pytest.mark.parametrize("vendor", VENDORS)
def test_it_judges_as_jsonschema_does(vendor):
    """It accepts nothing that jsonschema refuses, and refuses nothing that jsonschema accepts."""
    schema = registry.load_vendor(vendor).schema
    validator = strict_validator(schema)
    source = random.Random(13)
    verdicts = set()
    for payload in PAYLOADS:
        for _ in range(60):
            instance = payload
            for _ in range(source.randrange(3)):
                instance = changed(instance, source)
            verdict = is_accepted(instance, schema)
            verdicts.add(verdict)
            if verdict is not None:
                assert verdict == validator.is_valid(instance), instance

    assert verdicts >= {True, False}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_it_accepts_valid_payloads_without_jsonschema(payload):
    schemas = [registry.load_vendor(vendor).schema for vendor in VENDORS]

    assert any(is_accepted(payload, schema) is True for schema in schemas)


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "a"},
        {"additionalProperties": {"type": "string"}},
        {"patternProperties": {"a": {}}, "additionalProperties": False},
        {"const": 2},
        {"enum": [2]},
        {"properties": {"a": {"$ref": "#"}}},
        False,
    ],
)
def test_it_leaves_to_jsonschema_what_it_does_not_know(schema):
    """JSON Schema takes 2.0 for equal to 2."""
    for instance in ("b", {"a": {}}, 2.0, 2):
        verdict = is_accepted(instance, schema)
        assert verdict is None or verdict == strict_validator(schema).is_valid(instance)
