"""Locks between threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
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
