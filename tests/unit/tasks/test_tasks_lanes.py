"""The gate to a QPU's lanes, among threads and processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qrmi_workflows.tasks.lanes import LaneSemaphore, lane_semaphore

HOLDER = """
import sys, time
from pathlib import Path
from qrmi_workflows.tasks.lanes import LaneSemaphore
gate = LaneSemaphore(int(sys.argv[2]), Path(sys.argv[1]))
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    with gate.lane():
        start = time.monotonic()
        time.sleep(float(sys.argv[4]))
        print(start, time.monotonic(), flush=True)
"""


def start_holder(folder: Path, lanes: int, times: int, seconds: float) -> subprocess.Popen[str]:
    """A process that takes a lane several times, and tells when it had it."""
    arguments = [str(folder), str(lanes), str(times), str(seconds)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many spans overlap at most."""
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def test_processes_together_take_as_many_lanes_as_there_are(tmp_path: Path):
    holders = [start_holder(tmp_path / "lanes", 2, 8, 0.01) for _ in range(4)]
    spans = []
    for holder in holders:
        out, _ = holder.communicate(timeout=30)
        spans += [tuple(map(float, line.split())) for line in out.splitlines()]

    assert len(spans) == 32
    assert most_at_once(spans) == 2


def test_a_killed_process_leaves_its_lane_to_others(tmp_path: Path):
    holder = start_holder(tmp_path, 1, 1, 60)
    gate = LaneSemaphore(1, tmp_path)
    try:
        waiting = threading.Event()
        waiting.set()
        with gate.lane(waiting):
            pass  # the other has the lane: this wait was ended
        holder.send_signal(signal.SIGKILL)
        before = time.monotonic()
        with gate.lane():
            assert time.monotonic() - before < 5
    finally:
        holder.kill()
        holder.communicate()


def test_threads_of_one_process_share_its_lanes(tmp_path: Path):
    gate = LaneSemaphore(2, tmp_path)
    inside: list[int] = []
    most: list[int] = []

    def take(_: int) -> None:
        with gate.lane():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(take, range(24)))

    assert max(most) == 2


def test_tasks_within_a_call_share_its_lane_and_take_no_other(tmp_path: Path):
    gate, other = LaneSemaphore(1, tmp_path), LaneSemaphore(1, tmp_path)
    taken = threading.Event()

    def take() -> None:
        with other.lane():
            taken.set()

    with gate.call(), gate.call():
        with gate.lane():
            pass
        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.05)
    assert taken.wait(5)
    thread.join()


def test_a_call_ends_when_its_last_task_does(tmp_path: Path):
    gate = LaneSemaphore(1, tmp_path)
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def task() -> None:
        with gate.lane():
            entered.set()
            leave.wait(10)

    def call() -> None:
        with gate.call():
            threading.Thread(target=task).start()
            entered.wait(10)
        ended.set()

    threading.Thread(target=call).start()

    assert entered.wait(5)
    assert not ended.wait(0.05)
    leave.set()
    assert ended.wait(5)


def test_a_folder_that_cannot_be_used_costs_the_sharing_alone(tmp_path, caplog):
    (tmp_path / "file").touch()

    with LaneSemaphore(1, tmp_path / "file" / "lanes").lane():
        pass

    assert "not shared with other processes" in caplog.text


@pytest.mark.parametrize("folder", [None, "lanes"])
def test_a_process_has_one_gate_for_each_folder(tmp_path, folder):
    path = folder and tmp_path / folder

    assert (lane_semaphore(2, path) is lane_semaphore(2, path)) is (path is not None)
