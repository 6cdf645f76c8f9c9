"""Locks between threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qrmi_workflows.state.locks import create_locked, hold_lock, is_locked


def wait_until_somebody_waits() -> None:
    """Wait until a thread of this process waits for a create_locked, as the kernel tells it."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        lines = Path("/proc/locks").read_text().splitlines()
        if any("->" in line and f" {os.getpid()} " in line for line in lines):
            return
    raise AssertionError("nobody waits for a lock")


def test_a_file_is_locked_until_it_is_closed(tmp_path):
    path = tmp_path / "run"
    assert not is_locked(path)

    with create_locked(path):
        assert is_locked(path)
        assert is_locked(path), "asking changes nothing"

    assert not is_locked(path)


def test_the_lock_of_a_process_ends_with_it(tmp_path):
    path = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; from qrmi_workflows.locks import create_locked\n"
        "held = create_locked(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    assert is_locked(path)

    process.kill()
    process.communicate()

    assert not is_locked(path)


def test_who_waited_for_a_lock_whose_file_was_removed_holds_the_new_ones(tmp_path):
    """Else it would write into a folder that is no longer there."""
    path = tmp_path / "step" / ".lock"
    found = []

    def wait_for_it() -> None:
        with hold_lock(path):
            found.append(is_locked(path))

    waiter = threading.Thread(target=wait_for_it)
    with hold_lock(path):
        waiter.start()
        wait_until_somebody_waits()
        path.unlink()
        path.parent.rmdir()
    waiter.join(timeout=10)

    assert found == [True]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "step").write_text("")

    with pytest.raises(FileExistsError), hold_lock(tmp_path / "step" / ".lock"):
        pass


def test_a_folder_that_cannot_be_made_is_an_error():
    """The kernel says of one in /proc that it is not there, however often it is asked."""
    with pytest.raises(FileNotFoundError), hold_lock(Path("/proc/step/.lock")):
        pass
