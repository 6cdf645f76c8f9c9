"""The lease records of a job, found among those of others."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from snakemake_executor_plugin_slurm_qpu.rules.usage import render_page, rows_of
from snakemake_executor_plugin_slurm_qpu.telemetry import (
    append_records,
    describe_record,
    read_records,
)

NOW = datetime(2026, 11, 24, 4, 30, tzinfo=UTC)


def record(job="7", acquired=NOW, **changes):
    return {
        "qpu": "ibm_fez",
        "owner": {"host": "n1", "pid": 3, "started": 1.0, "job": job},
        "acquired": acquired.isoformat(),
        "queue_wait": 12.0,
        "held": 3.5,
        "busy": 1.25,
        "idle": 2.25,
        "tasks": 2,
        "task_ids": ["a", "b"],
        **changes,
    }


@pytest.fixture
def environ(tmp_path):
    """A state folder with the records of two nodes."""
    leases = tmp_path / "leases"
    append_records(leases / "2026-11-n1.jsonl", [record("6"), record(), record("8")])
    append_records(leases / "2026-11-n2.jsonl", [record(qpu="FRESNEL"), record("8")])
    with (leases / "2026-11-n2.jsonl").open("a") as file:
        file.write('{"cut\n[]\n{"owner": null}\n')
    return {"QPU_STATE": str(tmp_path)}


def test_the_records_of_a_job_are_found_on_all_nodes(environ):
    assert [r["qpu"] for r in read_records("7", NOW, environ)] == ["ibm_fez", "FRESNEL"]


def test_those_of_an_older_job_with_the_same_id_are_not(environ):
    assert read_records("7", NOW + timedelta(seconds=59), environ)
    assert not read_records("7", NOW + timedelta(seconds=61), environ)


def test_a_file_that_the_user_names_is_read_instead(environ, tmp_path):
    append_records(tmp_path / "mine", [record(qpu="mine")])

    named = environ | {"QPU_LEASE_RECORD": str(tmp_path / "mine")}

    assert [r["qpu"] for r in read_records("7", NOW, named)] == ["mine"]


def test_of_a_long_file_only_the_end_is_read(tmp_path):
    append_records(tmp_path / "leases" / "x.jsonl", [record(str(i)) for i in range(5000)])
    environ = {"QPU_STATE": str(tmp_path)}

    assert read_records("4999", NOW, environ)
    assert not read_records("0", NOW, environ)


def test_a_lease_is_one_line_of_the_log():
    assert describe_record(record()) == (
        "QPU ibm_fez: waited 12 s in the queue, lease held 3.50 s, QPU busy 1.25 s, idle 2.25 s, "
        "tasks: 2 (a, b)"
    )
    assert describe_record(record(queue_wait=None, tasks=0, task_ids=[])).endswith(
        "QPU ibm_fez: lease held 3.50 s, QPU busy 1.25 s, idle 2.25 s, tasks: 0 (none)"
    )


def test_the_page_of_the_report_shows_what_the_records_hold_and_runs_nothing():
    rows = rows_of([json.dumps(record() | {"rule": "<script>alert()</script>"})])

    page = render_page(rows)

    assert rows == [
        ["<script>alert()</script>", "ibm_fez", "7", NOW.isoformat(), 12.0, 3.5, 1.25, 2.25, 2]
    ]
    assert "<script>" not in page
    assert "<td>3.5</td>" in page
