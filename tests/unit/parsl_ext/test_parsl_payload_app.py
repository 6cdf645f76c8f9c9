"""The app that runs a payload, in its block."""

from __future__ import annotations

import json

import pytest
from parsl.data_provider.files import File

from parsl_ext.payload_app import _run
from qrmi_workflows.errors import UndecodedResultError
from qrmi_workflows.results import QuantumResult

RESULT = QuantumResult(
    qpu="ibm_fez",
    type="ibm-quantum-compute-service",
    program="sampler",
    task_id="t1",
    payload_digest="0" * 64,
    submitted="2026-01-01T00:00:00+00:00",
    completed="2026-01-01T00:00:01+00:00",
    data=[],
    vendor_result="{}",
    decode_error="of a kind that came later",
)


class Lease:
    """A lease whose task has a result that cannot be decoded."""

    def run(self, payload: object, *, shots: int | None) -> QuantumResult:
        raise UndecodedResultError("no", RESULT)


def test_a_result_that_cannot_be_decoded_is_in_the_output_file(tmp_path):
    path = tmp_path / "r.json"

    with pytest.raises(UndecodedResultError):
        _run({}, shots=None, outputs=[File(str(path))], lease=Lease())

    assert json.loads(path.read_text())["decode_error"] == "of a kind that came later"
