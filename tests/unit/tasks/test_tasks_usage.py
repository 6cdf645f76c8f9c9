"""A lease's usage file."""

from __future__ import annotations

from dataclasses import replace

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.state.files import append_line
from qrmi_workflows.tasks import usage
from qrmi_workflows.tasks.usage import (
    TaskTimes,
    TaskUsage,
    note_report,
    note_submission,
    read_reports,
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


def test_lines_with_values_of_another_type_are_skipped(tmp_path):
    path = tmp_path / "l1.usage"
    for line in ('{"reported": "t1"}', '{"reported": "t1", "seconds": "x"}', "[]", "7"):
        append_line(path, line)
    replace(USAGE, started="soon").append_to(path)
    note_report(path, "t1", 2.0)

    assert list(read_usage(path)) == []
    assert read_reports(path) == {"t1": 2.0}


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


def observe(monkeypatch, *states: TaskState) -> TaskUsage:
    """Return the usage of a task that is seen in these states, one second after another."""
    seconds = iter(range(100))
    monkeypatch.setattr(usage.time, "time", lambda: next(seconds))
    times = TaskTimes()
    times.start()
    times.submitted()
    for state in states:
        times.saw(state)
    return times.usage("q", "t1", states[-1])


def test_a_task_runs_since_it_was_last_seen_queued(monkeypatch):
    """It is submitted at 1, and seen queued at 2 and 3; no other state says when it began."""
    queued, running, completed = TaskState.QUEUED, TaskState.RUNNING, TaskState.COMPLETED

    assert observe(monkeypatch, queued, queued, running, completed).running == 3
    assert observe(monkeypatch, queued, completed).running == 2
    assert observe(monkeypatch, completed).running == 1


def test_a_task_may_run_while_the_answer_that_it_is_queued_is_on_its_way(monkeypatch):
    clock = iter([1.0, 2.0, 3.0, 9.0])
    monkeypatch.setattr(usage.time, "time", lambda: next(clock))
    times = TaskTimes()
    times.start()
    times.submitted()
    times.asks()
    times.saw(TaskState.QUEUED)
    times.saw(TaskState.COMPLETED)

    assert times.seconds_on_qpu() == 6.0


def test_a_task_that_was_cancelled_in_the_queue_has_not_run(monkeypatch):
    cancelled = TaskState.CANCELLED

    assert observe(monkeypatch, TaskState.QUEUED, cancelled).running is None
    assert observe(monkeypatch, TaskState.RUNNING, cancelled).running == 1
