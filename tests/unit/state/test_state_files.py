"""Files that other processes read: written whole, or a line at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qrmi_workflows.state.files import append_line, read_tail, write_atomically

APPEND = """
import sys
from pathlib import Path
from qrmi_workflows.state.files import append_line
for number in range(200):
    append_line(Path(sys.argv[1]), f"{sys.argv[2]} {number} " + "x" * 5000)
"""


def test_of_a_file_of_any_size_only_the_end_is_read(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
        file.seek(0, os.SEEK_END)
        file.write("… end\n".encode())

    assert read_tail(path, 5) == " end\n"
    assert read_tail(path, 6).endswith(" end\n")
    assert len(read_tail(path)) < 65537
    path.write_text("all")
    assert read_tail(path) == "all"


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "r.json"
    write_atomically(path, "old")

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "r.json"
    write_atomically(path, "old")

    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_atomically(path, "old")

    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_file_is_never_readable_by_others(tmp_path):
    path = tmp_path / "token"

    write_atomically(path, "secret", mode=0o600)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("durable", [False, True])
def test_a_durable_write_also_syncs_the_folder(tmp_path, monkeypatch, durable):
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(tmp_path / "r.json", "new", durable=durable)

    assert len(synced) == 1 + durable
    assert (synced[-1] == tmp_path) is durable


def test_lines_of_several_processes_are_never_mixed(tmp_path):
    path = tmp_path / "new folder" / "records.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(path), name]) for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.wait(timeout=60) == 0

    lines = path.read_text().splitlines()
    expected = {f"{name} {number} " + "x" * 5000 for name in ("a", "b") for number in range(200)}
    assert len(lines) == 400
    assert set(lines) == expected


def test_an_append_that_fails_names_the_file_in_plain_words(tmp_path):
    with pytest.raises(OSError, match=f"directory: '{tmp_path}'$"):
        append_line(tmp_path, "line")


def test_a_forked_child_does_not_keep_the_lock_of_an_append(tmp_path, monkeypatch):
    """The child inherits the open file; the next append must not wait for the child's end."""
    path = tmp_path / "records.jsonl"
    read, write = os.pipe()
    children = []
    flock = fcntl.flock

    def fork_while_locked(file, operation):
        flock(file, operation)
        if operation == fcntl.LOCK_EX and not children:
            child = os.fork()
            if child == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            children.append(child)

    monkeypatch.setattr("qrmi_workflows.state.locks.fcntl.flock", fork_while_locked)
    append_line(path, "first")
    append_line(path, "second")
    os.close(write)
    os.waitpid(children[0], 0)

    assert path.read_text() == "first\nsecond\n"
