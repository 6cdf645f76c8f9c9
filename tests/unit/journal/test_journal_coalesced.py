"""The record of a task that several payloads share."""

from __future__ import annotations

import os
import threading
import time

import pytest
from journal_steps import claim, states

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal import record_files
from qrmi_workflows.journal.coalesced import CoalescedEntry, discard_if_done
from qrmi_workflows.journal.lent import LentEntry
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.record_files import read_record, task_file

DIGESTS = ["a" * 64, "b" * 64]


@pytest.fixture
def members(journal):
    step = journal.step("s")
    return [claim(step, digest)[0] for digest in DIGESTS]


@pytest.fixture
def task(members):
    return CoalescedEntry(members, [1, 2], "c" * 64)


def test_each_write_counts_for_all_payloads(journal, task):
    seen = []
    task.intend()
    seen.append(states(journal.records()))
    task.submitted("vendors-id")
    seen.append(states(journal.records()))
    task.reset()
    seen.append(states(journal.records()))

    assert seen == [["intent"] * 2, ["submitted"] * 2, ["claimed"] * 2]


def test_a_payload_knows_its_pubs(journal, task):
    task.intend()
    task.submitted("vendors-id")

    portions = [record.portion for record in journal.records()]
    assert [portion.counts for portion in portions] == [(0, 1, 2), (1, 2, 0)]
    assert {record.task_id for record in journal.records()} == {"vendors-id"}


def test_a_task_that_could_not_be_recorded_for_all_was_never_sent(journal, members, task):
    members[1].path.parent.chmod(0o500)
    try:
        if os.access(members[1].path.parent, os.W_OK):  # root may write everywhere
            members[1].path = members[1].path.with_name("gone") / "x.json"
        with pytest.raises(JournalError):
            task.intend()
    finally:
        members[0].path.parent.chmod(0o700)

    assert set(states(journal.records())) == {"claimed"}


def test_the_record_stays_until_the_last_payload_is_done(task, members):
    task.intend()
    task.submitted("vendors-id")
    portions = [member.record.portion for member in members]
    members[0].failed("for a test", retryable=True)

    assert not discard_if_done(members[0].path, portions[0])
    assert task.path.exists()
    assert discard_if_done(members[1].path, portions[1])
    assert not task.path.exists()


def test_a_task_that_ends_while_a_payloads_record_is_read_is_not_ambiguous(
    journal, members, task, monkeypatch
):
    task.intend()
    task.submitted("vendors-id")

    def end_first(path, name):
        if task.path.exists():
            members[0].failed("failed", retryable=False)
            task.discard()
        return task_file(path, name)

    monkeypatch.setattr(record_files, "task_file", end_first)

    assert read_record(members[0].path).state is RecordState.FAILED


def test_the_record_counts_only_while_a_payload_names_it(task, members):
    task.intend()
    with task.holding(task.record.state) as is_held:
        assert is_held
    for member in members:
        member.reset()  # submitted again, alone
    with task.holding(task.record.state) as is_held:
        assert not is_held


def test_a_record_that_a_crash_has_left_is_forgotten_with_old_steps(journal, task):
    task.intend()
    long_ago = time.time() - 91 * 86400
    os.utime(task.path, (long_ago, long_ago))

    journal.prune(older_than_days=90)
    assert task.path.exists()
    journal.prune(older_than_days=90, open_too=True)
    assert not task.path.exists()


def test_a_failure_does_not_overwrite_the_record_of_a_rerun_that_has_another_task(
    journal, members, task
):
    """It may become known late, when the payload's step has ended and runs again."""
    task.intend()
    task.submitted("vendors-id")
    members[0].step.close()
    rerun, _ = claim(journal.step("s"), DIGESTS[0])
    rerun.reset()
    rerun.intend()
    rerun.submitted("another")

    task.failed("for a test", retryable=True)

    first, second = (read_record(member.path) for member in members)
    assert (first.state, first.task_id, first.run) == (
        RecordState.SUBMITTED, "another", rerun.record.run,
    )  # fmt: skip
    assert (second.state, second.retryable) == (RecordState.FAILED, True)
    assert not task.path.exists()


def test_a_failure_does_not_overwrite_the_record_of_a_rerun_that_has_taken_the_task_over(
    journal, members, task
):
    """The rerun asks the vendor itself, and still needs the task's record."""
    task.intend()
    task.submitted("vendors-id")
    members[0].step.close()
    rerun, before = claim(journal.step("s"), DIGESTS[0])
    assert before.task_id == "vendors-id"

    task.failed("for a test", retryable=True)

    assert read_record(members[0].path) == rerun.record
    assert task.path.exists()
    rerun.failed("for a test", retryable=True)
    assert discard_if_done(rerun.path, rerun.record.portion)
    assert not task.path.exists()


def test_a_late_failure_is_recorded_for_lent_records_of_the_same_step(journal, members):
    """The step's lock is held while the failure is written, and a lent record takes it again."""
    lent = LentEntry.of(members[1].path)
    task = CoalescedEntry([members[0], lent], [1, 1], "c" * 64)
    task.intend()

    def settle() -> None:
        with task.holding(RecordState.INTENT) as is_held:
            assert is_held
            task.failed("for a test", retryable=True)

    thread = threading.Thread(target=settle, daemon=True)
    thread.start()
    thread.join(60)

    assert not thread.is_alive()
    assert states(journal.records()) == ["failed"] * 2
