"""Payload files."""

import json

import pytest

from qrmi_workflows.errors import PayloadError
from qrmi_workflows.payloads import Payload

SAMPLER = {
    "program_id": "sampler",
    "parameters": {"pubs": [["OPENQASM 3.0; …", None, 100]], "version": 2, "shots": 100},
}
SEQUENCE = {"sequence": {"register": [], "version": "1"}, "job_runs": 10}


def test_the_keys_tell_the_vendor():
    assert Payload.from_content(SAMPLER).vendor == "ibm"
    assert Payload.from_content(SEQUENCE).vendor == "pasqal"
    assert Payload.from_content(SAMPLER).program == "sampler"
    assert Payload.from_content(SEQUENCE).program == "pulser"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "one JSON object, not list"),
        ("{}", r"its keys \(none\) are of no vendor's payload. Allowed: ibm: program_id"),
        ('{"circuit": 1}', r"its keys \('circuit'\)"),
        ('{"program_id": "sampler"}', "'parameters' is a required property"),
        (
            '{"program_id": "executor", "parameters": {"pubs": []}}',
            r"\['program_id'\]: 'executor' is not one of \['sampler', 'estimator'\]",
        ),
        ('{"program_id": "sampler", "parameters": {"pubs": []}}', r"\['pubs'\]"),
        ('{"sequence": {"register": []}, "job_runs": 0}', r"\['job_runs'\]: 0 is less"),
        ('{"sequence": "{}", "job_runs": 1}', r"\['sequence'\]"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(tmp_path, text, said):
    path = tmp_path / "payload.json"
    path.write_text(text)

    with pytest.raises(PayloadError, match=said) as caught:
        Payload.from_file(path)

    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PayloadError, match=r"absent\.json: No such file"):
        Payload.from_file(tmp_path / "absent.json")


def test_a_payload_for_another_vendor_is_refused_with_the_types_it_fits():
    with pytest.raises(PayloadError, match="allowed: QPUs of type pasqal-cloud, pasqal-local"):
        Payload.from_content(SEQUENCE).require_type("ibm_fez", "ibm-quantum-compute-service")


def test_the_digest_knows_the_content_and_not_the_order_of_keys():
    again = json.loads(json.dumps(SAMPLER))
    again["parameters"] = dict(reversed(again["parameters"].items()))
    more = Payload.from_content(SAMPLER).with_shots(101)

    assert Payload.from_content(again).digest == Payload.from_content(SAMPLER).digest
    assert more.digest != Payload.from_content(SAMPLER).digest


def test_shots_replace_every_pubs_own_and_leave_the_original_alone():
    changed = Payload.from_content(SAMPLER).with_shots(7)

    assert changed.content["parameters"]["pubs"] == [["OPENQASM 3.0; …", None, 7]]
    assert changed.content["parameters"]["shots"] == 7
    assert SAMPLER["parameters"]["shots"] == 100
    assert Payload.from_content(SEQUENCE).with_shots(7).content["job_runs"] == 7


def test_an_estimator_has_no_shots():
    estimator = {"program_id": "estimator", "parameters": {"pubs": [["q", "Z"]]}}

    with pytest.raises(PayloadError, match="precision, not shots"):
        Payload.from_content(estimator).with_shots(7)
    with pytest.raises(PayloadError, match="from 1 on"):
        Payload.from_content(SAMPLER).with_shots(0)
