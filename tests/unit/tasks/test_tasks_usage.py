"""A lease's usage file."""

from __future__ import annotations

from qrmi_workflows.tasks.usage import (
    TaskUsage,
    note_submission,
    read_submissions,
    read_usage,
)

USAGE = TaskUsage(qpu="q", task_id="t1", started=1.0, ended=2.5, state="Completed")


def test_usage_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "leases" / "l1.usage"
    for _ in range(2):
        USAGE.append_to(path)

    assert list(read_usage(path)) == [USAGE, USAGE]


def test_lines_that_a_crash_has_truncated_are_skipped(tmp_path):
    path = tmp_path / "l1.usage"
    path.write_bytes(b"\xff\xfe not a line\n")
    USAGE.append_to(path)
    with path.open("a") as file:
        file.write('{"qpu": "q", "task')

    assert list(read_usage(path)) == [USAGE]


def test_a_lease_without_tasks_has_no_file(tmp_path):
    assert list(read_usage(tmp_path / "absent")) == []


def test_submissions_are_noted_beside_the_usage(tmp_path):
    """A task that is submitted again, because its session had ended, is one submission."""
    path = tmp_path / "l1.usage"
    for record in ("a.json", "b.json", "a.json"):
        note_submission(path, tmp_path / record)
        USAGE.append_to(path)

    assert read_submissions(path) == [tmp_path / "a.json", tmp_path / "b.json"]
    assert list(read_usage(path)) == [USAGE] * 3
