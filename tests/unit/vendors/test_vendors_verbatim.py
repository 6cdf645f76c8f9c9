"""Payloads for QPUs whose type no installed vendor has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qrmi_workflows.errors import PayloadError, ResultError
from qrmi_workflows.payloads import Payload, to_payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.vendors.registry import load_vendor

TYPE = "new-server"
CONTENT = {"new_program": {"any": [1]}, "count": 3}


def test_a_payload_for_an_unknown_type_is_passed_on_with_a_note(tmp_path: Path, caplog):
    """From a file or in memory, whatever its keys are."""
    path = tmp_path / "payload.json"
    path.write_text('{"new_program": {"any": [1]}, "count": 3}')
    for payload in (
        Payload.from_file(path, resource_type=TYPE),
        Payload.from_content(CONTENT, resource_type=TYPE),
    ):
        payload.require_type("q", TYPE)
        payload.require_fit("q", "not JSON")
        assert payload.content == CONTENT
        assert load_vendor(payload.vendor).encode(payload.content).fields == CONTENT
    notes = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no installed vendor has the QPU's type 'new-server'" in notes[0].getMessage()
    assert len(notes) == 2


def test_a_payload_with_a_known_vendors_keys_is_not_changed_either():
    """Only `parameters` gets the name that it has in QRMI's client."""
    content = {"program_id": "sampler", "parameters": {"pubs": ["OPENQASM 3.0;"]}}
    payload = to_payload(Payload.from_content(content), resource_type=TYPE)

    assert payload.program == "sampler"
    encoded = load_vendor(payload.vendor).encode(payload.content)
    assert (encoded.kind, dict(encoded.fields)) == (
        None,
        {"program_id": "sampler", "input": content["parameters"]},
    )


def test_what_cannot_be_passed_on_is_refused():
    with pytest.raises(PayloadError, match=r"type 'new-server', so the payload must be a JSON ob"):
        Payload.from_content("OPENQASM 3.0;\n", resource_type=TYPE)
    with pytest.raises(PayloadError, match=r"shots=5 does not apply to a payload .*'new-server'"):
        Payload.from_content(CONTENT, shots=5, resource_type=TYPE)
    with pytest.raises(PayloadError, match="Change them in the payload"):
        to_payload(Payload.from_content(CONTENT, resource_type=TYPE), shots=5)


def test_it_does_not_run_on_a_qpu_of_a_known_type():
    payload = Payload.from_content(CONTENT, resource_type=TYPE)
    with pytest.raises(PayloadError, match=r"cannot run on QPU 'ibm_fez' of type 'ibm-quantum-sy"):
        payload.require_type("ibm_fez", "ibm-quantum-system")


def test_its_result_is_the_vendors_text(tmp_path: Path):
    """The file is complete, and says why it has no data."""
    times = {"submitted": "2026-01-01T00:00:00Z", "completed": "2026-01-01T00:00:01Z"}
    known = {"qpu": "q", "type": TYPE, "program": "unknown", "task_id": "1"}
    result = QuantumResult(
        **known, **times, payload_digest="0" * 64, data=[], vendor_result="any text"
    ).decoded()
    result.save(tmp_path / "r.json")
    loaded = QuantumResult.load(tmp_path / "r.json")

    assert (loaded.vendor_result, loaded.data) == ("any text", [])
    assert "no decoder for results of the program 'unknown'" in str(loaded.decode_error)
    for read in (loaded.counts, loaded.to_numpy):
        with pytest.raises(ResultError, match="was not decoded"):
            read()
