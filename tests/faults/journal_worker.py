"""One of many processes, on several hosts, that share a journal; each may kill itself at any time.

Run as `python journal_worker.py STATE VENDOR SEED RUNS`. The vendor is a folder. It has a file for
each task that was accepted and one for each task that was reported as ambiguous. If two living
processes ever hold the same task, the file `shared` is created.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import uuid
from pathlib import Path

from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.results import QuantumResult

STEPS = ("a", "b", "c")
DIGESTS = [f"{number:064x}" for number in (1, 1, 2)]  # two equal tasks on purpose


class Worker:
    """Runs steps, and may die between any two actions."""

    def __init__(self, state: Path, vendor: Path, dice: random.Random) -> None:
        self.journal = Journal(state / "journal")
        self.vendor = vendor
        self.dice = dice
        self.held: list[Path] = []

    def run_step(self) -> None:
        """Run a step: all of its tasks, then archive it."""
        step = self.journal.step(self.dice.choice(STEPS))
        for digest in DIGESTS:
            entry, before = step.claim(digest, qpu="q", program="sampler")
            self.mark(entry)
            self.run_task(entry, before and before.state)
        self.unmark()
        self.journal.close(step)
        self.journal.archive(step.name)

    def run_task(self, entry: Entry, state: RecordState | None) -> None:
        """Submit a task, or continue it from the recorded state."""
        self.may_die()
        if state is RecordState.INTENT:
            (self.vendor / f"ambiguous-{uuid.uuid4().hex}").touch()
        if state in (None, RecordState.CLAIMED, RecordState.INTENT):
            entry.intend()
            task_id = uuid.uuid4().hex
            (self.vendor / f"task-{task_id}").touch()
            self.may_die(0.02)
            entry.submitted(task_id)
        self.may_die()
        if state is not RecordState.COMPLETED:
            entry.completed(result_of(str(entry.record.task_id)))
        self.may_die()

    def mark(self, entry: Entry) -> None:
        """Mark a task as held; report it if another process holds it at the same time."""
        marker = self.vendor / f"held-{entry.path.parent.name}-{entry.path.name}"
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            (self.vendor / "shared").touch()
        self.held.append(marker)

    def unmark(self) -> None:
        """Remove all marks."""
        while self.held:
            self.held.pop().unlink(missing_ok=True)

    def may_die(self, chance: float = 0.006) -> None:
        """Send this process SIGKILL, with the given probability."""
        if self.dice.random() < chance:
            self.unmark()
            os.kill(os.getpid(), signal.SIGKILL)


def result_of(task_id: str) -> QuantumResult:
    """Return a result that names its task."""
    return QuantumResult(
        qpu="q",
        type="t",
        program="sampler",
        task_id=task_id,
        payload_digest="",
        submitted="",
        completed="",
        data=[],
        vendor_result=task_id,
    )


if __name__ == "__main__":
    worker = Worker(Path(sys.argv[1]), Path(sys.argv[2]), random.Random(sys.argv[3]))
    for _ in range(int(sys.argv[4])):
        worker.run_step()
