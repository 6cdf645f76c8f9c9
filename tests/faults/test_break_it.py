"""Kill, starve and confuse a step at random moments; rerun it; count what was lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from break_it import (
    NO_INTENT,
    RUNS,
    SEED,
    STATES,
    Step,
    Tally,
    await_no_session,
    judge,
    new_step,
    write_config,
)
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator

TASK_SECONDS = 0.25
QPUS = 40  # so many that a session whose grant was lost has ended when its QPU's turn comes again
ROUTES = ("POST */jobs", "GET */jobs/*", "POST */sessions", "PATCH */sessions/*", "*")
CONFIG = "".join(
    f"""
[qpus.ibm_{number}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = {TASK_SECONDS}
lanes = 5
"""
    for number in range(QPUS)
)
STOPS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SLOW = {"kind": "delay", "seconds": 0.4}
SLOWED: dict[str, list[dict[str, Any]]] = {
    NO_INTENT: [{"route": "POST */sessions", **SLOW}],
    "intent": [{"route": "POST */jobs", **SLOW}],
    "submitted": [],
    "completed": [{"route": "PATCH */sessions/*", **SLOW}],
    "failed": [
        {"route": "POST */jobs", "kind": "status", "status": 400, "count": 1},
        {"route": "PATCH */sessions/*", **SLOW},
    ],
}
"""What keeps a step in a state of its journal for long enough to be ended in it."""


@dataclass
class Vendor:
    """One emulator that may be killed."""

    emulator: Emulator
    folder: Path

    def restart(self) -> None:
        self.emulator.process.kill()
        self.emulator.process.wait()
        self.emulator = start_emulator(self.emulator.folder, config=self.folder / "emulator.toml")

    @contextmanager
    def faults(self, *rules: dict[str, Any]) -> Iterator[None]:
        for rule in rules:
            self.emulator.control.ask("POST", "/faults", rule)
        yield
        self.emulator.control.ask("DELETE", "/faults")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    folder = tmp_path_factory.mktemp("break")
    (folder / "emulator.toml").write_text(CONFIG)
    running = start_emulator(folder / "emulator", config=folder / "emulator.toml")
    made = Vendor(running, folder)
    yield made
    made.emulator.stop()


def end_at_random(step: Step, vendor: Vendor, dice: random.Random) -> str:
    process = step.start(*dice.choice([(), ("--on-stop", "leave")]))
    time.sleep(random_moment(step, dice))
    return end(step, process, dice)


def end_in_a_state(step: Step, vendor: Vendor, dice: random.Random) -> str:
    wanted = dice.choice(STATES)
    with vendor.faults(*SLOWED[wanted]):
        process = step.start(*dice.choice([(), ("--on-stop", "leave")]))
        wait_until(
            lambda: step.journal_state() == wanted or process.poll() is not None,
            f"the state {wanted}",
        )
        time.sleep(dice.uniform(0.0, {"submitted": TASK_SECONDS, NO_INTENT: 0.8}.get(wanted, 0.3)))
        return end(step, process, dice)


def end(step: Step, process: subprocess.Popen[str], dice: random.Random) -> str:
    """Signal the step's processes, or some of them; return how far its journal had come."""
    number, state = dice.choice(STOPS), step.journal_state()
    everyone = [process, *step.processes()]
    for victim in dice.choice([everyone[:1], everyone[-1:], everyone]):
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
    step.hear(process)
    if number == signal.SIGKILL:
        step.wait_for_processes()
        step.note_lost_grant()
    return state


def random_moment(step: Step, dice: random.Random) -> float:
    return dice.uniform(0.05, 0.3 + TASK_SECONDS + 0.3 * step.supervised)


def restart_vendor(step: Step, vendor: Vendor, dice: random.Random) -> str:
    process = step.start()
    time.sleep(random_moment(step, dice))
    state = step.journal_state()
    vendor.restart()
    step.hear(process)
    return state


def fail(step: Step, vendor: Vendor, dice: random.Random) -> None:
    status = dice.choice([429, 500, 502, 503])
    when = "before" if status == 429 else dice.choice(["before", "after"])
    inject(step, vendor, dice, kind="status", status=status, when=when)


def cut_off(step: Step, vendor: Vendor, dice: random.Random) -> None:
    inject(step, vendor, dice, kind=dice.choice(["drop", "malformed"]))


def hang(step: Step, vendor: Vendor, dice: random.Random) -> None:
    inject(step, vendor, dice, kind="hang", when="before")


def inject(step: Step, vendor: Vendor, dice: random.Random, **rule: object) -> None:
    rule |= {"route": dice.choice(ROUTES), "count": dice.randint(1, 3)}
    rule = {"after": dice.randint(0, 3), "when": dice.choice(["before", "after"])} | rule
    with vendor.faults(rule):
        step.hear(step.start())


def read_only_journal(step: Step, vendor: Vendor, dice: random.Random) -> None:
    step.state.write_text("not a folder")  # root ignores permissions; nobody writes below a file
    process = step.start()
    said = step.hear(process)
    assert process.returncode == 1
    assert "journal" in said
    step.state.unlink()


def full_disk(step: Step, vendor: Vendor, dice: random.Random) -> str:
    """Fill the disk of the state, the result or both at a random moment; make room afterwards."""
    folders = dice.choice([[step.state], [step.out], [step.state, step.out]])
    with ExitStack() as disks:
        for folder in folders:
            disks.enter_context(small_disk(folder))
        process = step.start()
        time.sleep(random_moment(step, dice))
        state = step.journal_state()
        for folder in folders:
            fill(folder / "filler")
        step.hear(process)
        for folder in folders:
            (folder / "filler").unlink()
    return state


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Make a folder a disk of its own; at the end its files move to where there is more room."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    kept = folder.with_suffix(".kept")
    try:
        yield
        shutil.copytree(folder, kept)
    finally:
        subprocess.run(["umount", folder], check=True)
    folder.rmdir()
    kept.rename(folder)


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 1024)


WAYS: tuple[Callable[[Step, Vendor, random.Random], str | None], ...] = (
    *[end_at_random] * 5, *[end_in_a_state] * 5, restart_vendor, fail, fail, cut_off, cut_off,
    hang, hang, read_only_journal,
)  # fmt: skip
if os.geteuid() == 0:  # who else may mount a small disk
    WAYS = (*WAYS, full_disk, full_disk)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", range(RUNS))
def test_nothing_is_lost_and_nothing_is_left(
    vendor: Vendor, tally: Tally, tmp_path: Path, number: int
):
    seed = SEED + number
    dice = random.Random(seed)
    step = new_step(
        tmp_path,
        qpu=f"ibm_{number % QPUS}",
        seed=seed,
        config=write_config(vendor.emulator.config_path, tmp_path / "qrmi_config.json"),
        control=lambda: vendor.emulator.control,
        supervised=dice.random() < 0.3,
    )
    way = dice.choice(WAYS)

    state = way(step, vendor, dice)

    tally.ways[way.__name__] += 1
    tally.states.update([state] if state else [])
    ambiguous = 0 if step.results[0].exists() else step.run_until_done()
    story = f"seed {seed}: {way.__name__} in {state}, supervised {step.supervised}"
    judge(step, tally, ambiguous=ambiguous, story=story)


def test_sessions_whose_grant_was_lost_end_by_themselves(vendor: Vendor):
    await_no_session(vendor.emulator.control)


if RUNS >= 300:  # fewer need not end in every state

    def test_every_state_of_the_journal_was_hit(tally: Tally):
        assert set(tally.states) == set(STATES)
