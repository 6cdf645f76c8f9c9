"""The files that tell blocks whether the program that submitted them still needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from parsl_ext import alive_file
from parsl_ext.alive_file import give_up, keep_alive, stop_touching

PROGRAM = """
import os, sys
from pathlib import Path
from parsl_ext.alive_file import keep_alive
keep_alive(Path(sys.argv[1]))
if sys.argv[2] == "forks" and os.fork() == 0:
    sys.exit()
if sys.argv[2] == "forks":
    os.wait()
    print(Path(sys.argv[1]).exists())
if sys.argv[2] == "is killed":
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive_file, "_TOUCH_SECONDS", 0.01)


def make_old(file: Path) -> None:
    os.utime(file, times=(0, 0))


def is_touched(file: Path) -> bool:
    make_old(file)
    wait_until(lambda: file.stat().st_mtime > 0, "the file to be touched")
    return True


def test_files_are_touched_until_their_blocks_have_ended(tmp_path):
    first, second = tmp_path / "new" / "first", tmp_path / "second"
    keep_alive(first)
    keep_alive(second)
    assert is_touched(first)
    assert is_touched(second)

    stop_touching(first)
    for _ in range(2):  # a round that had begun may touch the first file once more
        assert is_touched(second)
    make_old(first)

    assert is_touched(second)
    assert first.stat().st_mtime == 0
    give_up(second)
    assert not second.exists()
    keep_alive(second)
    assert is_touched(second)
    give_up(second)


def test_a_file_that_a_supervisor_has_deleted_is_not_created_again(tmp_path):
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    keep_alive(gone)
    keep_alive(kept)
    gone.unlink()

    assert is_touched(kept)
    assert is_touched(kept)

    assert not gone.exists()
    give_up(kept)


@pytest.mark.parametrize(
    ("end", "is_left", "said"),
    [("ends", False, ""), ("is killed", True, ""), ("forks", False, "True\n")],
)
def test_only_a_program_that_ends_on_its_own_gives_up(tmp_path, end, is_left, said):
    file = tmp_path / "alive"

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), end], capture_output=True, text=True, check=False
    )

    assert (file.exists(), done.stdout) == (is_left, said)
