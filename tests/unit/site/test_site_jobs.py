"""Lease records joined with the scheduler's accounting."""

from __future__ import annotations

from dataclasses import replace

from usage_records import counted, lease_record

from qrmi_workflows.schedulers.base import JobAccount
from qrmi_workflows.site.accounting import Summary
from qrmi_workflows.site.jobs import BY, find_anomalies, join

ACCOUNT = JobAccount(
    id="7",
    cluster="alpha",
    user="alice",
    account="chemistry",
    created=0.0,
    started=10.0,
    ended=130.0,
    state="COMPLETED",
    elapsed=120.0,
    qpus={"ibm_fez": 2},
)


def joined(records, accounts):
    summary = Summary(by=BY)
    summary.add_all(map(counted, records))
    return join(summary.groups(), accounts)


def test_a_job_has_the_schedulers_times_and_the_usage_of_its_leases():
    (use,) = joined([lease_record(0, 40), lease_record(50, 40, busy=10)], [ACCOUNT])

    assert use.known == ACCOUNT
    assert use.qpu_seconds == 240
    assert use.as_dict() == {
        "cluster": "alpha",
        "job": "7",
        "qpu": "ibm_fez",
        "user": "alice",
        "account": "chemistry",
        "state": "COMPLETED",
        "created": "1970-01-01T00:00:00+00:00",
        "started": "1970-01-01T00:00:10+00:00",
        "ended": "1970-01-01T00:02:10+00:00",
        "elapsed_seconds": 120.0,
        "qpu_seconds": 240.0,
        "leases": 2,
        "tasks": 2,
        "shots": 0,
        "queue_seconds": 5.0,
        "held_seconds": 80.0,
        "busy_seconds": 50.0,
        "idle_seconds": 30.0,
        "billed_seconds": 0.0,
        "reported_seconds": 0.0,
    }
    assert find_anomalies([use]) == []


def test_jobs_and_leases_without_a_counterpart_are_kept():
    running = replace(ACCOUNT, id="12", ended=None)
    uses = joined([lease_record(job="100"), lease_record(job=None)], [ACCOUNT, running])

    assert [(use.job, use.known is not None, use.usage.leases) for use in uses] == [
        ("", False, 1),
        ("7", True, 0),
        ("12", True, 0),
        ("100", False, 1),
    ]


def test_a_job_of_another_user_or_cluster_with_the_same_id_is_not_taken_for_it():
    for other in (replace(ACCOUNT, user="bob"), replace(ACCOUNT, cluster="beta")):
        uses = joined([lease_record()], [other])

        assert [(use.known is None, use.usage.leases) for use in uses if use.usage.leases] == [
            (True, 1)
        ]
        assert len(uses) == 2


def test_a_job_that_held_a_qpu_without_a_lease_is_named():
    (anomaly,) = find_anomalies(joined([], [ACCOUNT, replace(ACCOUNT, id="8", ended=None)]))

    assert (anomaly.kind, anomaly.job, anomaly.seconds) == ("no-lease", "7", 120)
    assert "it held the QPU for 120 s and has left no lease record" in str(anomaly)


def test_a_record_that_names_another_account_than_the_scheduler_is_named():
    """Users write their own records, so these do not decide who is charged."""
    (anomaly,) = find_anomalies(joined([lease_record(account="physics")], [ACCOUNT]))

    assert (anomaly.kind, anomaly.seconds) == ("account", 100)
    assert "names the account 'physics', the scheduler 'chemistry'" in anomaly.what
    assert find_anomalies(joined([lease_record(account=None)], [ACCOUNT])) == []
