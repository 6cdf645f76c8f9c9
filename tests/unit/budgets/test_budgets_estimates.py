"""Estimates: from the vendors' figures, from earlier tasks, and what stays unknown."""

from __future__ import annotations

import pytest

from qrmi_workflows.budgets.estimates import Sample, estimate_task
from qrmi_workflows.budgets.history import read_history
from qrmi_workflows.journal.cost import Amount, Cost
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult

IBM, IQM = "ibm-quantum-compute-service", "iqm-server"
CIRCUIT = "OPENQASM 3.0; bit[1] c; c[0] = measure $0;"


def sampler(*shots: int | None, **parameters: object) -> Payload:
    pubs = [[CIRCUIT, None, each] for each in shots]
    return payload("ibm", {"program_id": "sampler", "parameters": {"pubs": pubs, **parameters}})


def estimator(observables: object, values: object = None, precision: float | None = None):
    pubs = [[CIRCUIT, observables, values, precision]]
    return payload("ibm", {"program_id": "estimator", "parameters": {"pubs": pubs}})


def payload(vendor: str, content: dict[str, object]) -> Payload:
    return Payload(vendor=vendor, content=content)


def circuits(shots: int, count: int = 1) -> Payload:
    request = {"circuits": [{"name": "c", "instructions": []}] * count, "shots": shots}
    return payload("iqm", {"iqmjson": request, "job_type": "circuit"})


@pytest.mark.parametrize(
    ("task", "type_", "shots", "seconds"),
    [
        (sampler(4000), IBM, 4000, 3.4),
        (sampler(4000), "ibm-quantum-system", 4000, 3.4),
        (sampler(100, 200), IBM, 300, 2.105),
        (sampler(None), IBM, 4096, 3.434),
        (sampler(None, shots=20), IBM, 20, 2.007),
        (circuits(10_000), IQM, 10_000, 4.0),
        (circuits(1000), IQM, 1000, 0.9),
        (circuits(1000, 5), IQM, 5000, 2.0),
        (estimator("ZZ", precision=0.1), IBM, 100, 2.035),
        (estimator("ZZ"), IBM, 4096, 3.434),
        (estimator({"ZZ": 1, "ZI": 2, "XX": 3}, precision=0.1), IBM, 200, 2.07),
        (estimator([["ZZ"], [{"XX": 1, "YY": 1}]], precision=0.1), IBM, 300, 2.105),
        (estimator("ZZ", [[0.1], [0.2], [0.3]], 0.1), IBM, 300, 2.105),
    ],
)
def test_the_vendors_figures(task, type_, shots, seconds):
    """IBM: 2 + 0.00035 * executions; IQM: 0.4 ms a shot, at least 0.9 s."""
    found = estimate_task(task, type_)
    assert (found.shots, found.seconds, found.origin) == (shots, seconds, "vendor's figures")


def test_without_figures_the_seconds_are_unknown():
    task = payload("pasqal", {"sequence": {"register": []}, "job_runs": 50})
    assert estimate_task(task, "pasqal-cloud") == Amount(shots=50)
    sse = payload("oqtopus", {"job_type": "sse", "program": ["x"]})
    assert estimate_task(sse, "oqtopus") == Amount()


def sample(shots: int, seconds: float, *, digest: str = "", program: str = "sampler") -> Sample:
    return Sample(digest=digest, program=program, shots=shots, seconds=seconds)


def test_three_earlier_tasks_are_better_than_the_vendors_figures():
    task = sampler(1000)
    alike = [sample(900, 5.0), sample(1100, 7.0), sample(1000, 6.0)]
    others = [sample(10, 99.0), sample(5000, 99.0), sample(1000, 99.0, program="estimator")]
    assert estimate_task(task, IBM, alike[:2] + others).origin == "vendor's figures"
    found = estimate_task(task, IBM, alike + others)
    assert found == Amount(shots=1000, seconds=6.0, origin="measured: 3 tasks")
    same = [sample(1000, 1.0, digest=task.digest)] * 4
    assert estimate_task(task, IBM, alike + same).origin == "measured: 4 tasks"


def test_the_history_is_what_was_observed_on_this_qpu(tmp_path):
    journal = Journal(tmp_path / "journal")
    step = journal.step("s")
    spent = [
        Amount(shots=10, seconds=1.5, origin="observed"),
        Amount(shots=10, seconds=2.5, origin="reported by the vendor"),
        Amount(shots=10, seconds=9.0, origin="vendor's figures"),
        None,
    ]
    for number, each in enumerate(spent):
        for qpu, identity in (("q", "i"), ("q", "other"), ("other", "i")):
            entry, _ = step.claim(f"{number:064x}", qpu=qpu, program="sampler", identity=identity)
            entry.expect(Cost(estimate=Amount(shots=10)))
            entry.submitted("t")
            entry.completed(result(), spent=each)
    journal.close(step)
    assert [each.seconds for each in read_history("q", "i", journal)] == [1.5, 2.5]
    journal.archive("s")
    assert len(read_history("q", "i", journal)) == 2
    assert read_history("nobody", "i", journal) == []


def result() -> QuantumResult:
    return QuantumResult(
        qpu="q", type="t", program="sampler", task_id="t", payload_digest="", submitted="",
        completed="", data=[], vendor_result="{}",
    )  # fmt: skip


@pytest.mark.parametrize("total", [0, 1, 2, 7, 1000])
def test_the_shares_of_a_task_add_up_exactly(total):
    amount = Amount(shots=total, seconds=total / 1000)
    counts = [3, 1, 2]
    parts = [
        amount.part((sum(counts[:n]), count, sum(counts[n + 1 :])))
        for n, count in enumerate(counts)
    ]
    assert sum(part.shots for part in parts) == total
    assert sum(part.milliseconds for part in parts) == total
