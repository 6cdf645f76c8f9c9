"""OQTOPUS's payloads and results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.payloads import Payload
from qrmi_workflows.vendors.registry import load_vendor


def content(**fields: Any) -> dict[str, Any]:
    return {"job_type": "sampling", "program": ["OPENQASM 3.0;"], **fields}


def result(**found: Any) -> str:
    return json.dumps({"job_id": "1", "status": "succeeded", "job_info": {"result": found}})


def test_a_payload_has_the_arguments_of_a_job():
    """QRMI's generator writes null for what is not given, and its client fails for null shots."""
    payload = Payload.from_content(content(shots=None, name="Bell", operator=None))
    payload.require_fit("qulacs", "{}")
    encoded = load_vendor("oqtopus").encode(payload.content)

    assert (payload.vendor, payload.program, encoded.kind) == ("oqtopus", "sampling", "Oqtopus")
    assert json.loads(encoded.fields["job_spec"]) == content(name="Bell")
    assert Payload.from_content(content(), shots=5).content == content(shots=5)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content(job_type="sample"), "'sample' is not one of"),
        (content(program="OPENQASM 3.0;"), r"\['program'\]"),
        (content(program=["a", "b"]), r"\['program'\]: .*too long"),
        (content(shots=0), r"\['shots'\]: 0 is less"),
        (content(job_type="estimation"), "'operator' is a required property"),
        (content(device_id="qulacs"), "unknown key 'device_id'"),
        ({"program": ["a"]}, "'job_type' is a required property"),
    ],
)
def test_payloads_against_the_schema_are_refused(written, message):
    with pytest.raises(PayloadError, match=message):
        Payload.from_content(written)


def test_counts_and_estimates_are_decoded():
    vendor, text = load_vendor("oqtopus"), result(sampling={"counts": {"11": 2, "00": 1}})

    assert vendor.decode("sampling", text) == [
        {"registers": {"results": {"num_bits": 2, "counts": {"00": 1, "11": 2}}}}
    ]
    assert vendor.arrays("sampling", text)[0]["results"].tolist() == [[0, 0], [1, 1], [1, 1]]
    estimated = result(estimation={"exp_value": 0.5, "stds": 0.1})
    assert vendor.decode("estimation", estimated) == [{"evs": 0.5, "stds": 0.1}]
    assert vendor.arrays("estimation", estimated)[0]["evs"] == 0.5
    assert vendor.decode("sse", "any") is None


def test_the_programs_of_a_combined_job_have_a_result_each():
    divided = {"10": {"1": 3}, "2": {"00": 3}}
    text = result(sampling={"counts": {"001": 3}, "divided_counts": divided})

    decoded = load_vendor("oqtopus").decode("multi_manual", text)

    counts = [each["registers"]["results"]["counts"] for each in decoded]
    assert counts == [{"00": 3}, {"1": 3}]


@pytest.mark.parametrize("text", ["", "[]", "{}", result(), result(sampling={"counts": {"x": 1}})])
def test_another_text_is_not_a_result(text):
    with pytest.raises(ResultError, match="OQTOPUS's sampling result cannot be decoded"):
        load_vendor("oqtopus").decode("sampling", text)


def test_the_calibration_date_is_the_devices():
    vendor = load_vendor("oqtopus")
    assert vendor.calibrated('{"calibrated_at": "2026-01-01T00:00:00Z"}') == "2026-01-01T00:00:00Z"
    assert vendor.calibrated("{}") is None
    with pytest.raises(ResultError, match="not a valid target of OQTOPUS"):
        vendor.calibrated("7")
