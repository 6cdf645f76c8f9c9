"""QRMI's own payloads."""

from __future__ import annotations

import json

import pytest

from qrmi_workflows.client.package import to_qrmi_payload
from qrmi_workflows.errors import PayloadError
from qrmi_workflows.vendors.base import VendorPayload


def test_a_payload_without_a_kind_is_the_one_with_its_fields():
    """JSON becomes text, and an argument that is missing `None`."""
    fields = {"iqmjson": {"shots": 1}, "job_type": "circuit"}
    made = to_qrmi_payload(VendorPayload(kind=None, fields=fields))

    assert type(made).__name__.endswith("IQMServer")
    assert json.loads(made.iqmjson) == {"shots": 1}
    assert (made.job_type, made.use_timeslot, made.tag) == ("circuit", None, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"keys \(none\) do not match any of QRMI's payloads"),
        ({"bits": "01"}, r"keys \(bits\) do not match.*must be human_qir, input_params"),
        ({"iqmjson": "{}"}, r"keys \(iqmjson\) do not match any of QRMI's payloads \("),
    ],
)
def test_fields_of_no_payload_are_refused(fields, message):
    with pytest.raises(PayloadError, match=message):
        to_qrmi_payload(VendorPayload(kind=None, fields=fields))


def test_a_payload_of_qrmis_is_passed_on():
    made = to_qrmi_payload(VendorPayload(kind="Oqtopus", fields={"job_spec": "{}"}))
    assert to_qrmi_payload(made) is made
