"""Budgets with real tasks: refused, reserved, settled, given back; and killed in each state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.budgets.allowance import Usage, find_usage, today
from qrmi_workflows.budgets.ledger import Ledger, this_user
from qrmi_workflows.budgets.limits import Limit, write_limits
from qrmi_workflows.budgets.settling import settle_all_dead
from qrmi_workflows.client import resource as client
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    BudgetError,
    QPUError,
    ResourceError,
    TaskFailedError,
)
from qrmi_workflows.journal.journal import Journal

SHOTS = Limit(scope="user", name=this_user(), unit="shots", amount=1000, per="month")


@pytest.fixture
def site(emulator, monkeypatch, tmp_path):
    """A site whose user may take 1000 shots a month."""
    folder = tmp_path / "budgets"
    own = tmp_path / "site.toml"
    lanes = "".join(f"[qpus.{name}]\nlanes = 5\n" for name in ("ibm_quick", "ibm_slow"))
    lanes += "[qpus.ibm_with_cancel]\n[qpus.ibm_fez]\n[qpus.ibm_system]\nlanes = 3\n"
    own.write_text(f'[site]\nbudgets = "{folder}"\n{lanes}')
    monkeypatch.setenv("QPU_SITE", str(own))
    Ledger(folder).prepare(for_all=True)
    write_limits(folder, [SHOTS])
    return folder


def usage(folder, limit: Limit = SHOTS) -> Usage:
    settle_all_dead(Ledger(folder).user(this_user()))
    return find_usage(Ledger(folder), limit, this_user(), today())


def run(qpu: str, shots: int = 100, **options: Any) -> Any:
    with open_lease(qpu, step="s") as lease:
        return lease.run(bell(shots), **options)


def test_what_is_not_left_is_refused_before_anything_is_submitted(site, counted):
    with open_lease("ibm_quick", step="s") as lease:
        lease.run(bell(600))
        with pytest.raises(BudgetError, match="400 shots are left") as refused:
            lease.run(bell(500))
        lease.run(bell(400))

    assert counted()["tasks accepted"] == 2
    error = refused.value
    assert (error.left, error.needed, error.unit, error.exit_code) == (400, 500, "shots", 2)
    assert f"user {this_user()}" in error.message
    assert str(error.ends) in error.message
    assert (usage(site).spent, usage(site).reserved) == (1000, 0)


def test_the_journal_has_the_estimate_beside_what_a_task_took(site, counted):
    run("ibm_quick")

    (record,) = Journal().step("s").records()
    assert record.cost.estimate.shots == record.cost.spent.shots == 100
    assert record.cost.estimate.seconds == 2.035
    assert record.cost.estimate.origin == "vendor's figures"
    # A busy machine may see nearly none of its 0.05 s.
    assert 0 <= record.cost.spent.seconds < 10
    assert record.cost.spent.origin == "observed"


def test_without_a_budget_the_journal_has_both_too(emulator):
    run("ibm_quick")

    (record,) = Journal().step("s").records()
    assert (record.cost.estimate.shots, record.cost.spent.shots) == (100, 100)
    assert record.cost.reservation is None


UNLIMITED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from fault_payloads import bell
from qrmi_workflows import open_lease
with open_lease("ibm_quick", step="s") as lease:
    lease.run(bell())
loaded = {name.rpartition(".")[2] for name in sys.modules if "workflows.budgets." in name}
assert loaded == {"estimates"}, loaded
assert not [path for path in opened if "limits.toml" in path or "/ledger" in path]
"""


