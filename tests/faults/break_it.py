"""Break steps at random moments, rerun them, and count what was lost.

`BREAK_RUNS` scales the number of runs (300, which `make break-it` sets, gives more than 500 on all
kinds of servers and in Slurm jobs together). `BREAK_SEED` is the seed of their random numbers: each
`make break-it` has a new one, other targets always have the same.
After each run the step is rerun until it has its result. No result may be lost or come from another
QPU, no task paid for twice, no lease left open and no process left running.

Two things cannot be avoided, and are counted instead. If the vendor's answer to a submission was
lost, the task is ambiguous: it is reported, and may be paid for twice. If the vendor's answer to
an acquisition was lost, no process knows the session's id: it ends at its time to live.
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
from typing import Any

import psutil
from fault_payloads import bell
from waiting import wait_until
from warm_ups import without_warm_ups

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator.client import Control
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState

__all__ = [
    "LOSSES",
    "NO_INTENT",
    "QPU_IMPATIENT",
    "RUNS",
    "SEED",
    "STATES",
    "Step",
    "Tally",
    "new_step",
    "require_no_losses",
    "wait_for_lost_sessions",
    "without_coverage",
    "write_config",
]

RUNS = int(os.environ.get("BREAK_RUNS", "20"))
SEED = int(os.environ.get("BREAK_SEED", "20261126"))
SESSION_SECONDS = 30
MARK = "QPU_BREAK_IT"
NO_INTENT = "no intent"
# Not CLAIMED, in which a task only stays while it waits for a lane of a Quantum System, and not
# MOVED, which needs another QPU to fall back to (`test_break_choice.py`).
_OTHER_STATES = {RecordState.CLAIMED, RecordState.MOVED}
STATES = (NO_INTENT, *(state for state in RecordState if state not in _OTHER_STATES))
LOSSES = (
    "results lost",
    "results of a wrong QPU",
    "tasks paid twice",
    "leases left open",
    "processes left",
)

# The `qpu` command with short deadlines: a vendor that hangs then costs seconds.
_IMPATIENT = """
from qrmi_workflows.client import resource
resource.DEADLINES, resource._DEFAULT_DEADLINE = {}, 3.0
from qrmi_workflows.cli import main
main()
"""
QPU_IMPATIENT = (sys.executable, "-c", _IMPATIENT)


@dataclass
class Tally:
    """How the runs were broken, and what was lost in all of them together."""

    ways: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(LOSSES, 0)))

    def __str__(self) -> str:
        """Render as `make break-it` prints it."""
        lines = {
            f"{self.ways.total()} runs, seed {SEED}": self.ways,
            "ended while the journal had": self.states,
            "reported": self.reported,
            "lost": self.losses,
        }
        return "\n".join(f"{what}: {dict(sorted(count.items()))}" for what, count in lines.items())


@dataclass
class Step:
    """A step that is broken and rerun.

    Attributes:
        folder: The folder of its payload, result and state.
        qpu: The QPU that it runs on.
        environ: Its environment, with a variable that identifies all of its processes.
        argv: The command; it accepts `--on-ambiguous`.
        control: Returns the emulator's control endpoint.
        results: The result files that it writes, one for each task.
        supervised: Whether the command runs under `qpu lease exec`.
        lost_grants: How many sessions may be open without any process knowing their ids.
        stops: How many tasks may have been cancelled on purpose: by the step, which was told to
            stop, or by the site, which released the QPU.
        before: The counters of the QPU when this object was created.
        other_qpus: The QPUs that it has run on before, with their counters as above.
        emulator: The emulator's folder, if the warm-up tasks of keepers are not to be counted.
    """

    folder: Path
    qpu: str
    environ: dict[str, str]
    argv: list[str]
    control: Callable[[], Control]
    results: list[Path]
    supervised: bool = False
    lost_grants: int = 0
    stops: int = 0
    before: dict[str, int] = field(default_factory=dict)
    other_qpus: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    emulator: Path | None = None

    def __post_init__(self) -> None:
        self.before = self._count()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def state(self) -> Path:
        return Path(self.environ["QPU_STATE"])

    def use(self, qpu: str) -> None:
        """Run on another QPU from now on."""
        self.argv[self.argv.index(self.qpu)] = qpu
        self.other_qpus.append((self.qpu, self.before))
        self.qpu = qpu
        self.before = self._count()

    def open_sessions(self) -> int:
        """Count the sessions that are open now, on all QPUs that the step has used."""
        before = [*self.other_qpus, (self.qpu, self.before)]
        return sum(self._count(qpu)["open"] - counted["open"] for qpu, counted in before)

    def counted(self) -> dict[str, int]:
        """Count the QPU's tasks and sessions since this object was created."""
        return {key: number - self.before[key] for key, number in self._count().items()}

    def _count(self, qpu: str | None = None) -> dict[str, int]:
        qpu = qpu or self.qpu
        counters = self.control().counters()["qpus"][qpu]
        tasks = counters["tasks"]
        if self.emulator is not None:
            tasks = without_warm_ups(tasks, self.emulator, qpu)
        return {**tasks, **counters["sessions"]}

    def ignore_warm_ups(self, emulator: Path) -> None:
        """Do not count the tasks with which keepers have warmed up their sessions."""
        self.emulator = emulator
        self.before = self._count()

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.argv, *options], env=self.environ, stderr=subprocess.PIPE, text=True
        )

    def wait(self, process: subprocess.Popen[str]) -> str:
        """Wait until a process has ended, and return its standard error.

        Each time that it failed to acquire the QPU, the vendor may still have opened a session.
        """
        stderr = process.communicate(timeout=60)[1]
        for failed in ("waiting for the QPU", "could not be acquired"):
            self.lost_grants += stderr.count(failed)
        return stderr

    def journal_state(self) -> str:
        """Return the state of the journal's latest record."""
        journal = Journal(self.state / "journal")
        records = [*journal.records(), *journal.records(archived=True)]
        last = max(records, key=lambda record: record.since, default=None)
        return str(last.state) if last else NO_INTENT

    def count_unrecorded_session(self) -> None:
        """Count the session of a process that was killed before it had recorded its lease."""
        if list(self.state.glob("leases/open/*.json")):
            return
        # The vendor may be about to grant what a killed process has requested.
        with suppress(AssertionError):
            wait_until(lambda: self.counted()["open"] > 0, "a session", seconds=3)
        self.lost_grants += self.counted()["open"] > 0

    def run_until_done(self) -> int:
        """Rerun the step until it has its result; return how often its task was ambiguous."""
        for ambiguous in range(6):
            options = ("--on-ambiguous", "resubmit") if ambiguous else ()
            process = self.start(*options)
            stderr = self.wait(process)
            if process.returncode == 0:
                return ambiguous
            assert "it is not known whether" in stderr, stderr
        raise AssertionError("no result after six runs")

    def processes(self) -> list[psutil.Process]:
        """Find all processes of the step."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.environ[MARK]:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_processes(self, seconds: float = 30) -> None:
        """Wait for the processes to end: a command outlives its supervisor for a moment."""
        with suppress(AssertionError):  # `require_no_losses` counts those that are left
            wait_until(lambda: not self.processes(), "the processes to end", seconds)

    def reap(self) -> None:
        """Reap in two processes at once and kill one of them; then reap again."""
        killed, other = self._start_reaper(), self._start_reaper()
        time.sleep(random.uniform(0.15, 0.25))
        killed.kill()
        killed.wait()
        other.wait(timeout=60)
        self.reap_once()

    def reap_once(self) -> None:
        """Reap, in one process."""
        self._start_reaper().wait(timeout=60)

    def _start_reaper(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "qrmi_workflows", "reap"]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(argv, env=self.environ, stdout=quiet, stderr=quiet)


def new_step(
    folder: Path,
    *,
    qpu: str,
    seed: int,
    config: Path,
    control: Callable[[], Control],
    supervised: bool = False,
    environ: Mapping[str, str] = os.environ,
    payload: Mapping[str, Any] | None = None,
    qpu_command: tuple[str, ...] = QPU_IMPATIENT,
) -> Step:
    """Create a step that runs one task with `qpu run`.

    Args:
        folder: The step's folder, which must be empty.
        qpu: The QPU.
        seed: Distinguishes its payload and its processes from those of other steps.
        config: The site's `qrmi_config.json`.
        control: Returns the emulator's control endpoint.
        supervised: Whether to run it under `qpu lease exec`.
        environ: The environment to start from.
        payload: Its payload; if `None`, a Bell circuit that differs from those of other seeds.
        qpu_command: The `qpu` command.
    """
    (folder / "out").mkdir()
    result = folder / "out" / "result.json"
    (folder / "payload.json").write_text(json.dumps(payload or bell(shots=1 + seed % 4000)))
    environ = {
        **without_coverage(environ),
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


def without_coverage(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process whose coverage is not measured.

    Coverage's own lock stays taken if Ctrl-C arrives just then, or in a child that is forked just
    then, and the process never ends.
    """
    return {name: value for name, value in environ.items() if not name.startswith("COVERAGE_")}


