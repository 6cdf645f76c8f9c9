"""A QPU's lanes, shared by threads and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qrmi_workflows.state.locks import is_locked
from qrmi_workflows.tasks.lanes import LaneSemaphore, lane_semaphore

HOLD = """
import sys, time
from pathlib import Path
from qrmi_workflows.tasks.lanes import LaneSemaphore
lanes = LaneSemaphore(int(sys.argv[2]), Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    with lanes.hold_for_task():
        start = time.monotonic()
        time.sleep(0.02)
        print(start, time.monotonic(), flush=True)
"""
KEEP = """
import sys
from pathlib import Path
from qrmi_workflows.tasks.lanes import LaneSemaphore
with LaneSemaphore(1, Path(sys.argv[1])).hold_for_task():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program, and wait until it is ready; it continues after a line of input."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """Return how many spans overlap at most."""
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def test_processes_together_never_hold_more_lanes_than_the_qpu_has(tmp_path: Path):
    holders = [start(HOLD, tmp_path / "lanes", 2, 8) for _ in range(4)]
    for holder in holders:
        holder.stdin.write("\n")
        holder.stdin.flush()
    spans = []
    for holder in holders:
        out, _ = holder.communicate(timeout=60)
        spans += [tuple(map(float, line.split())) for line in out.splitlines()]

    assert len(spans) == 32
    assert most_at_once(spans) == 2


def test_the_lane_of_a_killed_process_is_free_again(tmp_path: Path):
    keeper = start(KEEP, tmp_path)
    lanes, taken = LaneSemaphore(1, tmp_path), threading.Event()

    def take() -> None:
        with lanes.hold_for_task():
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    assert not taken.wait(0.05)
    keeper.kill()
    keeper.communicate()
    assert taken.wait(60)


def test_threads_of_one_process_share_its_lanes(tmp_path: Path):
    """No more than two are inside at once; the barrier breaks unless two meet there."""
    lanes = LaneSemaphore(2, tmp_path)
    pair = threading.Barrier(2, timeout=60)
    inside: list[int] = []
    most: list[int] = []

    def take(_: int) -> None:
        with lanes.hold_for_task():
            inside.append(1)
            pair.wait()
            most.append(len(inside))
            pair.wait()
            inside.pop()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(take, range(24)))

    assert max(most) == 2


def test_tasks_within_a_call_share_its_lane(tmp_path: Path):
    """Otherwise the call would wait for a lane that only its own end can free."""
    lanes, others = LaneSemaphore(1, tmp_path), LaneSemaphore(1, tmp_path)
    taken = threading.Event()

    def take() -> None:
        with others.hold_for_task():
            taken.set()

    with lanes.hold_for_call(), lanes.hold_for_call():
        with lanes.hold_for_task():
            pass
        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.05)
    assert taken.wait(60)
    thread.join()


def test_a_call_ends_when_its_last_task_does(tmp_path: Path):
    lanes = LaneSemaphore(1, tmp_path)
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def task() -> None:
        with lanes.hold_for_task():
            entered.set()
            leave.wait(60)

    def call() -> None:
        with lanes.hold_for_call():
            threading.Thread(target=task).start()
            entered.wait(60)
        ended.set()

    threading.Thread(target=call).start()

    assert entered.wait(60)
    assert not ended.wait(0.05)
    leave.set()
    assert ended.wait(60)


def test_a_task_that_waits_for_a_lane_of_its_process_can_be_stopped():
    lanes, stop = LaneSemaphore(1), threading.Event()
    stopped = threading.Event()

    def wait() -> None:
        with lanes.hold_for_task(stop):
            stopped.set()

    with lanes.hold_for_task():
        threading.Thread(target=wait).start()
        assert not stopped.wait(0.05)
        stop.set()
        assert stopped.wait(60)


def test_a_folder_that_cannot_be_used_only_disables_sharing(tmp_path, caplog):
    (tmp_path / "file").touch()

    with LaneSemaphore(1, tmp_path / "file" / "lanes").hold_for_task():
        pass

    assert "not shared with other processes" in caplog.text


@pytest.mark.parametrize("folder", [None, "lanes"])
def test_a_process_has_one_semaphore_for_each_folder(tmp_path, folder):
    path = folder and tmp_path / folder

    assert (lane_semaphore(2, path) is lane_semaphore(2, path)) is (path is not None)


TASK = """
import sys, time
from pathlib import Path
from qrmi_workflows.tasks.lanes import LaneSemaphore
lanes = LaneSemaphore(int(sys.argv[2]), Path(sys.argv[1]))
print("ready", flush=True)
with lanes.hold_for_task():
    start = time.monotonic()
    print("in", flush=True)
    sys.stdin.readline()
    print(start, time.monotonic(), flush=True)
"""
CALL = """
import subprocess, sys
from pathlib import Path
from qrmi_workflows.tasks.lanes import LaneSemaphore
with LaneSemaphore(1, Path(sys.argv[1])).hold_for_call():
    print("ready", flush=True)
    argv = [sys.executable, "-c", *sys.argv[2:]]
    sys.exit(subprocess.run(argv, input="\\n", text=True).returncode)
"""


def line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline()


def let_go(process: subprocess.Popen[str]) -> str:
    """Let a program continue, and return the rest of its output."""
    return process.communicate("\n", timeout=60)[0]


def test_a_child_of_a_call_uses_the_lane_of_the_call(tmp_path: Path):
    """A command in a bash app would otherwise wait for a lane that only its own end can free."""
    with LaneSemaphore(1, tmp_path).hold_for_call():
        child = start(TASK, tmp_path, 1)
        assert line(child) == "in\n"
        let_go(child)
    assert child.returncode == 0


def test_children_of_a_call_and_its_own_tasks_use_its_lane_one_at_a_time(tmp_path: Path):
    lanes, spans = LaneSemaphore(2, tmp_path), []
    with lanes.hold_for_call():
        children = [start(HOLD, tmp_path, 2, 4) for _ in range(3)]
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        for _ in range(4):
            with lanes.hold_for_task():
                began = time.monotonic()
                time.sleep(0.02)
                spans.append((began, time.monotonic()))
        for child in children:
            out, _ = child.communicate(timeout=60)
            spans += [tuple(map(float, row.split())) for row in out.splitlines()]

    assert len(spans) == 16
    assert most_at_once(spans) == 1


def test_a_call_in_a_child_of_a_call_lends_the_lane_on(tmp_path: Path):
    with LaneSemaphore(1, tmp_path).hold_for_call():
        nested = start(CALL, tmp_path, CALL, tmp_path, TASK, tmp_path, 1)
        out = let_go(nested)

    assert nested.returncode == 0
    assert out.startswith("ready\nready\nin\n")


def test_a_child_that_outlives_its_call_takes_a_lane_like_others(tmp_path: Path):
    lanes = LaneSemaphore(1, tmp_path)
    with lanes.hold_for_call():
        child = start(HOLD, tmp_path, 1, 1)
    with LaneSemaphore(1, tmp_path).hold_for_task():  # not the call of its parent
        child.stdin.write("\n")
        child.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
    child.communicate(timeout=60)
    assert child.returncode == 0


def test_a_lane_is_not_free_before_the_task_of_a_dead_calls_child_has_ended(tmp_path: Path):
    call = start(CALL, tmp_path, TASK.replace("sys.stdin.readline()", "time.sleep(1)"), tmp_path, 1)
    assert (line(call), line(call)) == ("ready\n", "in\n")
    call.kill()
    call.wait()

    with LaneSemaphore(1, tmp_path).hold_for_task():
        taken = time.monotonic()

    assert float(line(call).split()[1]) <= taken
    call.communicate()


def test_children_are_told_of_no_lane_after_the_call(tmp_path: Path):
    with (
        LaneSemaphore(1, tmp_path).hold_for_call(),
        LaneSemaphore(1, tmp_path / "b").hold_for_call(),
    ):
        assert len(json.loads(os.environ["QPU_HELD_LANES"])) == 2
    assert "QPU_HELD_LANES" not in os.environ


@pytest.mark.parametrize("value", ["", "{", "[]", "{}", '{"/lane-0": 1}', '{"/lane-0": ["x"]}'])
def test_what_the_environment_wrongly_says_of_held_lanes_is_ignored(tmp_path, monkeypatch, value):
    monkeypatch.setenv("QPU_HELD_LANES", value.replace("/lane-0", f"{tmp_path}/lane-0"))

    with LaneSemaphore(1, tmp_path).hold_for_task():
        assert is_locked(tmp_path / "lane-0")
