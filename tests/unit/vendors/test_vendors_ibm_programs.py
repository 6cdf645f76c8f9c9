"""Payloads for IBM's programs other than the primitives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.ibm.programs import to_noise_learner_result, to_quantum_program_result
from qrmi_workflows.vendors.registry import load_vendor


def executor(**fields: Any) -> dict[str, Any]:
    parameters = {"schema_version": "v9.9", "quantum_program": {"shots": 10}, **fields}
    return {"program_id": "executor", "parameters": parameters}


def learner(**fields: Any) -> dict[str, Any]:
    parameters = {"circuits": ["OPENQASM 3.0;"], **fields}
    return {"program_id": "noiselearner", "parameters": parameters}


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (executor(options={"any": 1}), {**executor(options={"any": 1})["parameters"]}),
        (learner(), {"version": 2, **learner()["parameters"]}),
    ],
)
def test_a_program_is_sent_as_it_is_written(content, sent):
    """A noise learner's version may be omitted; an executor has a schema's version instead."""
    payload = Payload.from_content(content)
    payload.require_fit("ibm_fez", None)
    encoded = load_vendor("ibm").encode(payload.content)

    assert payload.program == content["program_id"] == encoded.fields["program_id"]
    assert json.loads(encoded.fields["input"]) == sent


def test_the_shots_of_an_executor_can_be_changed():
    """A noise learner has shots for each randomization."""
    changed = Payload.from_content(executor(), shots=77).content
    assert changed["parameters"]["quantum_program"] == {"shots": 77}
    with pytest.raises(PayloadError, match=r"shots=5: a noise learner .*shots_per_randomization"):
        Payload.from_content(learner(), shots=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (executor(quantum_program={}), "'shots' is a required property"),
        ({"program_id": "executor", "parameters": {}}, "'schema_version' is a required"),
        (learner(circuits=[]), r"\['circuits'\]"),
        (learner(pubs=[]), "unknown key 'pubs'; must be one of: circuits"),
        (learner(options={"num_randomisations": 1}), "did you mean 'num_randomizations'"),
        (learner(version=1), r"\['version'\]: 2 was expected"),
    ],
)
def test_a_malformed_program_is_refused(content, message):
    with pytest.raises(PayloadError, match=message):
        Payload.from_content(content)


@pytest.mark.parametrize("convert", [to_noise_learner_result, to_quantum_program_result])
def test_another_text_is_not_a_result(convert):
    with pytest.raises(ResultError, match="result cannot be decoded"):
        convert("{")
