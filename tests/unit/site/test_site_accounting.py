"""Usage: lease records summed up, checked against an independent computation."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone

import pytest
from usage_records import NOON, counted, lease_record

from qrmi_workflows.errors import RequestError
from qrmi_workflows.site.accounting import KEYS, Period, Summary


def random_records(chance: random.Random, count: int):
    """Return records of several users, QPUs, accounts and days; some jobs have several leases."""
    for number in range(count):
        held = round(chance.uniform(0, 500), 3)
        yield lease_record(
            chance.uniform(0, 5 * 86400),
            held,
            job=chance.choice([None, *map(str, range(count // 3 + 1))]),
            lease=str(number),
            busy=round(held * chance.random(), 3),
            qpu=chance.choice(["ibm_fez", "FRESNEL"]),
            type=chance.choice(["a", "b"]),
            user=chance.choice(["alice", "bob"]),
            account=chance.choice(["chemistry", "physics", None]),
            queue_wait=chance.choice([None, 3.5, 60.0]),
            tasks=chance.randrange(4),
            shots=chance.choice([None, 100, 4096]),
            billed=chance.choice([None, 2.5]),
            reported=chance.choice([None, 1.25]),
        )


def summed_up(records, keys) -> dict[tuple[str, ...], dict[str, float]]:
    """Sum records up in another way: from their JSON, one column after the other."""
    documents = [json.loads(record.to_json()) for record in records]
    groups = defaultdict(list)
    seen = set()
    for each in documents:
        owner = each["owner"]
        job = (each["user"], owner["job"])
        is_first = owner["job"] is None or (each["queue_wait"] and job not in seen)
        if owner["job"] is not None and each["queue_wait"]:
            seen.add(job)
        each["queue"] = each["queue_wait"] if is_first else 0
        each |= {"day": each["released"][:10], "month": each["released"][:7], "job": owner["job"]}
        groups[tuple(each[key] or "" for key in keys)].append(each)
    names = ("tasks", "shots", "queue", "held", "busy", "idle", "billed", "reported")
    return {
        key: {"leases": len(group)} | {n: sum(each[n] or 0 for each in group) for n in names}
        for key, group in groups.items()
    }


@pytest.mark.parametrize("seed", range(8))
def test_usage_is_the_sum_of_the_records(seed):
    chance = random.Random(seed)
    records = list(random_records(chance, 60))
    by = chance.sample([key for key in KEYS if key != "project"], chance.randrange(4))
    summary = Summary(by=by, zone=UTC)

    summary.add_all(map(counted, records))

    expected = summed_up(records, by)
    assert [group.keys for group in summary.groups()] == sorted(expected)
    for group in summary.groups():
        plain = group.as_dict(by)
        for name, value in expected[group.keys].items():
            found = plain[name] if name in plain else plain[f"{name}_seconds"]
            assert found == pytest.approx(value, abs=1e-3), (name, group.keys)
    (total,) = summed_up(records, ()).values()
    assert summary.total.held == pytest.approx(total["held"])
    assert summary.total.leases == 60


def test_a_job_is_pending_once_however_many_leases_it_has():
    summary = Summary()

    summary.add_all(map(counted, [lease_record(), lease_record(200), lease_record(job="8")]))

    assert summary.total.queue == 10.0


def test_a_lease_of_the_site_counts_once_however_many_processes_used_it():
    """Each process that adopts it has a record of its own use, with its own tasks."""
    shared = {"adopted": True, "acquisitions": ["a1"], "shots": 10}
    records = [
        lease_record(0, 10, busy=4, **shared),
        lease_record(5, 10, busy=3, **shared),
        lease_record(30, 10, busy=10, **shared),
        lease_record(0, 10, adopted=True, acquisitions=["a2"]),
    ]
    summary = Summary()

    summary.add_all(map(counted, records))

    assert (summary.total.leases, summary.total.tasks, summary.total.shots) == (2, 4, 30)
    assert (summary.total.held, summary.total.busy, summary.total.idle) == (35, 27, 8)


def test_a_lease_counts_in_the_period_in_which_it_was_released():
    """So the usage of a period that is over does not change any more."""
    records = [lease_record(start, 60, job=str(start)) for start in (-60, 0, 60)]
    summary = Summary(period=Period(since=NOON, until=NOON + timedelta(seconds=60)))

    summary.add_all(map(counted, records))

    assert summary.total.leases == 1


def test_days_are_those_of_the_hosts_time_zone():
    summary = Summary(by=["day", "month"], zone=timezone(timedelta(hours=13)))

    summary.add_all([counted(lease_record())])

    assert summary.groups()[0].keys == ("2026-11-27", "2026-11")


def test_a_month_is_left_out_only_if_no_clock_could_have_meant_the_period():
    since = datetime(2026, 3, 1, tzinfo=UTC)
    period = Period(since=since, until=datetime(2026, 5, 31, 23, 30, tzinfo=UTC))

    months = [f"2026-{number:02}" for number in range(1, 13)]
    assert [name for name in months if period.has_month(name)] == [
        "2026-02",
        "2026-03",
        "2026-04",
        "2026-05",
        "2026-06",
    ]
    assert period.has_month("records")
    assert all(map(Period().has_month, months))


def test_an_unknown_key_is_refused():
    with pytest.raises(RequestError, match="usage by 'colour': must be one or more of: user, acc"):
        Summary(by=["colour"])
