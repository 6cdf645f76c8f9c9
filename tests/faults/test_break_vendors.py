"""Kill steps on the servers of every vendor, rerun them, and count what was lost.

Each server is an emulator with one of its `ServerSettings` inverted. A step is killed mostly while
its task runs at the vendor, and is rerun in the same way, under a lease that the site has acquired,
or on another QPU; or all lanes of its QPU are in use for longer than any deadline.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import qrmi
from break_it import (
    RUNS,
    SEED,
    Step,
    Tally,
    new_step,
    require_no_losses,
    write_config,
)
from fault_payloads import bell, pulse
from munge_daemon import running_munged
from servers import servers, to_toml
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator

TASK_SECONDS = 1.5  # longer than a rerun needs to start
LANES = 2
BUSY_SECONDS = 5  # longer than every deadline of `QPU_IMPATIENT`
JOB = {"QRMI_JOB_TIMEOUT_SECONDS": "600", "QRMI_JOB_UID": str(os.getuid()), "QRMI_JOB_ID": "1"}
"""What a site's plugin tells its own handles."""
NAMES = {
    "ibm-quantum-compute-service": ("ibm_a", "ibm_b"),
    "ibm-quantum-system": ("ibm_a", "ibm_b"),
    "pasqal-cloud": ("FRESNEL", "FRESNEL_CAN1"),
    "pasqal-local": ("local_a", "local_b"),
}
MEMBERS = {
    "ibm-quantum-compute-service": qrmi.ResourceType.IBMQuantumComputeService,
    "ibm-quantum-system": qrmi.ResourceType.IBMQuantumSystem,
    "pasqal-cloud": qrmi.ResourceType.PasqalCloud,
    "pasqal-local": qrmi.ResourceType.PasqalLocal,
}
SERVERS = [(type_, server) for type_ in NAMES for server in servers(type_)]


@dataclass
class Vendor:
    """One vendor's server with two QPUs."""

    type: str
    emulator: Emulator

    def new_step(self, folder: Path, seed: int) -> Step:
        return new_step(
            folder,
            qpu=NAMES[self.type][0],
            seed=seed,
            config=write_config(self.emulator.config_path, folder / "qrmi_config.json"),
            control=lambda: self.emulator.control,
            payload=self.payload(NAMES[self.type][0], seed),
        )

    def payload(self, qpu: str, seed: int) -> dict[str, Any]:
        """Return a payload that differs from those of other seeds in its number of shots."""
        shots = 1 + seed % 500
        if self.type.startswith("ibm"):
            return bell(shots)
        return pulse(json.loads(self.handle(qpu).target().value)[0]["specs"], shots)

    def handle(self, qpu: str) -> qrmi.QuantumResource:
        return qrmi.QuantumResource.from_config(qpu, MEMBERS[self.type], self.settings(qpu) | JOB)

    def settings(self, qpu: str) -> dict[str, str]:
        document = json.loads(self.emulator.config_path.read_text())
        found: dict[str, str] = next(
            each["environment"] for each in document["resources"] if each["name"] == qpu
        )
        return found


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Vendor]]:
    """Start the servers as they are needed."""
    started: dict[int, Vendor] = {}
    with ExitStack() as stack:
        if os.getuid() == 0:  # the wardens of Pasqal Local need it
            stack.enter_context(running_munged())

        def get(number: int) -> Vendor:
            if number not in started:
                type_, server = SERVERS[number]
                folder = tmp_path_factory.mktemp("vendor")
                (folder / "emulator.toml").write_text(render(type_, server))
                running = start_emulator(folder / "state", config=folder / "emulator.toml")
                started[number] = Vendor(type_, stack.enter_context(running))
            return started[number]

        yield get


def render(type_: str, server: dict[str, bool]) -> str:
    return "".join(
        f"""
[qpus.{qpu}]
type = "{type_}"
simulator = "null"
execution_seconds = {TASK_SECONDS}
lanes = {LANES}
server = {to_toml(server)}
"""
        for qpu in NAMES[type_]
    )


def kill_while_it_runs(step: Step, dice: random.Random) -> str:
    """End the step, mostly with SIGKILL and while the vendor has its task."""
    options = dice.choice([(), ("--on-stop", "leave")])
    process = step.start(*options)
    if dice.random() < 0.8:
        wait_until(
            lambda: step.journal_state() == "submitted" or process.poll() is not None,
            "the submission",
        )
        time.sleep(dice.uniform(0.0, TASK_SECONDS))
    else:
        time.sleep(dice.uniform(0.05, 0.5))
    state = step.journal_state()
    number = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    step.stops += number == signal.SIGTERM and not options
    process.send_signal(number)
    step.wait(process)
    step.count_unrecorded_session()
    return state


def rerun(step: Step, vendor: Vendor, dice: random.Random) -> str:
    """Kill the step up to three times."""
    state = kill_while_it_runs(step, dice)
    for _ in range(dice.randint(0, 2)):
        if not step.results[0].exists():  # another run of a step that has succeeded is a new task
            state = kill_while_it_runs(step, dice)
    return state


