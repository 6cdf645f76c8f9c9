"""Submissions that a vendor refuses, or does not answer."""

import logging

import pytest
from fault_payloads import bell

from qrmi_workflows import open_lease
from qrmi_workflows.errors import AmbiguousTaskError, ResourceError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState


def records(step: str) -> list:
    return Journal().step(step).records()


@pytest.mark.parametrize("status", [423, 429])
def test_a_submission_to_a_busy_vendor_is_retried(quick, fault, counted, status):
    fault("status", route="POST */jobs", status=status, count=2)

    assert quick.run(bell()).task_id
    assert counted()["tasks accepted"] == 1


def test_a_rejected_submission_is_an_error_at_once(quick, fault, counted):
    fault("status", route="POST */jobs", status=400)

    with pytest.raises(ResourceError, match="task_start failed"):
        quick.run(bell())

    assert counted()["tasks accepted"] == 0
    (record,) = records("quick")
    assert (record.state, record.retryable) == (RecordState.FAILED, True)  # nothing was paid for


@pytest.mark.parametrize(
    ("kind", "when"), [("drop", "after"), ("status", "after"), ("drop", "before")]
)
def test_a_lost_answer_is_reported(emulator, fault, counted, kind, when, caplog):
    fault(kind, route="POST */jobs", when=when, count=1)
    with open_lease("ibm_quick", step="lost") as lease:
        with pytest.raises(AmbiguousTaskError, match="--on-ambiguous resubmit"):
            lease.run(bell())
        assert records("lost")[0].state is RecordState.INTENT

    with (
        open_lease("ibm_quick", step="lost") as lease,
        pytest.raises(AmbiguousTaskError, match="an earlier run ended"),
    ):
        lease.run(bell())

    with caplog.at_level(logging.WARNING), open_lease("ibm_quick", step="lost") as lease:
        assert lease.run(bell(), on_ambiguous="resubmit").task_id
    assert "Submitting it again, as requested" in caplog.text
    assert counted()["tasks accepted"] == (2 if when == "after" else 1)
