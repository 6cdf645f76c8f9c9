"""Kill, starve and confuse a step at random moments, rerun it, and count what was lost."""

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
    new_step,
    require_no_losses,
    wait_for_lost_sessions,
    write_config,
)
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator

TASK_SECONDS = 0.25, 1.5  # shorter and longer than a rerun needs to start
QPUS = 40  # so many that a lost session has ended before its QPU is used again
ROUTES = ("POST */jobs", "GET */jobs/*", "POST */sessions", "PATCH */sessions/*", "*")
CONFIG = "".join(
    f"""
[qpus.ibm_{number}]
type = "ibm-quantum-compute-service"
simulator = "null"
execution_seconds = {TASK_SECONDS[number % 2]}
lanes = 5
"""
    for number in range(QPUS)
)
STOPS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SLOW = {"kind": "delay", "seconds": 0.4}
FAULTS_BY_STATE: dict[str, list[dict[str, Any]]] = {
    NO_INTENT: [{"route": "POST */sessions", **SLOW}],
    "intent": [{"route": "POST */jobs", **SLOW}],
    "submitted": [],
    "completed": [{"route": "PATCH */sessions/*", **SLOW}],
    "failed": [
        {"route": "POST */jobs", "kind": "status", "status": 400, "count": 1},
        {"route": "PATCH */sessions/*", **SLOW},
    ],
}
"""Faults that keep a step in a state of its journal for long enough to be ended in it."""


@dataclass
class Vendor:
    """An emulator that can be killed and restarted."""

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
        try:
            yield
        finally:
            self.emulator.control.ask("DELETE", "/faults")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    folder = tmp_path_factory.mktemp("break")
    (folder / "emulator.toml").write_text(CONFIG)
    running = start_emulator(folder / "emulator", config=folder / "emulator.toml")
    vendor = Vendor(running, folder)
    yield vendor
    vendor.emulator.stop()


def end_at_random(step: Step, vendor: Vendor, dice: random.Random) -> str:
    process = step.start(*dice.choice([(), ("--on-stop", "leave")]))
    time.sleep(random_moment(step, dice))
    return end(step, process, dice)


def end_in_a_state(step: Step, vendor: Vendor, dice: random.Random) -> str:
    target = dice.choice(STATES)
    with vendor.faults(*FAULTS_BY_STATE[target]):
        process = step.start(*dice.choice([(), ("--on-stop", "leave")]))
        wait_until(
            lambda: step.journal_state() == target or process.poll() is not None,
            f"the state {target}",
        )
        time.sleep(
            dice.uniform(0.0, {"submitted": task_seconds(step), NO_INTENT: 0.8}.get(target, 0.3))
        )
        return end(step, process, dice)


def end(step: Step, process: subprocess.Popen[str], dice: random.Random) -> str:
    """Signal some or all of the step's processes; return the state of its journal before."""
    number, state = dice.choice(STOPS), step.journal_state()
    step.stops += number != signal.SIGKILL and "leave" not in process.args
    processes = [process, *step.processes()]
    for each in dice.choice([processes[:1], processes[-1:], processes]):
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)
    step.wait(process)
    if number == signal.SIGKILL:
        step.wait_for_processes()
        step.count_unrecorded_session()
    return state


def random_moment(step: Step, dice: random.Random) -> float:
    return dice.uniform(0.05, 0.3 + task_seconds(step) + 0.3 * step.supervised)


def task_seconds(step: Step) -> float:
    return TASK_SECONDS[int(step.qpu.removeprefix("ibm_")) % 2]


def restart_vendor(step: Step, vendor: Vendor, dice: random.Random) -> str:
    process = step.start()
    time.sleep(random_moment(step, dice))
    state = step.journal_state()
    vendor.restart()
    step.wait(process)
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
        step.wait(step.start())


def read_only_journal(step: Step, vendor: Vendor, dice: random.Random) -> None:
    # Permissions do not stop root, but a file in place of the folder does.
    step.state.write_text("not a folder")
    process = step.start()
    stderr = step.wait(process)
    assert process.returncode == 1
    assert "journal" in stderr
    step.state.unlink()


def full_disk(step: Step, vendor: Vendor, dice: random.Random) -> str:
    """Fill the disk of the state, the result or both at a random moment; free it afterwards."""
    folders = dice.choice([[step.state], [step.out], [step.state, step.out]])
    with ExitStack() as disks:
        for folder in folders:
            disks.enter_context(small_disk(folder))
        process = step.start()
        time.sleep(random_moment(step, dice))
        state = step.journal_state()
        for folder in folders:
            fill(folder / "filler")
        step.wait(process)
        for folder in folders:
            (folder / "filler").unlink()
    return state


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk on a folder; at the end, move its files to the disk below it."""
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
if os.geteuid() == 0:  # only root can mount a disk
    WAYS = (*WAYS, full_disk, full_disk)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", range(RUNS))
def test_nothing_is_lost_and_nothing_is_left_behind(
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
    require_no_losses(step, tally, ambiguous=ambiguous, story=story)


def test_lost_sessions_end_at_their_time_to_live(vendor: Vendor):
    wait_for_lost_sessions(vendor.emulator.control)


if RUNS >= 300:  # with fewer runs, some states may be missed

    def test_every_state_of_the_journal_was_hit(tally: Tally):
        assert set(tally.states) == set(STATES)
