"""The options that payloads may have, compared with IBM's own models."""

from __future__ import annotations

from typing import Any

import pytest
from ibm_quantum_schemas.estimator.version_0_1 import ParamsModel as EstimatorParams
from ibm_quantum_schemas.sampler.version_0_1 import ParamsModel as SamplerParams

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.ibm.options import ESTIMATOR_OPTIONS, SAMPLER_OPTIONS
from qrmi_workflows.vendors.ibm.schema import SCHEMA

# Encoded objects, which are not looked into.
OPAQUE = {"noise_model", "layer_noise_model"}


def published(model: Any) -> dict[str, Any]:
    """Return the JSON schema of one of IBM's models, with references resolved."""
    document = model.model_json_schema()

    def resolve(schema: Any) -> Any:
        if isinstance(schema, list):
            return [resolve(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return resolve(document["$defs"][schema["$ref"].rpartition("/")[2]])
        resolved = {
            key: resolve(value)
            for key, value in schema.items()
            if key not in ("title", "description", "default", "properties", "additionalProperties")
        }
        if "properties" in schema:
            resolved["additionalProperties"] = False
            resolved["properties"] = {
                name: {} if name in OPAQUE else resolve(each)
                for name, each in schema["properties"].items()
            }
        return resolved

    resolved: dict[str, Any] = resolve(document)
    return resolved


def with_sorted_enums(schema: Any) -> Any:
    if isinstance(schema, list):
        return [with_sorted_enums(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: sorted(value) if key == "enum" else with_sorted_enums(value)
        for key, value in schema.items()
    }


@pytest.mark.parametrize(
    ("ours", "model"), [(SAMPLER_OPTIONS, SamplerParams), (ESTIMATOR_OPTIONS, EstimatorParams)]
)
def test_the_options_are_those_that_ibm_publishes(ours, model):
    theirs = published(model)["properties"]["options"]

    assert with_sorted_enums(ours) == with_sorted_enums(theirs)


@pytest.mark.parametrize(
    ("program", "model"), [("sampler", SamplerParams), ("estimator", EstimatorParams)]
)
def test_the_parameters_are_those_that_ibm_publishes(program, model):
    """IBM's REST API also takes `shots` and `precision` for all PUBs."""
    conditions = {each["if"]["properties"]["program_id"]["const"]: each for each in SCHEMA["allOf"]}
    ours = conditions[program]["then"]["properties"]["parameters"]["properties"]

    for_all_pubs = {"sampler": "shots", "estimator": "precision"}[program]
    assert set(ours) == {*published(model)["properties"], for_all_pubs}


def payload(program: str, **parameters: Any) -> Payload:
    circuit = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
    pub = [circuit, None, 100] if program == "sampler" else [circuit, "Z", None, 0.1]
    content = {"program_id": program, "parameters": {"pubs": [pub], **parameters}}
    return Payload.from_content(content)


@pytest.mark.parametrize(
    ("program", "parameters", "message"),
    [
        ("sampler", {"shot": 5}, r"\['parameters'\]: unknown key 'shot'; did you mean 'shots'"),
        ("sampler", {"precision": 0.1}, "unknown key 'precision'; must be one of: .*, shots"),
        ("estimator", {"shots": 5}, "unknown key 'shots'; must be one of: .*, precision"),
        ("estimator", {"resilence_level": 1}, "did you mean 'resilience_level'"),
        ("estimator", {"resilience_level": 3}, "3 is greater than the maximum of 2"),
        (
            "sampler",
            {"options": {"dynamical_decopling": {}}},
            r"\['options'\]: unknown key 'dynamical_decopling'; did you mean 'dynamical_decoup",
        ),
        (
            "sampler",
            {"options": {"dynamical_decoupling": {"enabled": True}}},
            r"\['dynamical_decoupling'\]: unknown key 'enabled'; did you mean 'enable'",
        ),
        (
            "sampler",
            {"options": {"dynamical_decoupling": {"sequence_type": "XpXn"}}},
            r"'XpXn' is not one of \['XX', 'XpXm', 'XY4'\]",
        ),
        (
            "sampler",
            {"options": {"simulator": {"seed": 1}}},
            r"\['simulator'\]: unknown key 'seed'; must be one of: noise_model, seed_simulator",
        ),
        (
            "estimator",
            {"options": {"resilience": {"zne": {"noise_factor": [1, 3]}}}},
            "did you mean 'noise_factors'",
        ),
        ("sampler", {"options": {"twirling": {"enable_gates": "yes"}}}, "is not of type 'boolean'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(program, parameters, message):
    with pytest.raises(PayloadError, match=message):
        payload(program, **parameters)


@pytest.mark.parametrize("name", ["parameter", "Parameters", "comment"])
def test_an_unknown_key_beside_the_parameters_is_refused(name):
    content = {"program_id": "sampler", "parameters": {"pubs": ["OPENQASM 3.0;"]}}
    nearest = "; did you mean 'parameters'" if name != "comment" else ""

    with pytest.raises(PayloadError, match=f"unknown key {name!r}{nearest}"):
        Payload.from_content({**content, name: {}})
    with pytest.raises(PayloadError, match=f"unknown key {name!r}{nearest}"):
        Payload.from_content({"program_id": "sampler", name: {}})


def test_what_ibm_documents_is_accepted():
    payload(
        "sampler",
        version=2,
        support_qiskit=False,
        shots=100,
        options={
            "default_shots": 10,
            "dynamical_decoupling": {"enable": True, "sequence_type": "XY4"},
            "execution": {"init_qubits": True, "rep_delay": 1e-4, "meas_type": "kerneled"},
            "twirling": {"enable_gates": True, "num_randomizations": "auto", "strategy": "all"},
            "simulator": {"seed_simulator": 0},
            "experimental": {"anything": {"at": "all"}},
        },
    )
    payload(
        "estimator",
        precision=0.1,
        resilience_level=2,
        options={
            "seed_estimator": 1,
            "resilience": {
                "zne_mitigation": True,
                "zne": {"amplifier": "pea", "extrapolator": ["linear", "exponential"]},
                "pec": {"max_overhead": None, "noise_gain": "auto"},
            },
            "simulator": None,
        },
    )
