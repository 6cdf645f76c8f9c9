"""The journal: what a run of a step finds, what is put aside, and what is forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qrmi_workflows.journal import step as step_module
from qrmi_workflows.config.variables import journal_days
from qrmi_workflows.errors import ConfigError, JournalError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.step import Step
from qrmi_workflows.results import QuantumResult

DIGEST = "d" * 64
DAY = 86400


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def claim(step: Step, digest: str = DIGEST):
    return step.claim(digest, qpu="q", program="sampler")


def complete(step: Step, digest: str = DIGEST) -> None:
    entry, _ = claim(step, digest)
    entry.submitted("task")
    result = QuantumResult(
        qpu="q", type="t", program="sampler", task_id="task", payload_digest=digest,
        submitted="", completed="", data=[], vendor_result="{}",
    )  # fmt: skip
    entry.completed(result)


def states(records) -> list[str]:
    return [str(record.state) for record in records]


def age(path: Path, days: float) -> None:
    """Make a file or a folder look as if it had not changed for so long."""
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def test_a_second_run_in_this_process_leaves_alone_what_the_first_holds(journal):
    first, second = journal.step("s"), journal.step("s")

    assert [claim(step)[0].record.number for step in (first, second)] == [0, 1]


def test_a_power_failure_forgets_no_intent_and_no_id(journal, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    step = journal.step("s")
    entry, _ = claim(step)
    after_claim = list(synced)
    entry.submitted("task")

    assert after_claim[-1] == step.folder, "the folder, after the record in it"
    assert synced[-1] == step.folder
    assert len(synced) == 2 * len(after_claim) == 4


def test_what_is_closed_is_found_by_the_next_run(journal):
    first, second = journal.step("s"), journal.step("s")
    claim(first)[0].submitted("task")
    journal.close(first)

    _, before = claim(second)

    assert before.task_id == "task"
    assert list(first.folder.glob("*.run")) == list(second.folder.glob("*.run"))


def test_a_forked_child_holds_nothing_of_its_parents(journal):
    """The child outlives its parent; the next run still finds the task."""
    program = """
