"""Whenever a process is killed, what it has reserved is settled or given back, exactly once."""

from __future__ import annotations

import multiprocessing
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from budget_worker import BUDGET, OF_ACCOUNT, Worker, allowance, main

from qrmi_workflows.budgets.allowance import find_usage, today
from qrmi_workflows.budgets.ledger import Ledger, this_user
from qrmi_workflows.budgets.limits import limits_file, write_limits
from qrmi_workflows.budgets.settling import settle_dead
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState

WORKER = Path(__file__).with_name("budget_worker.py")
SPAWN = multiprocessing.get_context("fork")


def start(state: Path, vendor: Path, seed: object, tasks: int, kill: int = 0):
    vendor.mkdir(exist_ok=True)
    args = (str(state), str(vendor), str(seed), str(tasks), str(kill))
    process = SPAWN.Process(target=main, args=args)
    process.start()
    return process


def settle(state: Path) -> None:
    books = Ledger(state / "budgets").user(this_user())
    with books.locked():
        found = books.all()
        for account in list(settle_dead(found)):
            books.write(account, found[account])


def usage(state: Path):
    folder = state / "budgets"
    limit = OF_ACCOUNT if limits_file(folder).exists() else BUDGET
    return find_usage(Ledger(folder), limit, this_user(), today())


def taken(state: Path, vendor: Path) -> int:
    """Return what the tasks took that the journal knows."""
    known = {record.task_id for record in Journal(state / "journal").records()}
    return sum(task.stat().st_size for task in vendor.iterdir() if task.name in known)


def in_doubt(state: Path) -> int:
    records = Journal(state / "journal").records()
    return sum(record.state is RecordState.INTENT for record in records)


@pytest.mark.parametrize("scope", ["stage", pytest.param("account", marks=pytest.mark.slow)])
def test_at_whatever_call_a_process_is_killed_the_sums_are_right(tmp_path, scope):
    """One task, killed at its first, second, … system call, and then run again."""
    vendor, kill = tmp_path / "vendor", 0
    while True:
        kill += 1
        state = tmp_path / f"state{kill}"
        if scope == "account":
            Ledger(state / "budgets").prepare(for_all=True)
            write_limits(state / "budgets", [OF_ACCOUNT])
        for file in vendor.glob("*"):
            file.unlink()
        process = start(state, vendor, "s1", 1, kill)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        settle(state)
        doubtful, spent = in_doubt(state), usage(state)
        assert spent.reserved in ({100} if doubtful else {0, 100}), kill
        before = len(list(vendor.iterdir()))

        Worker(state, vendor, random.Random("s1")).run("step s1", 1)

        settle(state)
        now = usage(state)
        assert now.reserved == 0, kill
        # A task of which nobody knows whether it was accepted counts as expected.
        assert now.spent == taken(state, vendor) + 100 * doubtful, kill
        assert len(list(vendor.iterdir())) <= before + 1
    assert kill > 40, "every call was tried"


def test_many_processes_never_spend_more_than_there_is(tmp_path):
    state, vendor = tmp_path / "state", tmp_path / "vendor"
    processes = [start(state, vendor, f"w{n}", 24) for n in range(6)]
    for process in processes:
        process.join(120)

    assert [process.exitcode for process in processes] == [0] * 6
    found = usage(state)
    assert found.reserved == 0
    assert found.spent == taken(state, vendor)
    assert found.spent <= BUDGET.amount + 6 * 30, "each may take 30 more than expected"


def test_processes_killed_at_random_calls_leave_right_sums(tmp_path):
    """They run at the same time, are killed, and are run again, until all have ended."""
    state, vendor, dice = tmp_path / "state", tmp_path / "vendor", random.Random(7)
    doubtful = 0
    for _ in range(5):
        kills = [dice.randrange(10, 400) for _ in range(4)]
        processes = [start(state, vendor, f"r{n}", 6, kill) for n, kill in enumerate(kills)]
        for process in processes:
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL)
        doubtful += in_doubt(state)
        assert in_doubt(state) <= 4
    for n in range(4):
        process = start(state, vendor, f"r{n}", 6)
        process.join(120)
        assert process.exitcode == 0
    settle(state)

    found = usage(state)
    lost = found.spent - taken(state, vendor)
    assert found.reserved == 0
    assert lost % 100 == 0, "only tasks in doubt count as expected"
    assert 0 <= lost <= 100 * doubtful


@pytest.mark.parametrize("amount", [99, 100])
def test_the_last_shots_are_spent_and_not_one_more(tmp_path, amount):
    from dataclasses import replace

    from qrmi_workflows.errors import BudgetError
    from qrmi_workflows.journal.cost import Amount

    own = replace(allowance(tmp_path), own=(replace(BUDGET, amount=amount),))
    entry, _ = Journal(tmp_path / "journal").step("s").claim("d" * 64, qpu="q", program="sampler")
    if amount == 100:
        own.reserve(entry, Amount(shots=100))
        entry, _ = entry.step.claim("e" * 64, qpu="q", program="sampler")
    with pytest.raises(BudgetError) as refused:
        own.reserve(entry, Amount(shots=100, origin="vendor's figures"))

    assert (refused.value.left, refused.value.needed) == (amount % 100, 100)
    assert "it would take 100 shots, but" in refused.value.message


@pytest.mark.root
def test_processes_of_several_hosts_share_one_ledger(tmp_path):
    """The hosts are namespaces, each with a name of its own; some processes are killed."""
    state, vendor, dice = tmp_path / "state", tmp_path / "vendor", random.Random(3)
    vendor.mkdir()
    state.mkdir()

    def on_host(name: str, seed: str, kill: int) -> subprocess.Popen[bytes]:
        worker = [sys.executable, str(WORKER), str(state), str(vendor), seed, "8", str(kill)]
        script = f'hostname {name} && exec "$@"'
        return subprocess.Popen(["unshare", "--uts", "sh", "-c", script, "sh", *worker])

    for kills in ([dice.randrange(20, 400) for _ in range(6)], [0] * 6):
        running = [on_host(f"n{n % 3}", f"h{n}", kill) for n, kill in enumerate(kills)]
        codes = {process.wait(60) for process in running}
        assert codes <= {0, -signal.SIGKILL}
    settle(state)

    found = usage(state)
    assert found.reserved == 0
    assert (found.spent - taken(state, vendor)) % 100 == 0
    assert 0 <= found.spent - taken(state, vendor) <= 600, "at most one in doubt for each process"
