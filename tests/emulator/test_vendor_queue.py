"""The vendor's queue: other customers' work in front of a task."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator_clients import bell, connect, primitive, wait
from qrmi import Payload, QuantumResource, TaskStatus

from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.emulator.settings_file import read_settings
from qrmi_workflows.errors import EmulatorError

SECONDS = 0.6
TTL = 0.3
CONFIG = f"""
seed = 7

[qpus.ibm_queue]
type = "ibm-quantum-compute-service"
simulator = "null"
queue_seconds = {SECONDS}
interactive_ttl_seconds = {TTL}

[qpus.ibm_patient]
type = "ibm-quantum-compute-service"
simulator = "null"
queue_seconds = {SECONDS}

[qpus.ibm_random]
type = "ibm-quantum-compute-service"
simulator = "null"
queue_seconds = [100, 10000]
"""


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("queue")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


def sampler() -> Payload:
    return primitive("sampler", [[bell()]])


def waited(emulator: Emulator, task: str) -> float:
    """Return how long a task waited, by the emulator's own times."""
    query = "SELECT started - accepted FROM tasks WHERE id=?"
    with sqlite3.connect(emulator.folder / "emulator.db") as database:
        return float(database.execute(query, (task,)).fetchone()[0])


def waits(database: Path) -> list[float]:
    """Return how long each task of an emulator has to wait, as it is stored."""
    query = "SELECT json_extract(details, '$.at_head') - accepted FROM tasks ORDER BY rowid"
    with sqlite3.connect(database) as opened:
        return [round(row[0], 3) for row in opened.execute(query)]


def run(emulator: Emulator, resource: QuantumResource) -> float:
    """Run a task, and return how long it waited."""
    task = resource.task_start(sampler())
    assert wait(resource, task) == TaskStatus.Completed
    return waited(emulator, task)


def test_each_task_without_a_session_waits(vendor):
    """Tasks that are submitted together wait at the same time, and are not run by turns."""
    resource = connect(vendor, "ibm_queue")
    tasks = [resource.task_start(sampler()) for _ in range(3)]
    assert waits(vendor.folder / "emulator.db")[-3:] == [SECONDS] * 3
    assert [wait(resource, task) for task in tasks] == [TaskStatus.Completed] * 3
    assert all(waited(vendor, task) > SECONDS - 0.01 for task in tasks)


@pytest.mark.parametrize("mode", ["dedicated", "batch"])
def test_only_the_first_task_of_an_active_session_waits(vendor, mode):
    """The others are run as soon as it has started, even if they were submitted at once."""
    resource = connect(vendor, "ibm_patient", QRMI_IBM_QCS_SESSION_MODE=mode)
    token = resource.acquire()
    first, soon = resource.task_start(sampler()), resource.task_start(sampler())
    assert wait(resource, first) == wait(resource, soon) == TaskStatus.Completed
    assert waited(vendor, first) > SECONDS - 0.01
    # A loaded machine may start a task late; one that waits is late every time.
    assert any(run(vendor, resource) < SECONDS for _ in range(5))
    resource.release(token)
    assert run(vendor, connect(vendor, "ibm_patient")) > SECONDS - 0.01


def test_a_session_that_has_lapsed_waits_again(vendor):
    """After the interactive TTL its next task is a task like all others."""
    resource = connect(vendor, "ibm_queue")
    token = resource.acquire()
    assert run(vendor, resource) > SECONDS - 0.01
    time.sleep(2 * TTL)
    assert run(vendor, resource) > SECONDS - 0.01
    resource.release(token)


def test_a_waiting_task_can_be_cancelled(vendor):
    """It never starts."""
    resource = connect(vendor, "ibm_random")
    task = resource.task_start(sampler())
    resource.task_stop(task)
    assert resource.task_status(task) == TaskStatus.Cancelled


def test_waits_are_the_same_with_the_same_seed_and_survive_a_restart(tmp_path):
    """Two emulators draw the same waits, one of them in two runs."""
    config = tmp_path / "emulator.toml"
    config.write_text(CONFIG)
    drawn = []
    for name, restarts in (("straight", False), ("restarted", True)):
        emulator = start_emulator(tmp_path / name, config=config)
        resource = connect(emulator, "ibm_random")
        tasks = [resource.task_start(sampler()) for _ in range(2)]
        if restarts:
            before = waits(emulator.folder / "emulator.db")
            emulator.process.kill()
            emulator.process.wait()
            emulator = start_emulator(tmp_path / name, config=config)
            assert waits(emulator.folder / "emulator.db") == before
        tasks.append(resource.task_start(sampler()))
        assert [resource.task_status(task) for task in tasks] == [TaskStatus.Queued] * 3
        drawn.append(waits(emulator.folder / "emulator.db"))
        emulator.stop()
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    assert all(100 <= seconds <= 10000 for seconds in drawn[0])


@pytest.mark.parametrize("value", ["-1", '"long"', "[5, 1]", "true"])
def test_a_malformed_wait_is_refused(tmp_path, value):
    """The message names the setting."""
    path = tmp_path / "emulator.toml"
    path.write_text(f'[qpus.a]\ntype = "ibm-quantum-system"\nqueue_seconds = {value}\n')
    with pytest.raises(EmulatorError, match="queue_seconds"):
        read_settings(path)


def test_a_negative_overhead_is_refused(tmp_path):
    """The message names the setting and its value."""
    path = tmp_path / "emulator.toml"
    path.write_text('[qpus.a]\ntype = "ibm-quantum-system"\noverhead_seconds = -2\n')
    with pytest.raises(EmulatorError, match="overhead_seconds = -2: must not be negative"):
        read_settings(path)
