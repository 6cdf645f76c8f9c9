"""One of many processes that spend one budget; each may be killed at any of its system calls.

Run as `python budget_worker.py STATE VENDOR SEED TASKS KILL`. KILL is the number of the system call
of Python's audit events at which the process kills itself; 0 means never. The vendor is a folder,
which has a file for each task that was accepted: its name is the task's id, its size what it took.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

from qrmi_workflows.budgets.allowance import Allowance
from qrmi_workflows.budgets.limits import Limit, limits_file
from qrmi_workflows.budgets.settling import settle_task
from qrmi_workflows.errors import BudgetError
from qrmi_workflows.journal.cost import Amount
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.results import QuantumResult

BUDGET = Limit(scope="stage", name="s", unit="shots", amount=10_000)
OF_ACCOUNT = Limit(scope="account", name="chem", unit="shots", amount=10_000, per="month")
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock", "os.listdir", "os.chmod"}
CALLS = ("fsync", "fchmod", "close", "fstat")


def allowance(state: Path) -> Allowance:
    """Return what the tasks of all workers may spend: of an account, if the site limits it."""
    folder = state / "budgets"
    if limits_file(folder).exists():
        return Allowance(folder=folder, qpu="q", account=OF_ACCOUNT.name)
    return Allowance(folder=folder, qpu="q", account=None, own=(BUDGET,), has_site_limits=False)


def kill_at(number: int) -> None:
    """Kill this process at a system call."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(call):  # these raise no audit events
        def wrapped(*args, **kwargs):
            count()
            return call(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    sys.addaudithook(lambda event, _args: count() if event in EVENTS else None)


class Worker:
    """Runs tasks of one step, as `TaskRun` does."""

    def __init__(self, state: Path, vendor: Path, dice: random.Random) -> None:
        self.journal = Journal(state / "journal")
        self.allowance = allowance(state)
        self.vendor = vendor
        self.dice = dice

    def run(self, name: str, tasks: int) -> int:
        """Run the step; return how many tasks found too little left."""
        step = self.journal.step(name)
        refused = 0
        for number in range(tasks):
            entry, before = step.claim(f"{number:064x}", qpu="q", program="sampler")
            try:
                self.run_task(entry, before and before.state)
            except BudgetError:
                refused += 1
        self.journal.close(step)
        return refused

    def run_task(self, entry: Entry, state: RecordState | None) -> None:
        """Submit a task, or go on with it."""
        if state in (RecordState.COMPLETED, RecordState.FAILED):
            settle_task(entry.record)
        if state in (RecordState.INTENT, RecordState.FAILED):
            settle_task(entry.record, entry.record.cost.estimate if state == "intent" else None)
            entry.reset()
        if state is RecordState.COMPLETED:
            return
        if state is not RecordState.SUBMITTED:
            self.allowance.reserve(entry, Amount(shots=100))
            entry.intend()
            if self.dice.random() < 0.1:
                entry.failed("refused", retryable=True)
                settle_task(entry.record)
                return
            task_id = f"{entry.path.parent.name}-{entry.record.number}-{os.urandom(4).hex()}"
            (self.vendor / task_id).write_text("x" * self.dice.choice([0, 60, 100, 130]))
            entry.submitted(task_id)
        task = self.vendor / str(entry.record.task_id)
        entry.completed(result_of(task.name), spent=Amount(shots=task.stat().st_size))
        settle_task(entry.record)


def result_of(task_id: str) -> QuantumResult:
    """Return a result that names its task."""
    return QuantumResult(
        qpu="q", type="t", program="sampler", task_id=task_id, payload_digest="", submitted="",
        completed="", data=[], vendor_result=task_id,
    )  # fmt: skip


def main(state: str, vendor: str, seed: str, tasks: str, kill: str) -> None:
    """Run one worker's step."""
    worker = Worker(Path(state), Path(vendor), random.Random(seed))
    if int(kill):
        kill_at(int(kill))
    worker.run(f"step {seed}", int(tasks))


if __name__ == "__main__":
    main(*sys.argv[1:])
