"""Files of open leases, and the records that leases leave."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease import records
from qrmi_workflows.lease.records import LeaseRecord, OpenLease, open_leases, records_of_job
from qrmi_workflows.state.process import JobIdentity, Owner
from qrmi_workflows.tasks.usage import TaskUsage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RECORD = LeaseRecord(
    lease="l1",
    qpu="ibm_fez",
    type="ibm-quantum-system",
    step="sample",
    owner=Owner.this_process(JobIdentity(id="17", cluster="alpha")),
    acquired=NOON.isoformat(),
    released=(NOON + timedelta(seconds=10)).isoformat(),
    queue_wait=33.0,
    acquire=0.25,
    held=10.0,
    busy=7.5,
    idle=2.5,
    tasks=2,
    task_ids=["t1", "t2"],
)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Give each test its own state folder, and run it outside of jobs."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    for name in ("QPU_LEASE_RECORD", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def open_a_lease() -> OpenLease:
    return OpenLease.create(
        qpu="ibm_fez",
        type="ibm-quantum-system",
        step="sample",
        acquire=0.25,
        config=Path("qrmi_config.json"),
        token="secret-token",
    )


def use(opened: OpenLease, *spans: tuple[float, float]) -> None:
    """Record tasks that ran in these spans, in seconds since the lease was acquired."""
    for number, (start, end) in enumerate(spans):
        TaskUsage(
            qpu="ibm_fez",
            task_id=f"t{number}",
            started=opened.acquired + start,
            ended=opened.acquired + end,
            state="Completed",
        ).append_to(opened.usage_path)


# Records


def test_a_record_survives_json():
    assert LeaseRecord.from_json(RECORD.to_json()) == RECORD


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "7", "{}", '{"owner": {}}', "[" * 100_000, RECORD.to_json()[:-9]],
    ids=lambda line: line[:8],
)
def test_a_line_that_is_not_a_record_is_refused(line):
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        LeaseRecord.from_json(line)


def test_a_record_with_an_unknown_or_a_missing_key_is_refused():
    document = json.loads(RECORD.to_json())

    for changed in (document | {"colour": "red"}, {"owner": document["owner"]}):
        with pytest.raises(ValueError, match="not a lease record"):
            LeaseRecord.from_json(json.dumps(changed))


def test_a_record_is_described_in_one_line():
    assert RECORD.describe() == (
        "QPU ibm_fez: job pending 33 s, lease held 10.00 s, QPU busy 7.50 s, idle 2.50 s, "
        "tasks: 2 (t1, t2)"
    )
    outside = replace(RECORD, queue_wait=None, tasks=0, task_ids=[])
    assert outside.describe() == (
        "QPU ibm_fez: lease held 10.00 s, QPU busy 7.50 s, idle 2.50 s, tasks: 0 (none)"
    )


def test_records_are_kept_by_month_and_host(tmp_path):
    RECORD.save()
    RECORD.save()

    file = tmp_path / "state" / "leases" / f"2026-01-{RECORD.owner.host}.jsonl"
    assert [LeaseRecord.from_json(line) for line in file.read_text().splitlines()] == [RECORD] * 2


def test_a_site_may_collect_all_records_in_one_file(tmp_path):
    environ = {"QPU_LEASE_RECORD": str(tmp_path / "records")}

    RECORD.save(environ)

    assert LeaseRecord.from_json((tmp_path / "records").read_text()) == RECORD
    assert records_of_job("17", NOON, environ) == [RECORD]


def test_the_records_of_a_job_are_found_in_the_files_of_all_hosts():
    elsewhere = replace(RECORD, lease="l2", owner=replace(RECORD.owner, host="n2"))
    other_job = replace(RECORD, owner=replace(RECORD.owner, job="18"))
    no_job = replace(RECORD, owner=replace(RECORD.owner, job=None))
    for record in (RECORD, elsewhere, other_job, no_job):
        record.save()

    found = records_of_job("17", NOON - timedelta(hours=1))

    assert {record.lease for record in found} == {"l1", "l2"}
    assert records_of_job("19", NOON) == []


def test_records_of_an_earlier_job_with_the_same_id_are_left_out():
    """Job ids start from 1 again when a cluster is set up afresh."""
    old = replace(RECORD, lease="old", acquired=(NOON - timedelta(days=400)).isoformat())
    old.save()
    RECORD.save()

    assert records_of_job("17", NOON - timedelta(hours=1)) == [RECORD]


def test_a_nodes_clock_may_be_half_a_minute_behind():
    RECORD.save()

    assert records_of_job("17", NOON + timedelta(seconds=30)) == [RECORD]
    assert records_of_job("17", NOON + timedelta(minutes=5)) == []


def test_lines_that_cannot_be_read_are_skipped(tmp_path):
    file = tmp_path / "records"
    text = RECORD.to_json()
    file.write_bytes(b"\xff\xfe\n" + text[:40].encode() + f"\n\n{text}\n{text[:-1]}".encode())

    environ = {"QPU_LEASE_RECORD": str(file)}
    assert records_of_job("17", NOON, environ) == [RECORD]
    assert records_of_job("17", NOON, {"QPU_LEASE_RECORD": "/absent"}) == []


@pytest.mark.parametrize("acquired", [None, "yesterday", "2026-01-01T12:00:00"])
def test_records_without_a_valid_time_are_skipped(acquired):
    replace(RECORD, lease="l0", acquired=acquired).save()
    RECORD.save()

    assert records_of_job("17", NOON) == [RECORD]


def test_of_a_large_file_only_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_TAIL_BYTES", 3 * len(RECORD.to_json()))
    environ = {"QPU_LEASE_RECORD": str(tmp_path / "records")}
    for number in range(10):
        replace(RECORD, lease=f"l{number}").save(environ)

    assert [record.lease for record in records_of_job("17", NOON, environ)] == ["l8", "l9"]


# Open leases


def test_only_its_user_can_read_the_file_of_an_open_lease():
    opened = open_a_lease()

    assert stat.S_IMODE(opened.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(opened.path.parent.stat().st_mode) == 0o700
    assert list(open_leases()) == [opened]
    assert "secret-token" not in repr(opened)


def test_a_closed_lease_leaves_a_record_without_its_token():
    opened = open_a_lease()

    record = opened.close(queue_wait=5.0)

    assert list(open_leases()) == []
    assert (record.lease, record.step, record.queue_wait) == (opened.lease, "sample", 5.0)
    assert "secret-token" not in record.to_json()
    assert not record.reaped


def test_overlapping_tasks_are_counted_once(monkeypatch):
    opened = open_a_lease()
    use(opened, (0, 2), (1, 3), (1.5, 2), (5, 6))
    monkeypatch.setattr(records.time, "time", lambda: opened.acquired + 10)

    record = opened.close()

    assert (record.held, record.busy, record.idle) == (10, 4, 6)
    assert record.task_ids == ["t0", "t1", "t2", "t3"]
    assert not opened.usage_path.exists()


def test_a_clock_that_was_set_back_gives_no_negative_times(monkeypatch):
    opened = open_a_lease()
    use(opened, (0, 2))
    monkeypatch.setattr(records.time, "time", lambda: opened.acquired - 3600)

    record = opened.close()

    assert (record.held, record.busy, record.idle) == (0, 0, 0)


def test_a_renewed_lease_keeps_its_id_and_its_usage():
    opened = open_a_lease()

    again = opened.renew("second-token")

    assert list(open_leases()) == [again]
    assert (again.token, again.lease) == ("second-token", opened.lease)
    assert again.usage_path == opened.usage_path


def test_without_a_writable_state_folder_a_lease_works_but_is_not_recorded(monkeypatch, caplog):
    monkeypatch.setenv("QPU_STATE", "/proc/absent")

    record = open_a_lease().close()

    assert record.qpu == "ibm_fez"
    assert "a crash would leave it open" in caplog.text
    assert "the lease record was not written" in caplog.text


def test_files_that_are_not_leases_are_reported_and_skipped(caplog):
    opened = open_a_lease()
    (opened.path.parent / "0.json").mkdir()
    (opened.path.parent / "1.json").write_text("{}")

    assert list(open_leases()) == [opened]
    assert "0.json: cannot be read" in caplog.text
    assert "1.json: not the file of an open lease" in caplog.text


def test_a_lease_that_has_ended_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError):
        OpenLease.load(tmp_path / "absent.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not the file of an open lease"):
        OpenLease.load(tmp_path / "deep.json")


def test_the_owner_of_a_lease_is_the_process_that_opened_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    opened = open_a_lease()

    assert opened.owner.job == "17"
    assert opened.owner.is_alive()
    assert opened.acquired <= time.time()