def test_a_task_that_nothing_limits_opens_no_file_of_budgets(emulator, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    done = subprocess.run(
        [sys.executable, "-c", UNLIMITED], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_tasks_at_the_same_time_never_take_more_than_there_is(site, counted):
    with open_lease("ibm_quick", step="s") as lease:
        futures = [lease.submit(bell(150 + number)) for number in range(10)]
        errors = [future.exception() for future in futures]

    assert sum(isinstance(error, BudgetError) for error in errors) == 4
    assert counted()["tasks accepted"] == 6
    assert usage(site).reserved == 0
    assert 900 < usage(site).spent <= 1000


def test_what_the_vendor_refuses_is_given_back(site, counted, fault):
    fault("status", route="POST */jobs*", status=400, count=1)
    with pytest.raises(ResourceError):
        run("ibm_quick")
    assert (usage(site).spent, usage(site).reserved) == (0, 0)


def test_what_fails_at_the_vendor_is_given_back(site, counted):
    circuit = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; h $400; c[0] = measure $400;'
    bad = {"program_id": "sampler", "parameters": {"pubs": [[circuit, None, 100]]}}
    with open_lease("ibm_fez", step="s") as lease, pytest.raises(TaskFailedError):
        lease.run(bad)
    assert counted()["tasks accepted"] == 1
    assert (usage(site).spent, usage(site).reserved) == (0, 0)


def test_a_task_that_is_left_keeps_its_one_reservation(site, counted, pause):
    pause("ibm_slow")
    with open_lease("ibm_slow", step="s") as lease:
        future = lease.submit(bell(), on_stop="leave")
        wait_until(lambda: future.task_id is not None, "the task's id")
        future.cancel()
    assert usage(site).reserved == 100
    before = sorted((site / "ledger" / this_user()).iterdir())

    pause("ibm_slow", "online")
    run("ibm_slow")

    assert counted()["tasks accepted"] == 1
    assert (usage(site).spent, usage(site).reserved) == (100, 0)
    assert sorted((site / "ledger" / this_user()).iterdir()) == before


def test_a_task_in_doubt_stays_reserved_and_counts_if_it_is_submitted_again(site, counted, fault):
    fault("drop", route="POST */jobs", when="after", count=1)
    with pytest.raises(AmbiguousTaskError):
        run("ibm_quick")
    assert usage(site).reserved == 100

    run("ibm_quick", on_ambiguous="resubmit")

    assert (usage(site).spent, usage(site).reserved) == (200, 0)


def test_a_task_that_is_accepted_late_and_cancelled_is_settled(
    emulator, site, counted, fault, pause, monkeypatch, caplog, server
):
    """A step without a name cannot be run again, so nobody wants the task."""
    pause("ibm_slow")
    can_be_cancelled = server.get("cancel_route", True)
    monkeypatch.setattr(client, "DEADLINES", {**client.DEADLINES, "task_start": 0.3})
    fault("hold", route="POST */jobs", when="after", count=1)
    with open_lease("ibm_slow") as lease:
        with pytest.raises(AmbiguousTaskError):
            lease.run(bell())
        assert usage(site).reserved == 100
        emulator.control.ask("DELETE", "/faults")
        if not can_be_cancelled:
            wait_until(lambda: "late; its state is" in caplog.text, "the late task")
            assert usage(site).reserved == 100, "it goes on, and is billed"
            return
        wait_until(lambda: "nobody wants it" in caplog.text, "the late task")
        wait_until(lambda: usage(site).reserved == 0, "the settlement")
    assert usage(site).spent == 0
    seconds = replace(SHOTS, unit="seconds")
    assert usage(site, seconds).spent == 2035, "its time was not seen"


def test_payloads_that_share_a_task_are_settled_in_their_parts(site, counted):
    with open_lease("ibm_quick", step="s") as lease:
        results = list(lease.map([bell(100)] * 3, coalesce=True))

    assert len(results) == 3
    assert counted()["tasks accepted"] == 1
    records = list(Journal().step("s").records())
    assert [record.cost.spent.shots for record in records] == [100] * 3
    assert len({record.cost.reservation for record in records}) == 3
    assert (usage(site).spent, usage(site).reserved) == (300, 0)


def test_payloads_that_are_refused_together_and_go_alone_are_settled_once(site, counted, fault):
    fault("status", route="POST */jobs*", status=400, count=1)
    with open_lease("ibm_quick", step="s") as lease:
        list(lease.map([bell(100)] * 3, coalesce=True))

    assert counted()["tasks accepted"] == 3
    assert (usage(site).spent, usage(site).reserved) == (300, 0)


def test_a_job_has_the_budget_that_its_user_gives_it(emulator, counted, monkeypatch):
    with open_lease("ibm_quick", step="s", budget="250 shots") as lease:
        assert lease.environment()["QPU_BUDGET"] == "250 shots"
        lease.run(bell(200))
        with pytest.raises(BudgetError, match="budget of job lease-"):
            lease.run(bell(100))
    monkeypatch.setenv("QPU_BUDGET", "2 s")
    with open_lease("ibm_quick", step="t") as lease, pytest.raises(BudgetError, match=r"2\.035 s"):
        lease.run(bell(100))
    assert counted()["tasks accepted"] == 1


def test_a_command_and_its_processes_share_the_budget_of_their_lease(emulator, counted, tmp_path):
    for shots in (100, 101):
        (tmp_path / f"{shots}.json").write_text(json.dumps(bell(shots)))
    qpu = [sys.executable, "-m", "qrmi_workflows"]
    each = " ".join([*qpu, "run", "$n.json", "-o", "$n.result.json"])
    script = f"for n in 100 101; do {each} || exit; done"
    lease = ["lease", "exec", "--qpu", "ibm_quick", "--budget", "200 shots", "--", "sh", "-c"]
    done = subprocess.run(
        [*qpu, *lease, script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 2, done.stderr
    assert "100 shots are left" in done.stderr
    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("budget", ["many", "-1 shots", "1 year", "1.5 shots"])
def test_a_wrong_budget_is_refused_before_a_qpu_is_acquired(counted, emulator, budget):
    with pytest.raises(QPUError, match="must be a number of shots, or a time"):
        open_lease("ibm_quick", budget=budget)
    assert counted()["sessions opened"] == 0


def test_the_estimate_submits_nothing_and_learns_from_earlier_tasks(counted, emulator, tmp_path):
    (tmp_path / "bell.json").write_text(json.dumps(bell()))

    def estimate() -> dict[str, Any]:
        argv = ["run", "bell.json", "--qpu", "ibm_quick", "--estimate", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "qrmi_workflows", *argv],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return dict(json.loads(done.stdout))

    first = estimate()
    assert (first["shots"], first["seconds"], first["origin"]) == (100, 2.035, "vendor's figures")
    assert counted()["sessions opened"] == 0
    with open_lease("ibm_quick", step="s") as lease:
        list(lease.map([bell()] * 3))
        measured = lease.estimate(bell())
    assert measured.origin == "measured: 3 tasks"
    assert estimate()["origin"] == "measured: 3 tasks"
    assert estimate()["seconds"] == measured.seconds != 2.035
    assert counted()["tasks accepted"] == 3


PROGRAM = """
import os, signal, sys
import qrmi_workflows.budgets.settling as settling
from fault_payloads import bell
from qrmi_workflows import open_lease
from qrmi_workflows.budgets.ledger import UserLedger
from qrmi_workflows.journal.coalesced import CoalescedEntry
from qrmi_workflows.journal.step import Entry

owner, name, after, calls, count = sys.argv[1:]
owners = {"entry": Entry, "coalesced": CoalescedEntry, "ledger": UserLedger, "settling": settling}
inner, left = getattr(owners[owner], name), [int(calls)]
def call(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0 and after == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    value = inner(*args, **kwargs)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
setattr(owners[owner], name, call)
with open_lease("ibm_quick", step="s") as lease:
    list(lease.map([bell(100)] * int(count), coalesce=int(count) > 1))
"""
DEATHS = [
    ("ledger", "write", "before", 1, 1, 0),
    ("ledger", "write", "after", 1, 1, 0),
    ("entry", "intend", "before", 1, 1, 0),
    ("entry", "submitted", "after", 1, 1, 0),
    ("entry", "completed", "before", 1, 1, 0),
    ("entry", "completed", "after", 1, 1, 0),
    ("ledger", "write", "before", 2, 1, 0),
    ("ledger", "write", "after", 2, 1, 0),
    ("entry", "intend", "after", 1, 1, 1),
    ("ledger", "write", "after", 2, 3, 0),
    ("entry", "share", "after", 2, 3, 0),
    ("coalesced", "submitted", "after", 1, 3, 0),
    ("coalesced", "completed", "after", 1, 3, 0),
    ("coalesced", "hand_out", "before", 1, 3, 0),
    ("entry", "completed", "after", 2, 3, 0),
    ("coalesced", "hand_out", "after", 1, 3, 0),
    ("ledger", "write", "after", 5, 3, 0),
]


@pytest.mark.parametrize(("owner", "name", "when", "calls", "count", "doubtful"), DEATHS)
def test_whenever_the_process_is_killed_the_sums_are_right(
    site, counted, owner, name, when, calls, count, doubtful
):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(("tests/faults", "tests"))}
    argv = [sys.executable, "-c", PROGRAM, owner, name, when, str(calls), str(count)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr

    assert usage(site).spent + usage(site).reserved in range(0, 100 * count + 1, 100)
    with open_lease("ibm_quick", step="s") as lease:
        options = {"coalesce": count > 1, "on_ambiguous": "resubmit"}
        assert len(list(lease.map([bell(100)] * count, **options))) == count

    assert usage(site).reserved == 0
    assert usage(site).spent == 100 * (count + doubtful)