def write_config(emulated: Path, path: Path) -> Path:
    """Copy the emulator's qrmi_config.json, and shorten the sessions' time to live."""
    document = json.loads(emulated.read_text())
    for resource in document["resources"]:
        if resource["type"] == "ibm-quantum-compute-service":
            resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = str(SESSION_SECONDS)
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))
    return path


def require_no_losses(step: Step, tally: Tally, *, ambiguous: int, story: str) -> None:
    """Count what a step that has its result has lost; fail if it has lost anything.

    Args:
        step: The step.
        tally: Where to add what is counted.
        ambiguous: How often its task was ambiguous.
        story: What happened to the step, for the message.
    """
    step.wait_for_processes()
    step.reap()
    # A session whose tasks are still wanted is released only after they have ended.
    with suppress(AssertionError):
        wait_until(lambda: is_released(step) or step.reap_once(), "the release", seconds=20)
    after = step.counted()
    results = [QuantumResult.load(path) for path in step.results]
    losses = {
        "results lost": sum(not result.counts() for result in results),
        "results of a wrong QPU": sum(result.qpu != step.qpu for result in results),
        "tasks paid twice": max(0, after["accepted"] - len(step.results) - ambiguous - step.stops),
        "leases left open": max(0, step.open_sessions() - step.lost_grants),
        "processes left": len(step.processes()),
    }
    tally.losses.update(losses)
    tally.reported.update({"ambiguous": ambiguous, "grants lost": step.lost_grants})
    assert not any(losses.values()), f"{story}: {losses}, {after}"


def is_released(step: Step) -> bool:
    """Return whether all sessions are closed, except those whose ids no process knows."""
    return step.open_sessions() <= step.lost_grants


def wait_for_lost_sessions(control: Control) -> None:
    """Wait until the vendor has ended the sessions that no process knows."""
    wait_until(
        lambda: control.counters()["sessions"]["open"] == 0,
        "the end of the sessions",
        SESSION_SECONDS + 30,
    )
