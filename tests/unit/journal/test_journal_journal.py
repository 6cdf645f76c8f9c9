"""The journal: which step a process runs, and which records are archived and forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from journal_steps import claim, complete, states

from qrmi_workflows.errors import JournalError

DAY = 86400


def age(path: Path, days: float) -> None:
    """Set the modification time of a file or folder to so many days ago."""
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def test_a_step_that_cannot_be_run_again_is_archived_when_it_is_closed(journal):
    step = journal.this_step({})
    complete(step)
    journal.close(step)

    assert states(journal.records()) == []
    assert states(journal.records(archived=True)) == ["completed"]
    assert not step.folder.exists()


def test_a_step_with_a_task_in_doubt_stays_in_the_list(journal):
    step = journal.this_step({})
    complete(step)
    entry, _ = claim(step)
    entry.intend()
    journal.close(step)

    assert states(journal.records()) == ["completed", "intent"]


def test_a_step_whose_task_was_never_sent_is_archived_when_it_is_closed(journal):
    step = journal.this_step({})
    claim(step)
    journal.close(step)

    assert states(journal.records()) == []


@pytest.mark.parametrize("environ", [{"QPU_STEP": "s"}, {"SLURM_JOB_ID": "17"}])
def test_a_step_that_may_be_run_again_stays_open(journal, environ):
    step = journal.this_step(environ)
    complete(step)
    journal.close(step)

    assert states(journal.records()) == ["completed"]


def test_the_runs_of_one_command_in_a_job_are_steps_that_a_requeue_finds(journal):
    environ = {"SLURM_JOB_ID": "17"}
    first, second = (journal.this_step(environ).name for _ in range(2))
    requeued = {**environ, "SLURM_RESTART_COUNT": "1"}

    assert first != second
    assert [journal.this_step(requeued).name for _ in range(2)] == [first, second]


def test_archiving_leaves_what_another_run_holds(journal):
    ended, running = journal.step("s"), journal.step("s")
    complete(ended)
    entry, _ = claim(running)
    journal.close(ended)

    journal.archive("s")
    entry.submitted("task")

    assert states(journal.records()) == ["submitted"]
    assert states(journal.records(archived=True)) == ["completed"]


def test_old_steps_are_forgotten_when_another_is_archived(journal):
    """Archived and open ones, and the markers of jobs' runs; none that is recent or runs."""
    running = journal.step("running")
    claim(running)
    for name in ("old", "recent"):
        step = journal.step(name)
        complete(step)
        journal.close(step)
    complete(journal.step("archived"))
    journal.archive("archived")
    journal.this_step({"SLURM_JOB_ID": "17"})
    (markers,) = journal.folder.glob("jobs/*")
    (day,) = journal.folder.glob("archived/*")
    for folder in (running.folder, journal.step("old").folder, *day.iterdir(), markers):
        age(folder, days=91)
    day.rename(day.with_name("2020-01-01"))
    age(journal.folder / "pruned", days=1.1)

    complete(journal.step("last"))
    journal.archive("last")

    assert {record.step for record in journal.records()} == {"running", "recent"}
    assert {record.step for record in journal.records(archived=True)} == {"last"}
    assert not markers.exists()


def test_the_journal_is_pruned_at_most_once_a_day(journal):
    for name in ("first", "old"):
        complete(journal.step(name))
    journal.archive("first")
    age(journal.step("old").folder, days=1000)

    complete(journal.step("second"))
    journal.archive("second")

    assert states(journal.step("old").records()) == ["completed"]


def test_an_invalid_number_of_days_does_not_fail_a_step(journal, monkeypatch, caplog):
    monkeypatch.setenv("QPU_JOURNAL_DAYS", "soon")
    complete(journal.step("s"))

    journal.archive("s")

    assert "QPU_JOURNAL_DAYS='soon'" in caplog.text
    assert states(journal.records(archived=True)) == ["completed"]


@pytest.mark.parametrize("days", [float("inf"), 1e30, float("nan")])
def test_an_endless_time_forgets_nothing(journal, days):
    claim(journal.step("s"))

    assert journal.prune(older_than_days=days, open_too=True) == 0


def test_a_step_can_be_forgotten_in_any_state(journal):
    claim(journal.step("s"))

    assert journal.forget("s") == 1
    assert states(journal.records()) == []


def test_folders_that_are_not_the_journals_are_left_alone(journal):
    foreign = [journal.folder / "archived" / name for name in ("not-a-date", "abcd-ef-gh")]
    for folder in foreign:
        folder.mkdir(parents=True)

    assert journal.prune(older_than_days=0, open_too=True) == 0
    assert all(folder.exists() for folder in foreign)


def test_a_record_that_cannot_be_read_is_an_error_or_reported_beside_the_others(journal):
    complete(journal.step("a"))
    complete(journal.step("b"))
    (broken,) = journal.step("a").folder.glob("*.json")
    broken.write_text("{")
    errors: list[JournalError] = []

    assert states(journal.records(on_error=errors.append)) == ["completed"]
    assert [str(broken) in str(error) for error in errors] == [True]
    with pytest.raises(JournalError, match="not a task record"):
        list(journal.records())