import os, sys
from pathlib import Path
from qrmi_workflows.journal.journal import Journal
step = Journal(Path(sys.argv[1])).step("s")
step.claim("d" * 64, qpu="q", program="sampler")[0].submitted("task")
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os._exit(0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(journal.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"forked\n"
    assert process.wait(timeout=10) == 0

    assert claim(journal.step("s"))[1].task_id == "task"
    process.communicate()


def test_a_step_that_nobody_can_run_again_is_settled_when_it_is_closed(journal):
    step = journal.this_step({})
    complete(step)
    journal.close(step)

    assert states(journal.records()) == []
    assert states(journal.records(archived=True)) == ["completed"]
    assert not step.folder.exists()


def test_a_step_with_a_task_in_doubt_stays_where_it_is_seen(journal):
    step = journal.this_step({})
    complete(step)
    claim(step)
    journal.close(step)

    assert states(journal.records()) == ["completed", "intent"]


def ask(journal, *, process: str, command: str = "a.py", attempt: str = "1", rank: str = "0"):
    """Complete a task of step `s` as another process would; return how many there are now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["python", command])
        patch.setattr(step_module, "_PROCESS", process)
        patch.setenv("SLURM_PROCID", rank)
        step = journal.this_step({"QPU_STEP": "s", "QPU_ATTEMPT": attempt})
        complete(step)
        journal.close(step)
    return len(journal.step("s").records())


def test_commands_and_ranks_of_one_attempt_have_tasks_of_their_own_that_the_next_finds(journal):
    assert ask(journal, process="p") == 1
    assert ask(journal, process="q", command="b.py") == 2
    assert ask(journal, process="r", rank="1") == 3
    assert ask(journal, process="s") == 3, "the same command again is a retry"
    assert ask(journal, process="t", attempt="2", command="b.py") == 3
    assert ask(journal, process="u", attempt="2") == 3


@pytest.mark.parametrize("attempt", ["1", ""])
def test_each_lease_of_a_process_has_tasks_of_its_own_that_a_rerun_finds(journal, attempt):
    assert [ask(journal, process="p", attempt=attempt) for _ in range(3)] == [1, 2, 3]
    assert [ask(journal, process="q", attempt=attempt) for _ in range(4)] == [3, 3, 3, 4]


def test_what_a_lease_of_a_process_has_not_completed_its_next_one_finds(journal):
    environ = {"QPU_STEP": "s", "QPU_ATTEMPT": "1"}
    first, second = journal.this_step(environ), journal.this_step(environ)
    claim(first)[0].submitted("task")
    journal.close(first)

    _, before = claim(second)

    assert before is not None
    assert before.task_id == "task"


@pytest.mark.parametrize("environ", [{"QPU_STEP": "s"}, {"SLURM_JOB_ID": "17"}])
def test_a_step_that_may_be_run_again_stays_open(journal, environ):
    step = journal.this_step(environ)
    complete(step)
    journal.close(step)

    assert states(journal.records()) == ["completed"]


def test_settling_leaves_what_another_run_holds(journal):
    ended, running = journal.step("s"), journal.step("s")
    complete(ended)
    entry, _ = claim(running)
    journal.close(ended)

    journal.archive("s")
    entry.submitted("task")

    assert states(journal.records()) == ["submitted"]
    assert states(journal.records(archived=True)) == ["completed"]


def test_what_is_old_is_forgotten_when_a_step_settles(journal):
    """Settled steps and open ones, and the marks of jobs' runs; nothing that is young or runs."""
    running = journal.step("running")
    claim(running)
    for name in ("old", "young"):
        step = journal.step(name)
        complete(step)
        journal.close(step)
    complete(journal.step("archived"))
    journal.archive("archived")
    journal.this_step({"SLURM_JOB_ID": "17"})
    (marks,) = journal.folder.glob("jobs/*")
    (day,) = journal.folder.glob("settled/*")
    for folder in (running.folder, journal.step("old").folder, *day.iterdir(), marks):
        age(folder, days=91)
    day.rename(day.with_name("2020-01-01"))
    age(journal.folder / "pruned", days=1.1)

    complete(journal.step("last"))
    journal.archive("last")

    assert {record.step for record in journal.records()} == {"running", "young"}
    assert {record.step for record in journal.records(archived=True)} == {"last"}
    assert not marks.exists()


def test_the_journal_is_looked_through_once_a_day_at_most(journal):
    for name in ("first", "old"):
        complete(journal.step(name))
    journal.archive("first")
    age(journal.step("old").folder, days=1000)

    complete(journal.step("second"))
    journal.archive("second")

    assert states(journal.step("old").records()) == ["completed"]


def test_for_how_many_days_it_keeps_can_be_said():
    assert journal_days({}) == 90
    assert journal_days({"QPU_JOURNAL_DAYS": "7.5"}) == 7.5
    for wrong in ("soon", "-1", "nan"):
        with pytest.raises(ConfigError, match="QPU_JOURNAL_DAYS"):
            journal_days({"QPU_JOURNAL_DAYS": wrong})


def test_a_wrong_number_of_days_fails_no_step(journal, monkeypatch, caplog):
    monkeypatch.setenv("QPU_JOURNAL_DAYS", "soon")
    complete(journal.step("s"))

    journal.archive("s")

    assert "QPU_JOURNAL_DAYS = 'soon'" in caplog.text
    assert states(journal.records(archived=True)) == ["completed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record | {"version": 2}, "a journal of version 2; this release reads"),
        (lambda record: record | {"format": "other"}, "not a task's record. Remove it"),
        (lambda record: record | {"state": "dreaming"}, "not a whole record: 'dreaming'"),
        (lambda record: record | {"owner": {"host": "n1"}}, "not a whole record"),
        (lambda record: {**record, "colour": "red"}, "not a whole record"),
        (lambda record: [record], "not a task's record. Remove it"),
        (lambda record: record | {"result": None}, "not a whole record: completed, and no result"),
        (lambda record: record | {"result": {}}, "not a whole record: completed, and no result"),
        (lambda record: record | {"task_id": None}, "not a whole record: completed, and no task"),
    ],
)
def test_a_foreign_record_is_refused_and_left_as_it_is(journal, change, said):
    step = journal.step("s")
    complete(step)
    journal.close(step)
    (path,) = step.folder.glob("*.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    text = path.read_text()

    with pytest.raises(JournalError, match=said):
        claim(journal.step("s"))
    assert path.read_text() == text


def test_a_truncated_record_is_refused_and_left_as_it_is(journal):
    step = journal.step("s")
    complete(step)
    journal.close(step)
    (path,) = step.folder.glob("*.json")
    for text in (path.read_text()[:100], "[" * 100_000, ""):
        path.write_text(text)
        with pytest.raises(JournalError, match="not a task's record"):
            claim(journal.step("s"))
        assert path.read_text() == text


def test_a_record_reads_back_as_it_was_written(journal):
    step = journal.step("s")
    complete(step)

    (record,) = step.records()

    assert record.state is RecordState.COMPLETED
    assert record.owner.pid == os.getpid()
    assert record.result.vendor_result == "{}"


@pytest.mark.parametrize("days", [float("inf"), 1e30, float("nan")])
def test_for_ever_is_a_time_too(journal, days):
    claim(journal.step("s"))

    assert journal.prune(older_than_days=days, open_too=True) == 0


def test_folders_that_are_not_the_journals_are_left_alone(journal):
    strangers = [journal.folder / "archived" / name for name in ("not-a-date", "abcd-ef-gh")]
    for stranger in strangers:
        stranger.mkdir(parents=True)

    assert journal.prune(older_than_days=0, open_too=True) == 0
    assert all(stranger.exists() for stranger in strangers)


def test_a_step_may_have_any_name_that_a_file_can_have(journal):
    step = journal.step(os.fsdecode(b"qpu run -o caf\xe9.json"))
    claim(step)[0].submitted("t")
    step.close()

    assert claim(journal.step(step.name))[1].task_id == "t"
