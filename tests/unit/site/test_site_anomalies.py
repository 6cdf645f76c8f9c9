"""Anomalies in lease records."""

from __future__ import annotations

from pathlib import Path

import pytest
from usage_records import counted, lease_record

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.site.accounting import Summary
from qrmi_workflows.site.anomalies import Anomalies, exclusive_limits
from qrmi_workflows.state.process import Owner


def found(*records, **settings):
    anomalies = Anomalies(**settings)
    Summary(anomalies=anomalies).add_all(map(counted, records))
    return [(each.kind, each.job, each.seconds) for each in anomalies.found()], anomalies.found()


def test_a_lease_that_was_mostly_idle_is_named():
    kinds, (idle,) = found(
        lease_record(0, 200, busy=50),
        lease_record(300, 100, busy=60, job="8"),  # mostly busy
        lease_record(500, 50, busy=0, job="9"),  # not for long
    )

    assert kinds == [("idle", "7", 150)]
    assert str(idle).startswith(
        "job 7, QPU ibm_fez, user alice: the QPU was idle 150 s of the 200 s for which it was held."
    )
    assert "in a stage" in idle.remedy


def test_a_reaped_lease_is_named_as_such():
    kinds, (reaped,) = found(lease_record(0, 200, busy=50, reaped=True, job=None))

    assert kinds == [("reaped", None, 150)]
    assert "lease lease-None-0 (outside of jobs)" in str(reaped)


def test_a_task_that_ran_without_a_result_is_named():
    kinds, (lost,) = found(lease_record(0, 30, without_result=["t9"], tasks=3))

    assert kinds == [("no-result", "7", 10)]
    assert "task t9 ran without a result" in lost.what


def recorded(state: RecordState, reason: str | None = None) -> TaskRecord:
    owner = Owner(host="n1", boot="b", pid=1, started=1)
    return TaskRecord(
        step="sample",
        digest="d",
        number=0,
        qpu="ibm_fez",
        program="sampler",
        state=state,
        run="r",
        owner=owner,
        since="",
        task_id="task-7-0",
        reason=reason,
    )


def test_the_journal_tells_which_results_were_not_fetched_and_why_tasks_failed():
    submitted = {"task-7-0": recorded(RecordState.SUBMITTED)}
    failed = {"task-7-0": recorded(RecordState.FAILED, "it was too hot.")}

    _, (unfetched,) = found(lease_record(0, 30), to_do=submitted)
    _, (reported,) = found(lease_record(0, 30), to_do=failed)

    assert "was not fetched. Rerun step 'sample'" in str(unfetched)
    assert "ran without a result: it was too hot. Look" in str(reported)
    assert found(lease_record(0, 30, job="8"), to_do=submitted)[0] == []


def test_leases_of_an_exclusive_qpu_must_not_overlap():
    records = [
        lease_record(0, 100, job="1"),
        lease_record(40, 30, job="2", user="bob"),
        lease_record(99.5, 50, job="3"),  # the clocks of two hosts differ
        lease_record(200, 50, job="4"),
        lease_record(210, 20, job="4"),  # of the same job
        lease_record(240, 30, job=None),
        lease_record(0, 500, job="5", qpu="FRESNEL"),  # not exclusive
    ]

    kinds, overlaps = found(*records, limits={"ibm_fez": 1})

    assert kinds == [("overlap", "2", 30), ("overlap", None, 10)]
    assert "which one job may hold at a time, for 30 s together with job 1 of user alice" in (
        overlaps[0].what
    )
    assert found(*records)[0] == []


def test_a_shared_qpu_has_as_many_leases_at_a_time_as_lanes():
    records = [lease_record(0, 100, job=str(job)) for job in range(4)]

    assert len(found(*records, limits={"ibm_fez": 3})[0]) == 1
    assert found(*records, limits={"ibm_fez": 4})[0] == []


@pytest.mark.parametrize(
    ("lanes", "exclusive", "limit"), [(1, None, 1), (5, None, 5), (5, True, 1), (5, False, 5)]
)
def test_the_site_policy_says_how_many_jobs_may_hold_a_qpu(lanes, exclusive, limit):
    policy = QPUPolicy(name="ibm_fez", lanes=lanes, exclusive=exclusive)
    site = SitePolicy(path=Path("site.toml"), qpus={"ibm_fez": policy})

    assert exclusive_limits(site) == {"ibm_fez": limit}
