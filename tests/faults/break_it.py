"""Breaking steps at random moments: what is run, what it left, and what must never be lost.

`BREAK_SEED` and `BREAK_RUNS` choose the dice and how often they are thrown: `make break-it` throws
them 300 times. After each run the step is run again until it has its result. Results lost, tasks
paid for twice, leases left open and processes left must all be none; a task that is ambiguous (the
vendor's answer was lost) may be paid for twice, and is reported. A session whose grant was lost in
the same way has an id that nobody knows: its time to live ends it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator.client import Control
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState

__all__ = [
    "LOSSES",
    "NO_INTENT",
    "RUNS",
    "SEED",
    "STATES",
    "Step",
    "Tally",
    "await_no_session",
    "hurried",
    "judge",
    "new_step",
    "write_config",
]

RUNS = int(os.environ.get("BREAK_RUNS", "20"))
SEED = int(os.environ.get("BREAK_SEED", str(random.SystemRandom().randrange(10**6))))
SESSION_SECONDS = 30
MARK = "QPU_BREAK_IT"
NO_INTENT = "no intent"
STATES = (NO_INTENT, *RecordState)
LOSSES = ("results lost", "tasks paid twice", "leases left open", "processes left")

# The `qpu` command, with shorter deadlines, so that a vendor who hangs costs seconds.
_HURRIED = """
from qrmi_workflows.client import resource
resource.DEADLINES, resource._DEFAULT_DEADLINE = {}, 3.0
from qrmi_workflows.cli import main
main()
"""
hurried = (sys.executable, "-c", _HURRIED)


@dataclass
class Tally:
    """What was done and what was lost, over all runs."""

    ways: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(LOSSES, 0)))

    def __str__(self) -> str:
        """What `make break-it` prints."""
        lines = {
            f"{self.ways.total()} runs, seed {SEED}": self.ways,
            "ended while the journal had": self.states,
            "reported": self.reported,
            "lost": self.losses,
        }
        return "\n".join(f"{what}: {dict(sorted(count.items()))}" for what, count in lines.items())


@dataclass
class Step:
    """One step of a user.

    Attributes:
        folder: The user's: payload, result, state.
        qpu: The QPU that it runs on.
        environ: Its environment; a mark in it finds all of its processes.
        argv: The command; it takes `--on-ambiguous`.
        control: Returns the emulator's control endpoint.
        results: What it writes, a file for each task.
        supervised: Whether the command runs under `qpu lease exec`.
        lost_grants: How many sessions may be open although no process has heard of them.
    """

    folder: Path
    qpu: str
    environ: dict[str, str]
    argv: list[str]
    control: Callable[[], Control]
    results: list[Path]
    supervised: bool = False
    lost_grants: int = 0
    before: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self._count()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def state(self) -> Path:
        return Path(self.environ["QPU_STATE"])

    def counted(self) -> dict[str, int]:
        """Return how many tasks and sessions of the QPU there were since the step was made."""
        return {key: number - self.before[key] for key, number in self._count().items()}

    def _count(self) -> dict[str, int]:
        counters = self.control().counters()["qpus"][self.qpu]
        return {**counters["tasks"], **counters["sessions"]}

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.argv, *options], env=self.environ, stderr=subprocess.PIPE, text=True
        )

    def hear(self, process: subprocess.Popen[str]) -> str:
        """Wait for the end, and note a session that may be open although its grant was lost."""
        said = process.communicate(timeout=60)[1]
        self.lost_grants += "could not be acquired" in said
        return said

    def journal_state(self) -> str:
        """Return how far the journal says that the last task has come."""
        journal = Journal(self.state / "journal")
        records = [*journal.records(), *journal.records(archived=True)]
        last = max(records, key=lambda record: record.since, default=None)
        return str(last.state) if last else NO_INTENT

    def note_lost_grant(self) -> None:
        """Note a session of a process that was killed before it had written its lease's file."""
        if self.counted()["open"] > 0 and not list(self.state.glob("leases/open/*.json")):
            self.lost_grants += 1

    def run_until_done(self) -> int:
        """Run it again until it has its result; return how often its task was ambiguous."""
        for ambiguous in range(6):
            options = ("--on-ambiguous", "resubmit") if ambiguous else ()
            process = self.start(*options)
            said = self.hear(process)
            if process.returncode == 0:
                return ambiguous
            assert "it is not known whether" in said, said
        raise AssertionError("no result after six runs")

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.environ[MARK]:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_processes(self, seconds: float = 30) -> None:
        """Wait until commands whose supervisor was killed have ended by themselves."""
        with suppress(AssertionError):  # `judge` counts the processes that are left
            wait_until(lambda: not self.processes(), "the processes to end", seconds)

    def reap(self) -> None:
        """Reap; once more, because a reaper before, beside another one, was killed on its way."""
        argv = [sys.executable, "-m", "qrmi_workflows", "reap"]
        quiet = {"env": self.environ, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        killed, beside = (subprocess.Popen(argv, **quiet) for _ in range(2))
        time.sleep(random.uniform(0.15, 0.25))
        killed.kill()
        killed.wait()
        beside.wait(timeout=60)
        subprocess.run(argv, timeout=60, check=False, **quiet)


def new_step(
    folder: Path,
    *,
    qpu: str,
    seed: int,
    config: Path,
    control: Callable[[], Control],
    supervised: bool = False,
    environ: Mapping[str, str] = os.environ,
    qpu_command: tuple[str, ...] = hurried,
) -> Step:
    """Make a step that runs one task: `qpu run`, in a lease of its own or under `qpu lease exec`.

    Args:
        folder: Its own.
        qpu: The QPU.
        seed: Tells its payload and its processes from those of others.
        config: The site's `qrmi_config.json`.
        control: Returns the emulator's control endpoint.
        supervised: Whether it runs under `qpu lease exec`.
        environ: What its environment is made from.
        qpu_command: The `qpu` command.
    """
    (folder / "out").mkdir()
    result = folder / "out" / "result.json"
    (folder / "payload.json").write_text(json.dumps(bell(shots=1 + seed % 4000)))
    environ = {
        **environ,
        MARK: f"{os.getpid()} {seed}",
        "QPU_STATE": str(folder / "state"),
        "QPU_CONFIG": str(config),
    }
    argv = [*qpu_command, "run", str(folder / "payload.json"), "--qpu", qpu]
    argv += ["-o", str(result)]
    if supervised:
        argv = [*qpu_command, "lease", "exec", "--qpu", qpu, "--grace", "1", "--", *argv]
    return Step(
        folder=folder,
        qpu=qpu,
        environ=environ,
        argv=argv,
        control=control,
        results=[result],
        supervised=supervised,
    )


def write_config(emulated: Path, path: Path) -> Path:
    """Write the emulator's qrmi_config.json anew, with a shorter time to live for sessions."""
    document = json.loads(emulated.read_text())
    for resource in document["resources"]:
        resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = str(SESSION_SECONDS)
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))
    return path


def judge(step: Step, tally: Tally, *, ambiguous: int, story: str) -> None:
    """Count what a step has lost, once it has its result; none of it may be."""
    step.wait_for_processes()
    step.reap()
    after = step.counted()
    paid = after["completed"] + after["running"]
    losses = {
        "results lost": sum(not QuantumResult.load(one).counts() for one in step.results),
        "tasks paid twice": max(0, paid - len(step.results) - ambiguous),
        "leases left open": max(0, after["open"] - step.lost_grants),
        "processes left": len(step.processes()),
    }
    tally.losses.update(losses)
    tally.reported.update({"ambiguous": ambiguous, "grants lost": step.lost_grants})
    assert not any(losses.values()), f"{story}: {losses}, {after}"


def await_no_session(control: Control) -> None:
    """Wait until the vendor has ended the sessions whose grant was lost."""
    wait_until(
        lambda: control.counters()["sessions"]["open"] == 0,
        "the end of the sessions",
        SESSION_SECONDS + 30,
    )
