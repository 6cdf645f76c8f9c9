"""`qpu usage`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from click.testing import CliRunner

from qrmi_workflows.cli.tables import format_duration
from qrmi_workflows.cli.usage import parse_time, usage
from qrmi_workflows.errors import ConfigError, RequestError
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.state.process import Owner

RECORD = LeaseRecord(
    lease="l1",
    qpu="ibm_fez",
    type="ibm-quantum-system",
    step="sample",
    owner=Owner(host="n1", boot="b", pid=1, started=1, job="17"),
    acquired="2026-11-26T12:00:00+00:00",
    released="2026-11-26T13:30:00+00:00",
    queue_wait=33.0,
    acquire=0.25,
    held=5400.0,
    busy=540.0,
    idle=4860.0,
    tasks=2,
    task_ids=["t1", "t2"],
    billed=541.5,
    user="alice",
    account="chemistry",
    shots=2000,
)
NOW = datetime(2026, 11, 26, 15, 30, 10).astimezone()


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """A user who has two records, and a line that is none."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.delenv("QPU_LEASE_RECORD", raising=False)
    RECORD.save()
    replace(RECORD, lease="l2", qpu="FRESNEL", held=1.5, busy=1.5, idle=0.0, billed=None).save()
    with (tmp_path / "state" / "leases" / "2026-11-n1.jsonl").open("a") as file:
        file.write("{}\n")


def run(*argv: str):
    return CliRunner().invoke(usage, argv, catch_exceptions=False)


def test_the_table_has_durations_as_slurm_writes_them():
    done = run("--by", "account,qpu")

    rows = [" ".join(line.split()) for line in done.stdout.splitlines()[:4]]
    assert rows == [
        "ACCOUNT QPU LEASES TASKS SHOTS QUEUE HELD BUSY IDLE BUSY% BILLED REPORTED",
        "chemistry FRESNEL 1 2 2000 00:00:00.0 00:00:01.5 00:00:01.5 00:00:00.0 100% 00:00:00.0 -",
        "chemistry ibm_fez 1 2 2000 00:00:33.0 01:30:00 00:09:00 01:21:00 10% 00:09:02 -",
        "total 2 4 4000 00:00:33.0 01:30:02 00:09:02 01:21:00 10% 00:09:02 -",
    ]


def test_anomalies_are_named_with_the_job_and_what_to_do():
    lines = run().stdout.splitlines()

    assert "1 anomaly:" in lines
    assert lines[-1].startswith("  idle: job 17, QPU ibm_fez, user alice: the QPU was idle 4860 s")


def test_a_broken_line_is_counted_and_named():
    done = run()

    assert done.exit_code == 0
    assert "2026-11-n1.jsonl:3: not a lease record: KeyError('owner')" in done.stderr
    assert "1 line or file does not count" in done.stderr


def test_csv_has_plain_seconds():
    rows = list(csv.DictReader(io.StringIO(run("--csv", "--by", "qpu").stdout)))

    assert [(row["qpu"], row["held_seconds"]) for row in rows] == [
        ("FRESNEL", "1.5"),
        ("ibm_fez", "5400.0"),
    ]


def test_json_has_everything():
    document = json.loads(run("--json", "--since", "2026-11-01", "--by", "user").stdout)

    assert document["by"] == ["user"]
    (group,) = document["groups"]
    assert group["user"] == "alice"
    assert document["total"]["idle_seconds"] == 4860.0
    assert document["anomalies"][0]["kind"] == "idle"
    assert document["problems"][0]["where"].endswith(".jsonl:3")
    assert document["since"].startswith("2026-11-01T00:00:00")


@pytest.fixture
def accounts(tmp_path, monkeypatch):
    """Slurm's accounting knows the job, and another one that left no lease."""
    (tmp_path / "site.toml").write_text('[qpus.ibm_fez]\nlicence = "qpu_ibm_fez"\n')
    script = tmp_path / "sacct"
    rows = [
        f"{job}|alpha|{user}|chemistry|2026-11-26T11:59:00|2026-11-26T12:00:00"
        "|2026-11-26T13:31:00|COMPLETED|5460|license/qpu_ibm_fez=1"
        for job, user in ((17, "alice"), (18, "bob"))
    ]
    script.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return script


def test_jobs_are_joined_with_the_accounting(accounts):
    lines = [" ".join(line.split()) for line in run("--jobs").stdout.splitlines()]

    assert lines[0].startswith("JOB USER ACCOUNT QPU STATE CREATED STARTED ENDED ELAPSED QPU-TIME")
    assert (
        "17 alice chemistry ibm_fez COMPLETED 2026-11-26T11:59:00 2026-11-26T12:00:00 "
        "2026-11-26T13:31:00 01:31:00 01:31:00 1 2 01:30:00 00:09:00 01:21:00"
    ) in lines
    assert any(
        line.startswith("no-lease: job 18, QPU ibm_fez, user bob: it held") for line in lines
    )


def test_jobs_as_csv_and_json_have_the_same_rows(accounts):
    rows = list(csv.DictReader(io.StringIO(run("--jobs", "--csv").stdout)))
    groups = json.loads(run("--jobs", "--json").stdout)["groups"]

    assert [row["job"] for row in rows] == [group["job"] for group in groups] == ["17", "17", "18"]
    assert rows[0].keys() == groups[0].keys()
    assert rows[-1]["qpu_seconds"] == "5460.0"


def test_without_accounting_jobs_have_what_their_leases_say(accounts):
    accounts.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")

    done = run("--jobs")

    assert "accounting storage is disabled" in done.stderr
    assert "01:30:00" in done.stdout


def test_only_leases_of_the_period_count():
    assert "ibm_fez" in run("--since", "2026-11-26", "--until", "2026-11-28").stdout
    assert "ibm_fez" not in run("--since", "2026-11-28").stdout
    assert "ibm_fez" not in run("--until", "2026-11-25").stdout


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["--by", "colour"], RequestError, "usage by 'colour'"),
        (["--since", "soon"], RequestError, "time 'soon': must be like 2026-11-01"),
        (["--csv", "--json"], RequestError, "--csv and --json: must be one of them"),
        (["--jobs", "--by", "day"], RequestError, "--by and --jobs: must be one of them"),
        (["--all"], ConfigError, "does not collect the records of its users"),
    ],
)
def test_a_mistake_is_named(argv, error, message):
    with pytest.raises(error, match=message):
        run(*argv)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00:00.0"),
        (0.04, "00:00:00.0"),
        (59.94, "00:00:59.9"),
        (59.96, "00:01:00"),
        (3599.6, "01:00:00"),
        (86399, "23:59:59"),
        (86400, "1-00:00:00"),
        (100 * 86400 + 3661, "100-01:01:01"),
    ],
)
def test_durations_are_those_of_sacct(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (None, None),
        ("now", NOW),
        ("today", NOW.replace(hour=0, minute=0, second=0)),
        ("now-7days", NOW - timedelta(days=7)),
        ("now-1hour", NOW - timedelta(hours=1)),
        ("2026-11-26T15:30:10", NOW),
        ("2026-11-01", datetime(2026, 11, 1).astimezone()),
        ("2026-11-01T00:00:00+00:00", datetime.fromisoformat("2026-11-01T00:00:00+00:00")),
    ],
)
def test_times_are_those_that_sacct_takes(text, time):
    assert parse_time(text, NOW) == time


def test_a_time_before_all_times_is_refused():
    with pytest.raises(RequestError, match="must be like"):
        parse_time("now-999999weeks", NOW)