def move(step: Step, vendor: Vendor, dice: random.Random) -> str:
    """Kill the step, and rerun it on another QPU: the result must be that QPU's."""
    state = kill_while_it_runs(step, dice)
    other = NAMES[vendor.type][1]
    if not step.results[0].exists():
        (step.folder / "payload.json").write_text(json.dumps(vendor.payload(other, SEED)))
        step.use(other)
    return state


def adopted(step: Step, vendor: Vendor, dice: random.Random) -> str:
    """Kill the step under a lease of the site, which is released or lasts until the rerun."""
    with site_lease(step, vendor):
        state = kill_while_it_runs(step, dice)
        if dice.random() < 0.5 and not step.results[0].exists():
            step.run_until_done()
    return state


@contextmanager
def site_lease(step: Step, vendor: Vendor) -> Iterator[None]:
    """Acquire the QPU as a site's plugin does, and describe it in the step's environment."""
    handle, settings = vendor.handle(step.qpu), vendor.settings(step.qpu)
    token = handle.acquire()
    own = dict(step.environ)
    del step.environ["QPU_CONFIG"]
    step.environ |= {f"{step.qpu}_{key}": value for key, value in settings.items()}
    step.environ |= {
        "QRMI_JOB_QPU_RESOURCES": step.qpu,
        "QRMI_JOB_QPU_TYPES": vendor.type,
        f"{step.qpu}_QRMI_JOB_ACQUISITION_TOKEN": token,
    }
    try:
        yield
    finally:
        handle.release(token)
        step.stops += 1
        step.environ.clear()
        step.environ.update(own)


def busy(step: Step, vendor: Vendor, dice: random.Random) -> str:
    """Keep the QPU busy for longer than any deadline while the step wants a lane."""
    state = "intent"
    with ExitStack() as stack:
        if vendor.type == "ibm-quantum-system" and dice.random() < 0.5:
            make_available(vendor, step.qpu, "reserved")
        else:
            make_available(vendor, step.qpu, "paused")
            if vendor.type == "ibm-quantum-system":
                stack.callback(delete_tasks, step, vendor, fill_lanes(step, vendor))
        stack.callback(make_available, vendor, step.qpu, "online")
        process = step.start("--on-stop", "leave")
        time.sleep(dice.uniform(1, BUSY_SECONDS))
        if dice.random() < 0.5:
            state = step.journal_state()
            process.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
            step.wait(process)
            step.count_unrecorded_session()
            return state
    step.wait(process)
    return state


def make_available(vendor: Vendor, qpu: str, availability: str) -> None:
    vendor.emulator.control.ask("PATCH", f"/qpus/{qpu}", {"availability": availability})


def fill_lanes(step: Step, vendor: Vendor) -> list[str]:
    """Put a task into each lane; they run once the QPU is available. Return their ids."""
    handle = vendor.handle(step.qpu)
    program = qrmi.Payload.QiskitPrimitive(
        input=json.dumps(bell(1000)["parameters"]), program_id="sampler"
    )
    tasks = [handle.task_start(program) for _ in range(LANES)]
    for counter in ("accepted", "completed"):
        step.before[counter] += LANES
    return tasks


def delete_tasks(step: Step, vendor: Vendor, tasks: list[str]) -> None:
    """Delete tasks once they have completed: on some servers they hold their lanes until then."""
    handle = vendor.handle(step.qpu)
    for task in tasks:
        wait_until(
            lambda task=task: handle.task_status(task) == qrmi.TaskStatus.Completed, "the task"
        )
        handle.task_stop(task)


WAYS: tuple[Callable[[Step, Vendor, random.Random], str], ...] = (rerun, rerun, move, adopted, busy)


def numbered(number: int) -> object:
    """Number a run; those on Pasqal Local need MUNGE, and root to start it."""
    type_, _ = SERVERS[number % len(SERVERS)]
    marks = [pytest.mark.slurm, pytest.mark.root] if type_ == "pasqal-local" else []
    return pytest.param(number, marks=marks)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [numbered(n) for n in range(max(len(SERVERS), RUNS // 3))])
def test_nothing_is_lost_on_any_server(
    vendors: Callable[[int], Vendor], tally: Tally, tmp_path: Path, number: int
):
    seed = SEED + number
    dice = random.Random(seed)
    vendor = vendors(number % len(SERVERS))
    step = vendor.new_step(tmp_path, seed)
    way = dice.choice(WAYS)

    state = way(step, vendor, dice)

    tally.ways[f"{way.__name__} on {vendor.type}"] += 1
    tally.states[state] += 1
    ambiguous = 0 if step.results[0].exists() else step.run_until_done()
    story = f"seed {seed}: {way.__name__} in {state} on {SERVERS[number % len(SERVERS)]}"
    require_no_losses(step, tally, ambiguous=ambiguous, story=story)
