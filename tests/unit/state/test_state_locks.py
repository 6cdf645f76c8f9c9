"""Locks between threads and processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import is_waiting_for_a_lock, wait_until

from qrmi_workflows.state.locks import (
    create_locked,
    hold_any_lock,
    hold_lock,
    is_locked,
    lock_file,
    try_lock,
)

HOLD = """
import sys
from pathlib import Path
from qrmi_workflows.state.locks import create_locked
held = create_locked(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_created_file_is_locked_until_it_is_closed(tmp_path):
    path = tmp_path / "run"
    assert not is_locked(path)

    with create_locked(path):
        assert is_locked(path)
        assert is_locked(path), "asking does not change the answer"

    assert not is_locked(path)


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    assert is_locked(path)

    process.kill()
    process.communicate()

    assert not is_locked(path)


def test_a_lock_can_be_tried_without_waiting(tmp_path):
    path = tmp_path / "lease.json"
    with try_lock(path) as is_held:
        assert not is_held, "the file does not exist"

    path.touch()
    with try_lock(path) as is_held:
        assert is_held
        with try_lock(path) as is_held_twice:
            assert not is_held_twice
    with try_lock(path) as is_held:
        assert is_held


def test_a_lock_can_be_waited_for(tmp_path):
    path = tmp_path / "lease.json"
    path.touch()
    holder = lock_file(path)
    threading.Timer(0.2, holder.close).start()

    with try_lock(path, seconds=60) as is_held:
        assert is_held


def test_any_free_lock_of_several_is_taken(tmp_path):
    lanes = [tmp_path / f"lane-{number}" for number in range(3)]

    with (
        hold_any_lock(lanes, lambda: False) as first,
        hold_any_lock(lanes, lambda: False) as second,
    ):
        assert first
        assert second
        assert sum(is_locked(lane) for lane in lanes) == 2
    assert not any(is_locked(lane) for lane in lanes)


def test_the_wait_for_any_lock_can_be_stopped(tmp_path):
    lanes, answers = [tmp_path / "lane-0"], iter([False, False, True])

    with (
        hold_any_lock(lanes, lambda: False),
        hold_any_lock(lanes, lambda: next(answers)) as is_held,
    ):
        assert not is_held
    assert not is_locked(lanes[0])


def test_a_locked_file_refuses_a_second_lock(tmp_path):
    path = tmp_path / "lock"

    with lock_file(path):
        assert path.stat().st_mode & 0o077 == 0, "for its owner alone"
        with pytest.raises(BlockingIOError):
            lock_file(path)
    lock_file(path).close()


def test_a_file_deleted_while_its_lock_was_awaited_is_created_again(tmp_path):
    """Otherwise the waiting process would write into a folder that no longer exists."""
    path = tmp_path / "step" / ".lock"
    found = []

    def take() -> None:
        with hold_lock(path):
            found.append(is_locked(path))

    waiter = threading.Thread(target=take)
    with hold_lock(path):
        waiter.start()
        wait_until(lambda: is_waiting_for_a_lock(os.getpid()), "a thread to wait for the lock")
        path.unlink()
        path.parent.rmdir()
    waiter.join(timeout=60)

    assert found == [True]


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "step").write_text("")

    with pytest.raises(FileExistsError), hold_lock(tmp_path / "step" / ".lock"):
        pass


def test_a_folder_that_cannot_be_created_is_an_error():
    """In /proc the kernel always answers that the folder does not exist."""
    with pytest.raises(FileNotFoundError), hold_lock(Path("/proc/step/.lock")):
        pass


def wait_in_queue(queue: Path, count: int) -> None:
    wait_until(
        lambda: len([p for p in queue.iterdir() if p.name.isdecimal()]) == count, "the queue"
    )


def test_those_who_wait_for_a_lock_get_it_in_the_order_in_which_they_came(tmp_path):
    """Also before one who comes when the lock is free, such as a process with many tasks."""
    queue, lanes, order = tmp_path / "queue", [tmp_path / "lane"], []
    queue.mkdir()

    def take_turn(name: int) -> None:
        with hold_any_lock(lanes, lambda: False, queue=queue):
            order.append(name)

    with ThreadPoolExecutor(max_workers=6) as pool:
        with hold_any_lock(lanes, lambda: False, queue=queue):
            for name in range(5):
                pool.submit(take_turn, name)
                wait_in_queue(queue, name + 1)
        take_turn(5)

    assert order == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in queue.iterdir()] == ["lock"]


def test_one_who_waits_in_a_long_queue_lists_it_only_when_it_has_moved(tmp_path, monkeypatch):
    """Else N who wait would look at N places each, all the time."""
    queue, lanes, listed, looks = tmp_path / "queue", [tmp_path / "lane"], [], itertools.count(1)
    queue.mkdir()
    before = [create_locked(queue / f"{number:012}") for number in range(1, 11)]
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [listed.append(path), *iterdir(path)][1:])

    def let_one_go() -> bool:
        if next(looks) % 20 == 0 and before:  # in any order
            before.pop(len(before) // 2).close()
        return False

    with hold_any_lock(lanes, let_one_go, queue=queue) as held:
        assert held == lanes[0]

    assert not before
    assert len(listed) <= 3 + 10, "on arrival, to choose a number, and once for each that has gone"


def test_a_place_in_the_queue_ends_with_its_process(tmp_path):
    queue, lanes = tmp_path / "queue", [tmp_path / "lane"]
    queue.mkdir()
    program = (
        "import sys; from pathlib import Path; from qrmi_workflows.state.locks import *\n"
        "with hold_any_lock([Path(sys.argv[1])], lambda: False, queue=Path(sys.argv[2])): pass\n"
    )
    with hold_any_lock(lanes, lambda: False, queue=queue):
        argv = [sys.executable, "-c", program, str(lanes[0]), str(queue)]
        with subprocess.Popen(argv) as waiting:
            wait_in_queue(queue, 1)
            waiting.kill()

    with hold_any_lock(lanes, lambda: False, queue=queue) as held:
        assert held == lanes[0]
    assert [path.name for path in queue.iterdir()] == ["lock"]


def test_one_who_stops_waiting_leaves_the_queue(tmp_path):
    queue, lanes, stop = tmp_path / "queue", [tmp_path / "lane"], threading.Event()
    queue.mkdir()
    with ThreadPoolExecutor() as pool, hold_any_lock(lanes, lambda: False, queue=queue):

        def wait() -> Path | None:
            with hold_any_lock(lanes, stop.is_set, queue=queue) as held:
                return held

        waiting = pool.submit(wait)
        wait_in_queue(queue, 1)
        stop.set()
        assert waiting.result(timeout=60) is None

    assert [path.name for path in queue.iterdir()] == ["lock"]
