"""Payloads of several processes that share a task: each is settled once, whoever is killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from test_tasks_of_several_processes import WORDS, right, shared_emulator, steps_of, submitted
from waiting import wait_until

from qrmi_workflows.budgets.book import Book
from qrmi_workflows.budgets.ledger import Ledger, this_user
from qrmi_workflows.budgets.settling import settle_all_dead
from qrmi_workflows.journal.journal import Journal

__all__ = ["shared_emulator"]

SHOTS = 2  # of each payload


@pytest.fixture(autouse=True)
def budget(monkeypatch, emulator):
    monkeypatch.setenv("QPU_BUDGET", "1000 shots")


def book() -> Book:
    """Return the book, once what dead processes have reserved is settled."""
    books = Ledger(Path(Journal().folder.parent / "budgets")).user(this_user())
    settle_all_dead(books)
    return books.read(None)


def spent() -> int:
    """Return what was spent from the budget of the one lease; nothing is reserved any more."""
    found = book()
    assert found.open == {}
    (of_lease,) = found.own["job"].values()
    return of_lease.shots


def test_each_process_spends_its_part(counted):
    with steps_of("ibm") as steps:
        steps.start_all()
        assert len(book().open) == len(WORDS), "reserved before they wait for each other"
        steps.lane.close()
        for bits in WORDS:
            assert steps.outcome(bits) == right(bits)
    assert counted()["tasks accepted"] == 1
    assert spent() == SHOTS * len(WORDS)


DEATHS = [
    ("Leadership", "claim", "after"),
    ("LentEntry", "share", "after"),
    ("CoalescedEntry", "submitted", "after"),
    ("LentEntry", "completed", "after"),
    ("CoalescedEntry", "hand_out", "after"),
]


@pytest.mark.parametrize(("owner", "name", "when"), DEATHS)
def test_whenever_the_leader_is_killed_the_sums_are_right(counted, owner, name, when):
    leader, member = WORDS[:2]
    with steps_of("ibm", WORDS[:2]) as steps:
        steps.start_all(owner, name, when, "1")
        steps.lane.close()
        assert steps.outcome(leader) == -signal.SIGKILL
        assert steps.outcome(member) == right(member)
        steps.start(leader)
        assert steps.outcome(leader) == right(leader)
    assert spent() == SHOTS * 2


def test_processes_whose_task_is_refused_spend_what_they_take_alone(counted, fault):
    with steps_of("ibm") as steps:
        steps.start_all()
        fault("status", route="POST */jobs*", status=400, count=1)
        steps.lane.close()
        for bits in WORDS:
            assert steps.outcome(bits) == right(bits)
    assert counted()["tasks accepted"] == 3
    assert spent() == SHOTS * len(WORDS)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_spends_its_part_of_the_task_that_goes_on(counted, pause, rank):
    stopped = WORDS[rank]
    with steps_of("ibm") as steps:
        steps.start_all()
        pause("ibm")
        steps.lane.close()
        wait_until(submitted(stopped), "the submission")
        steps.running[stopped].terminate()
        steps.running.pop(stopped).communicate(timeout=120)
        pause("ibm", "online")
        for bits in steps.running.copy():
            assert steps.outcome(bits) == right(bits)
    assert counted()["tasks accepted"] == 1
    assert spent() == SHOTS * len(WORDS)
