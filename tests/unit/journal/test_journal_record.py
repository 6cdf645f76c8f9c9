"""A task's record and its file: read back as it was written, and refused when it is not whole."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest
from journal_steps import claim, complete

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.record import Move, RecordState


@pytest.fixture
def path(journal):
    """The file of a completed task in step `s`."""
    step = journal.step("s")
    complete(step)
    journal.close(step)
    (file,) = step.folder.glob("*.json")
    return file


def test_a_record_reads_back_as_it_was_written(journal, path):
    (record,) = journal.step("s").records()

    assert record.state is RecordState.COMPLETED
    assert record.owner.pid == os.getpid()
    assert record.result.vendor_result == "{}"


def test_a_record_has_only_numbers_that_every_reader_takes(journal, path):
    (record,) = journal.step("s").records()
    unbounded = replace(record, result=replace(record.result, data=[{"stds": [math.inf]}]))

    document = json.loads(unbounded.to_json(), parse_constant=pytest.fail)

    assert document["result"]["data"] == [{"stds": ["Infinity"]}]


def test_only_the_user_can_read_a_record(path):
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"version": 2}, "a journal of version 2; this release reads"),
        (lambda record: record | {"format": "other"}, "not a task record: `format` is not"),
        (lambda record: [record], "not a task record: `format` is not"),
        (lambda record: record | {"state": "dreaming"}, "incomplete task record: 'dreaming'"),
        (lambda record: record | {"owner": {"host": "n1"}}, "incomplete task record"),
        (lambda record: {**record, "colour": "red"}, "incomplete task record"),
        (lambda record: record | {"result": None}, "completed without a result"),
        (lambda record: record | {"result": {}}, "completed without a result"),
        (lambda record: record | {"task_id": None}, "completed without a task_id"),
    ],
)
def test_a_foreign_record_is_refused_and_left_unchanged(journal, path, change, message):
    """Submitting its task again would pay for it twice."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    text = path.read_text()

    with pytest.raises(JournalError, match=message):
        claim(journal.step("s"))
    assert path.read_text() == text


def test_the_message_about_a_record_says_what_to_do(journal, path):
    path.write_text("{}")

    with pytest.raises(JournalError, match="Remove the file to have its task submitted again"):
        claim(journal.step("s"))


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"format": "qrmi-workflows-task", "ver'])
def test_a_truncated_record_is_refused_and_left_unchanged(journal, path, text):
    path.write_text(text)

    with pytest.raises(JournalError, match="not a task record"):
        claim(journal.step("s"))
    assert path.read_text() == text


def test_a_move_is_in_the_records_of_both_qpus_and_reads_back(journal):
    step = journal.step("s")
    entry, _ = claim(step)
    move = Move(
        qpu="q", identity="", task_id=None, to_qpu="r", to_identity="i", to_digest="d",
        reason="offline", since="2026-11-26T12:00:00+00:00",
    )  # fmt: skip
    entry.moved(move)
    other, _ = step.claim("d", qpu="r", program="sampler", identity="i")
    other.came(move)
    other.submitted("task")

    first, second = sorted(step.records(), key=lambda record: record.qpu)

    assert (first.state, first.moved_to, first.moved_from) == (RecordState.MOVED, move, None)
    assert (second.state, second.moved_to, second.moved_from) == (RecordState.SUBMITTED, None, move)
    assert step.find("d", qpu="r", identity="i") == [second]


def test_a_task_that_is_submitted_again_where_it_was_has_not_moved(journal):
    step = journal.step("s")
    entry, _ = claim(step)
    entry.moved(
        Move(
            qpu="q",
            identity="",
            task_id=None,
            to_qpu="r",
            to_identity="",
            to_digest="d",
            reason="offline",
            since="2026-11-26T12:00:00+00:00",
        )
    )

    entry.reset()

    (record,) = step.records()
    assert (record.state, record.moved_to) == (RecordState.CLAIMED, None)
