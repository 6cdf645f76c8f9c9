"""Files of open leases, and the records that leases leave."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease import history, records
from qrmi_workflows.lease.history import records_of_job
from qrmi_workflows.lease.record import LeaseRecord, acquisition_id
from qrmi_workflows.lease.records import OpenLease, open_leases
from qrmi_workflows.schedulers.base import JobTimes
from qrmi_workflows.state.process import JobIdentity, Owner
from qrmi_workflows.state.users import user_name
from qrmi_workflows.tasks.usage import TaskUsage, note_report

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
    for name in ("QPU_LEASE_RECORD", "SLURM_JOB_ID", "SLURM_JOB_ACCOUNT"):
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


def test_a_record_with_a_missing_key_is_refused():
    document = json.loads(RECORD.to_json())

    with pytest.raises(ValueError, match="not a lease record"):
        LeaseRecord.from_json(json.dumps({"owner": document["owner"]}))


def test_a_record_of_a_later_release_can_be_read():
    """The releases that a site has installed at the same time share their folder of records."""
    document = json.loads(RECORD.to_json())

    assert LeaseRecord.from_json(json.dumps(document | {"colour": "red"})) == RECORD


EARLIER = [
    # The first records: before sites' leases, take-overs and process namespaces.
    """{"lease": "l1", "qpu": "ibm_fez", "type": "ibm-quantum-system", "step": "sample",
    "owner": {"host": "n1", "boot": "b", "pid": 7, "started": 8, "job": "17", "restart": 0,
    "cluster": null}, "acquired": "2026-01-01T12:00:00+00:00",
    "released": "2026-01-01T12:00:10+00:00", "queue_wait": 33.0, "acquire": 0.25, "held": 10.0,
    "busy": 7.5, "idle": 2.5, "tasks": 2, "task_ids": ["t1", "t2"], "reaped": false}""",
    # Before estimates of bills.
    """{"lease": "l1", "qpu": "ibm_fez", "type": "ibm-quantum-system", "step": "sample",
    "owner": {"host": "n1", "boot": "b", "pid": 7, "started": 8, "job": "17", "restart": 0,
    "cluster": null, "pids": "pid:[4026531836]"}, "acquired": "2026-01-01T12:00:00+00:00",
    "released": "2026-01-01T12:00:10+00:00", "queue_wait": 33.0, "acquire": 0.25, "held": 10.0,
    "busy": 7.5, "idle": 2.5, "tasks": 2, "task_ids": ["t1", "t2"], "reaped": false, "left": 0,
    "taken_over": 0, "adopted": true}""",
    # Before accounting.
    """{"lease": "l1", "qpu": "ibm_fez", "type": "ibm-quantum-system", "step": "sample",
    "owner": {"host": "n1", "boot": "b", "pid": 7, "started": 8, "job": "17", "restart": 0,
    "cluster": "alpha", "pids": "pid:[4026531836]"}, "acquired": "2026-01-01T12:00:00+00:00",
    "released": "2026-01-01T12:00:10+00:00", "queue_wait": 33.0, "acquire": 0.25, "held": 10.0,
    "busy": 7.5, "idle": 2.5, "tasks": 2, "task_ids": ["t1", "t2"], "reaped": true, "left": 1,
    "taken_over": 2, "adopted": false, "billed": 7.5, "billing_rule": "QPU seconds"}""",
]


@pytest.mark.parametrize("text", EARLIER, ids=["first", "before bills", "before accounting"])
def test_a_record_of_an_earlier_release_can_be_read(text):
    record = LeaseRecord.from_json(text.replace("\n", " "))

    assert (record.owner.job, record.held, record.task_ids) == ("17", 10.0, ["t1", "t2"])
    assert (record.user, record.account, record.shots, record.acquisitions) == ("", None, None, [])
    assert ("bill" in record.describe()) == bool(record.billing_rule)


def test_an_ended_lease_has_an_estimated_bill():
    opened = open_a_lease()
    use(opened, (0, 4))

    record = opened.close()

    assert (record.billed, record.billing_rule) == (4.0, "QPU seconds")


def test_a_record_is_described_in_one_line():
    assert RECORD.describe() == (
        "QPU ibm_fez: job pending 33 s, lease held 10.00 s, QPU busy 7.50 s, idle 2.50 s, "
        "tasks: 2 (t1, t2)"
    )
    outside = replace(RECORD, queue_wait=None, tasks=0, task_ids=[])
    assert outside.describe() == (
        "QPU ibm_fez: lease held 10.00 s, QPU busy 7.50 s, idle 2.50 s, tasks: 0 (none)"
    )
    billed = replace(outside, billed=12.345, billing_rule="QPU seconds")
    assert billed.describe().endswith("(none), estimated bill 12.35 s (QPU seconds)")
    of_site = replace(outside, billing_rule="dedicated session: wall clock")
    assert of_site.describe().endswith("(none), estimated bill (dedicated session: wall clock)")


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


@pytest.mark.parametrize("values", [{"busy": "x"}, {"held": None}, {"task_ids": 5}, {"tasks": -1}])
def test_records_with_values_that_cannot_be_described_are_skipped(values):
    replace(RECORD, lease="l0", **values).save()
    RECORD.save()

    assert records_of_job("17", NOON) == [RECORD]


def test_of_a_large_file_only_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "_TAIL_BYTES", 3 * len(RECORD.to_json()))
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

    record = opened.close(times=JobTimes(created=100.0, started=105.0))

    assert list(open_leases()) == []
    assert (record.lease, record.step, record.queue_wait) == (opened.lease, "sample", 5.0)
    assert "secret-token" not in record.to_json()
    assert not record.reaped


def test_a_record_says_who_used_what_and_for_which_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alpha")
    monkeypatch.setenv("SLURM_JOB_ACCOUNT", "chemistry")
    opened = open_a_lease()
    again = opened.renew("second-token")
    sampled = TaskUsage(
        qpu="ibm_fez", task_id="a", started=0, ended=1, state="Completed", running=0.5, shots=100
    )
    estimated = replace(sampled, task_id="b", shots=None)
    failed = replace(sampled, task_id="c", state="Failed", shots=50)
    never_ran = replace(failed, task_id="d", state="Cancelled", running=None, shots=None)
    for task in (sampled, estimated, failed, never_ran, sampled):
        task.append_to(again.usage_path)
    for seconds in (0.25, 0.5):  # asked for again: the text had been cut short
        note_report(again.usage_path, "a", seconds)

    record = again.close(times=JobTimes(created=0.0, started=60.0, project="physics"))

    assert (record.user, record.account, record.project) == (user_name(), "chemistry", "physics")
    assert (record.owner.job, record.owner.cluster) == ("17", "alpha")
    assert (record.job_created, record.job_started) == (
        "1970-01-01T00:00:00+00:00",
        "1970-01-01T00:01:00+00:00",
    )
    assert (record.tasks, record.shots, record.reported) == (4, 150, 0.5)
    assert record.without_result == ["c"]
    assert record.acquisitions == [acquisition_id("secret-token"), acquisition_id("second-token")]
    assert LeaseRecord.from_json(record.to_json()) == record


def test_an_acquisition_is_told_from_others_without_its_token():
    """`printf %s TOKEN | sha256sum` shows whoever knows the token which lease it is of."""
    assert acquisition_id("secret-token") == hashlib.sha256(b"secret-token").hexdigest()[:16]
    assert acquisition_id("secret-token") != acquisition_id("second-token")


def test_the_token_of_a_lease_of_the_site_is_not_written():
    opened = OpenLease.create(
        qpu="q", type="t", step="", acquire=0.0, config=None, token="site-token", adopted=True
    )

    assert "site-token" not in opened.path.read_text()
    assert opened.acquisitions == (acquisition_id("site-token"),)


def test_the_file_of_a_lease_that_an_earlier_release_has_opened_can_be_read():
    opened = open_a_lease()
    document = json.loads(opened.path.read_text())
    for name in ("user", "account", "acquisitions"):
        del document[name]
    opened.path.write_text(json.dumps(document))

    assert OpenLease.load(opened.path).close().user == ""


def test_the_file_of_a_lease_that_a_later_release_has_opened_can_be_read():
    """Its lease is still to be released after a downgrade."""
    opened = open_a_lease()
    document = json.loads(opened.path.read_text()) | {"colour": "blue"}
    opened.path.write_text(json.dumps(document))

    assert OpenLease.load(opened.path).close().lease == opened.lease


@pytest.mark.parametrize("values", [{"acquired": "noon"}, {"acquired": 1e30}, {"owner": []}])
def test_a_file_with_values_that_are_none_is_no_lease(values):
    opened = open_a_lease()
    opened.path.write_text(json.dumps(json.loads(opened.path.read_text()) | values))

    with pytest.raises(ConfigError, match=r"not the file of an open lease.*remove the file"):
        OpenLease.load(opened.path)


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
