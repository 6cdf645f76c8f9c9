"""The usage of a job's leases: found among other records, logged, and kept."""

import fcntl
import json
from datetime import UTC, datetime, timedelta

import pytest

from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.state.files import append_line
from qrmi_workflows.state.process import Owner
from snakemake_executor_plugin_slurm_qpu.rules.usage import render_page, rows_of
from snakemake_executor_plugin_slurm_qpu.telemetry import (
    LEASE_EVENT,
    WORKFLOW_RECORDS,
    log_leases,
)

NOW = datetime(2026, 11, 24, 4, 30, tzinfo=UTC)


def record(job="7", **changes) -> LeaseRecord:
    owner = Owner(host="n1", boot="b", pid=3, started=1, job=job)
    values = {
        "lease": "0f",
        "qpu": "ibm_fez",
        "type": "ibm-quantum-compute-service",
        "step": "rule a",
        "owner": owner,
        "acquired": NOW.isoformat(),
        "released": NOW.isoformat(),
        "queue_wait": 12.0,
        "acquire": 0.1,
        "held": 3.5,
        "busy": 1.25,
        "idle": 2.25,
        "tasks": 2,
        "task_ids": ["a", "b"],
    }
    return LeaseRecord(**(values | changes))


def write(path, *records):
    for each in records:
        append_line(path, each.to_json())


class Logger:
    """Keeps what is logged."""

    def __init__(self):
        self.lines, self.leases, self.warnings = [], [], []

    def info(self, message, extra):
        assert extra["event"] == LEASE_EVENT == "qpu_lease"
        self.lines.append(message)
        self.leases.append(extra["lease"])

    def warning(self, message):
        self.warnings.append(message)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state folder with the records of two nodes, and a workflow's folder to work in."""
    state = tmp_path / "state"
    monkeypatch.setenv("QPU_STATE", str(state))
    write(state / "leases" / "2026-11-n1.jsonl", record("6"), record(), record("8"))
    write(state / "leases" / "2026-11-n2.jsonl", record(qpu="FRESNEL"), record("8"))
    with (state / "leases" / "2026-11-n2.jsonl").open("a") as file:
        file.write('{"cut\n[]\n{"owner": null}\n')
    (tmp_path / "workflow").mkdir()
    monkeypatch.chdir(tmp_path / "workflow")
    return state


def logged(job_id="7", submitted=NOW) -> Logger:
    logger = Logger()
    log_leases(logger, "quantum", job_id, submitted)
    return logger


def test_the_records_of_a_job_are_found_on_all_nodes(state):
    assert [lease["qpu"] for lease in logged().leases] == ["ibm_fez", "FRESNEL"]


def test_those_of_an_older_job_with_the_same_id_are_not(state):
    assert logged(submitted=NOW + timedelta(seconds=59)).leases
    assert not logged(submitted=NOW + timedelta(seconds=61)).leases


def test_a_file_that_the_user_names_is_read_instead(state, tmp_path, monkeypatch):
    write(tmp_path / "mine", record(qpu="mine"))
    monkeypatch.setenv("QPU_LEASE_RECORD", str(tmp_path / "mine"))

    assert [lease["qpu"] for lease in logged().leases] == ["mine"]


def test_of_a_long_file_only_the_end_is_read(state):
    lines = "".join(record(str(i)).to_json() + "\n" for i in range(100, 5000))
    (state / "leases" / "x.jsonl").write_text(lines)

    assert logged("4999").leases
    assert not logged("100").leases


def test_a_lease_is_one_line_of_the_log_and_one_event(state):
    logger = logged()

    assert logger.lines[0] == (
        "QPU ibm_fez: job pending 12 s, lease held 3.50 s, QPU busy 1.25 s, idle 2.25 s, "
        "tasks: 2 (a, b)"
    )
    assert logger.leases[0]["rule"] == "quantum"
    assert logger.leases[0]["owner"]["job"] == "7"
    outside = record(queue_wait=None, tasks=0, task_ids=[]).describe()
    assert outside == (
        "QPU ibm_fez: lease held 3.50 s, QPU busy 1.25 s, idle 2.25 s, tasks: 0 (none)"
    )


def test_the_workflow_keeps_its_records_with_their_rules(state):
    leases = logged().leases + logged("8").leases

    kept = [json.loads(line) for line in WORKFLOW_RECORDS.read_text().splitlines()]
    assert kept == leases
    assert len(kept) == 4


def test_the_workflows_file_system_needs_no_locks(state, monkeypatch):
    """Lustre has none unless it is mounted with `-o flock`."""

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)

    logger = logged()

    assert not logger.warnings
    assert len(WORKFLOW_RECORDS.read_text().splitlines()) == 2


def test_records_that_cannot_be_kept_are_logged_all_the_same(state):
    WORKFLOW_RECORDS.mkdir(parents=True)

    logger = logged()

    assert len(logger.lines) == 2
    assert all("the report will not include job 7" in warning for warning in logger.warnings)


def test_the_page_of_the_report_shows_what_the_records_hold_and_runs_nothing(state):
    logger = Logger()
    log_leases(logger, "<script>alert()</script>", "6", NOW)
    rows = rows_of(WORKFLOW_RECORDS.read_text().splitlines())

    page = render_page(rows)

    assert rows == [
        ["<script>alert()</script>", "ibm_fez", "6", NOW.isoformat(), 12.0, 3.5, 1.25, 2.25, 2]
    ]
    assert "<script>" not in page
    assert "<td>3.5</td>" in page
