"""The QPU of a step goes away at random moments; the step is rerun, and what was lost is counted.

It goes offline before it is acquired, while tasks wait or run, or while results are fetched; it
comes back, or does not; its status is wrong, or is not to be had; the step is killed meanwhile. No
result may be lost or paid for twice, and no emulated one may pass for a QPU's. `BREAK_RUNS` and
`BREAK_SEED` are those of `break_it`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from break_it import MARK, RUNS, SEED, Tally, without_coverage, write_config
from servers import servers, to_toml
from waiting import wait_until

from qrmi_workflows import QuantumResult
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import TaskRecord

TASKS = 3
TASK_SECONDS = 0.4
LANES = 2
EMULATED = "emulated:fez"
TYPES = ("ibm-quantum-compute-service", "ibm-quantum-system")
OFFLINE = {"kind": "status", "status": 200}


@dataclass(frozen=True)
class Pair:
    """A QPU that goes away, and the one to fall back to."""

    type: str
    server: Mapping[str, bool]
    number: int

    @property
    def own(self) -> str:
        return f"ibm_own_{self.number}"

    @property
    def next(self) -> str:
        return f"ibm_next_{self.number}"

    def render(self) -> str:
        return "".join(
            f"""
[qpus.{name}]
type = "{self.type}"
simulator = "null"
execution_seconds = {TASK_SECONDS}
lanes = {LANES}
server = {to_toml(dict(self.server))}
"""
            for name in (self.own, self.next)
        )


PAIRS = [
    Pair(type_, server, number)
    for number, (type_, server) in enumerate(
        (type_, server) for type_ in TYPES for server in servers(type_, offline=True)
    )
]


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("choice")
    (folder / "emulator.toml").write_text("".join(pair.render() for pair in PAIRS))
    with start_emulator(folder / "emulator", config=folder / "emulator.toml") as running:
        yield running


@dataclass
class MovingStep:
    """A step that is broken and rerun."""

    vendor: Emulator
    pair: Pair
    folder: Path
    seed: int
    environ: dict[str, str] = field(default_factory=dict)
    fallback: str = ""
    before: dict[str, Counter[str]] = field(default_factory=dict)
    ambiguous: int = 0
    said: str = ""

    def __post_init__(self) -> None:
        config = write_config(self.vendor.config_path, self.folder / "qrmi_config.json")
        self.environ = {
            **without_coverage(os.environ),
            MARK: f"{os.getpid()} {self.seed}",
            "PYTHONPATH": str(Path(__file__).parent),
            "QPU_STATE": str(self.folder / "state"),
            "QPU_CONFIG": str(config),
            "QPU_LANES": str(TASKS),
            "QPU_FALLBACK_WAIT": "6",
            "QPU_ON_STOP": "leave",
        }
        self.fallback = self.fallback or self.pair.next
        self.before = self.count()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def results(self) -> list[Path]:
        return [self.out / f"{number}.json" for number in range(TASKS)]

    def count(self) -> dict[str, Counter[str]]:
        """Count the tasks of both QPUs by state; `paid` are those that their vendor bills."""
        found = {}
        bills = self.vendor.billing()["qpus"]
        for qpu in (self.pair.own, self.pair.next):
            counts = Counter(each["state"] for each in bills[qpu]["tasks"])
            counts["paid"] = sum(each["usage_seconds"] > 0 for each in bills[qpu]["tasks"])
            found[qpu] = counts
        return found

    def start(self, *options: str) -> subprocess.Popen[str]:
        self.out.mkdir(exist_ok=True)
        program = Path(__file__).with_name("moving_tasks.py")
        argv = [sys.executable, str(program), self.pair.own, self.fallback, str(self.out)]
        argv += [str(TASKS), str(self.seed)]
        return subprocess.Popen(
            [*argv, *options], env=self.environ, stderr=subprocess.PIPE, text=True
        )

    def wait(self, process: subprocess.Popen[str]) -> None:
        self.said = process.communicate(timeout=120)[1]

    def records(self) -> list[TaskRecord]:
        journal = Journal(self.folder / "state" / "journal")
        return list(journal.records(on_error=lambda _: None))

    def states(self) -> list[str]:
        return [str(record.state) for record in self.records()]

    def set_state(self, state: str) -> None:
        path = f"/qpus/{self.pair.own}"
        self.vendor.control.ask("PATCH", path, {"availability": state})

    def fault(self, **rule: Any) -> None:
        self.vendor.control.ask("POST", "/faults", rule)

    def repair(self) -> None:
        """Let everything work again."""
        self.vendor.control.ask("DELETE", "/faults")
        self.set_state("online")

    def run_until_done(self) -> None:
        """Rerun the step until it has all results."""
        for _ in range(5):
            process = self.start(*(["--on-ambiguous"] if self.ambiguous else []))
            self.wait(process)
            if process.returncode == 0:
                return
            if "it is not known whether" in self.said:
                self.ambiguous += TASKS
            else:  # the QPU was back when it was seen that the task had failed with it
                assert "failed at the vendor" in self.said, self.said
        raise AssertionError(f"no result after five runs: {self.said}")


def before(step: MovingStep, dice: random.Random) -> None:
    """It is offline from the start."""
    step.set_state("offline")
    step.wait(step.start())


def while_it_is_acquired(step: MovingStep, dice: random.Random) -> None:
    """It goes offline between the choice and the first task."""
    step.fault(kind="delay", seconds=0.4, route="POST */sessions")
    process = step.start()
    time.sleep(dice.uniform(0.2, 1.2))
    step.set_state("offline")
    step.wait(process)


def during_a_task(step: MovingStep, dice: random.Random) -> None:
    """It goes offline once it has tasks; it may come back."""
    process = step.start()
    wait_until(lambda: "submitted" in step.states() or process.poll() is not None, "the submission")
    time.sleep(dice.uniform(0.0, TASKS * TASK_SECONDS))
    step.set_state("offline")
    if dice.random() < 0.4:
        time.sleep(dice.uniform(0.0, 1.5))
        step.set_state("online")
    step.wait(process)


def during_the_fetch(step: MovingStep, dice: random.Random) -> None:
    """It goes offline while results are fetched, which fails for a while."""
    kind = dice.choice(["drop", "status"])
    results = "GET */results*"
    step.fault(kind=kind, route=results, count=dice.randint(1, 4), status=503)
    during_a_task(step, dice)


def silent(step: MovingStep, dice: random.Random) -> None:
    """Its vendor cannot be reached for a while."""
    process = step.start()
    time.sleep(dice.uniform(0.2, 1.5))
    step.fault(kind=dice.choice(["drop", "status"]), status=503, route="GET *")
    if dice.random() < 0.5:
        step.set_state("offline")
    time.sleep(dice.uniform(0.5, 3.0))
    step.vendor.control.ask("DELETE", "/faults")
    step.wait(process)


def lies(step: MovingStep, dice: random.Random) -> None:
    """Its status says that it is offline, while it runs tasks; or is not to be understood."""
    own = step.pair.own
    if step.pair.type == "ibm-quantum-system":
        body, route = json.dumps({"name": own, "status": "offline"}), f"GET */backends/{own}"
    else:
        devices = [
            {"name": name, "status": {"name": state}, "queue_length": 0}
            for name, state in ((own, "offline"), (step.pair.next, "online"))
        ]
        body, route = json.dumps({"devices": devices}), "GET */backends"
    if dice.random() < 0.3:
        body = body[: len(body) // 2]
    process = step.start()
    time.sleep(dice.uniform(0.0, 1.5))
    step.fault(kind="status", status=200, body=body, route=route, count=dice.randint(1, 40))
    step.wait(process)


def killed(step: MovingStep, dice: random.Random) -> None:
    """The step is killed while its QPU is offline, or just before."""
    process = step.start()
    if dice.random() < 0.7:
        wait_until(
            lambda: {"submitted", "moved"} & {*step.states()} or process.poll() is not None,
            "a task",
        )
    time.sleep(dice.uniform(0.0, 1.0))
    step.set_state("offline")
    time.sleep(dice.uniform(0.0, 1.5))
    if dice.random() < 0.5:
        step.set_state("online")
    process.send_signal(dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    step.wait(process)
    if dice.random() < 0.5:
        step.set_state(dice.choice(["offline", "online"]))
        step.wait(step.start())


def emulated(step: MovingStep, dice: random.Random) -> None:
    """It falls back to an emulated QPU, and is killed before it has all results."""
    step.fallback = EMULATED
    step.set_state("offline")
    process = step.start()
    wait_until(lambda: "completed" in step.states() or process.poll() is not None, "a result", 90)
    process.send_signal(signal.SIGKILL)
    step.wait(process)
    for path in step.results:  # as if the step had not come to write it
        path.unlink(missing_ok=True)


WAYS: tuple[Callable[[MovingStep, random.Random], None], ...] = (
    before, while_it_is_acquired, *[during_a_task] * 4, *[during_the_fetch] * 2, *[silent] * 2,
    *[lies] * 2, *[killed] * 4,
)  # fmt: skip
if RUNS >= 300:
    WAYS = (*WAYS, emulated)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(RUNS // 2))
def test_nothing_is_lost_when_a_qpu_goes_away(
    vendor: Emulator, tally: Tally, tmp_path: Path, number: int
):
    seed = SEED + number
    dice = random.Random(seed)
    step = MovingStep(vendor, dice.choice(PAIRS), tmp_path, seed)
    way = emulated if number == 0 else dice.choice(WAYS)

    way(step, dice)

    story = f"seed {seed}: {way.__name__} on {step.pair}: {step.said}"
    tally.ways[way.__name__] += 1
    step.ambiguous += TASKS * ("it is not known whether" in step.said)
    step.repair()
    if not all(path.exists() for path in step.results):
        step.run_until_done()
    require_no_losses(step, tally, story)


def require_no_losses(step: MovingStep, tally: Tally, story: str) -> None:
    """Count what was lost: all tasks that were ever on a QPU must be those of the results."""
    wait_until(lambda: not unfinished(step), "the end of all tasks")
    results = [QuantumResult.load(path) for path in step.results]
    after = step.count()
    paid, completed = (
        sum(after[qpu][what] - step.before[qpu][what] for qpu in after)
        for what in ("paid", "completed")
    )
    of_qpus = Counter(result.qpu for result in results)
    real = sum(of_qpus[qpu] for qpu in after)
    wrong = [each for each in of_qpus if each not in (step.pair.own, step.fallback)]
    losses = {
        "results lost": sum(not result.counts() for result in results),
        "results of a wrong QPU": len(wrong),
        "emulated results taken for real": of_qpus[EMULATED] + (completed < real),
        "tasks paid twice": max(0, paid - real - step.ambiguous),
    }
    tally.losses.update(losses)
    tally.reported.update({"ambiguous": step.ambiguous})
    left = "\n".join(map(str, step.records()))
    assert not any(losses.values()), f"{losses}, {of_qpus}, {after}: {story}\n{step.said}\n{left}"


def unfinished(step: MovingStep) -> int:
    qpus = step.vendor.counters()["qpus"]
    return sum(
        qpus[qpu]["tasks"]["queued"] + qpus[qpu]["tasks"]["running"]
        for qpu in (step.pair.own, step.pair.next)
    )
