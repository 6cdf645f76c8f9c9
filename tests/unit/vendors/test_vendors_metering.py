"""What payloads and results say about the cost of a task."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from qrmi_workflows.vendors.metering import count_shots, reported_seconds
from qrmi_workflows.vendors.registry import load_vendor


def sampler(*pubs, **parameters):
    return {"program_id": "sampler", "parameters": {"pubs": list(pubs), **parameters}}


IQM = {"circuits": [{}, {}], "shots": 10}
PAYLOADS = [
    ("ibm", sampler("circuit"), 4096),
    ("ibm", sampler(["circuit"], ["circuit", None, 100], shots=10), 110),
    ("ibm", sampler(["circuit", [[1], [2], [3]]], options={"default_shots": 7}), 21),
    ("ibm", {"program_id": "estimator", "parameters": {"pubs": [["circuit", "Z"]]}}, None),
    ("ibm", {"program_id": "executor", "parameters": {}}, None),
    ("pasqal", {"sequence": {}, "job_runs": 5}, 5),
    ("iqm", {"job_type": "circuit", "iqmjson": IQM}, 20),
    ("iqm", {"job_type": "circuit", "iqmjson": json.dumps(IQM)}, 20),
    ("iqm", {"job_type": "sweep", "iqmjson": {}}, None),
    ("oqtopus", {"job_type": "sampling", "shots": 9}, 9),
    ("oqtopus", {"job_type": "sse", "shots": None}, None),
    ("alice-bob", {"human_qir": "", "input_params": {"nbShots": 8}}, 8),
    ("verbatim", {"anything": 1}, None),
]


@pytest.mark.parametrize(("vendor", "content", "shots"), PAYLOADS)
def test_the_shots_of_a_payload_are_counted(vendor, content, shots):
    assert count_shots(load_vendor(vendor), content) == shots


def test_a_payload_that_cannot_be_counted_does_not_stop_its_task():
    assert count_shots(load_vendor("ibm"), {}) is None
    assert reported_seconds(load_vendor("ibm"), '"execution_spans": nonsense') is None


def spans(*times: tuple[float, float]) -> str:
    """Return a result with execution spans, as IBM's REST interface writes it."""

    def date(seconds: float) -> dict[str, str]:
        return {"date": f"2026-01-01T00:00:{seconds:09.6f}"}

    found = [[date(start), date(end), {"0": [[10], 0, 10]}] for start, end in times]
    metadata = {"execution": {"execution_spans": found}, "version": 2}
    return json.dumps({"results": [{"data": {}}], "metadata": metadata})


def test_ibm_reports_when_the_qpu_executed_a_task():
    ibm = load_vendor("ibm")

    assert reported_seconds(ibm, spans((1, 2.5), (3, 3.25))) == 1.75
    assert reported_seconds(ibm, spans((1, 1))) is None  # a simulator's
    assert reported_seconds(ibm, spans()) is None
    assert reported_seconds(ibm, '{"results": [], "metadata": {}}') is None


def test_the_spans_of_qiskits_encoding_are_understood():
    """A result has it if the payload says `support_qiskit`, as those of the sampler do."""
    from qiskit_ibm_runtime.execution_span import DoubleSliceSpan, ExecutionSpans
    from qiskit_ibm_runtime.json import RuntimeEncoder

    slices = {0: ((10,), slice(0, 1), slice(0, 10))}
    times = [(datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 2)),
             (datetime(2026, 1, 1, 1), datetime(2026, 1, 1, 1, 0, 0, 500_000))]  # fmt: skip
    encoded = ExecutionSpans([DoubleSliceSpan(*each, slices) for each in times])
    text = json.dumps({"execution": {"execution_spans": encoded}}, cls=RuntimeEncoder)

    assert reported_seconds(load_vendor("ibm"), text) == 2.5
    assert reported_seconds(load_vendor("ibm"), text.replace("1T01:00:00.5", "1T01:00:00.0")) == 2.0


def test_others_report_nothing():
    assert reported_seconds(load_vendor("pasqal"), '{"11": 5}') is None
