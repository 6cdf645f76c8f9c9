"""Whether the process that submitted a job is alive when the job starts."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from qrmi_workflows.lease import abandoned
from qrmi_workflows.lease.abandoned import is_abandoned


@pytest.fixture
def alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, with a quarter of a second instead of 30 s."""
    monkeypatch.setattr(abandoned, "ALIVE_SECONDS", 0.25)
    monkeypatch.setattr(abandoned, "FRESH_SECONDS", 0.1)
    file = tmp_path / "alive"
    file.touch()
    return file


def set_age(file: Path, seconds: float) -> None:
    os.utime(file, times=(time.time() - seconds,) * 2)


def test_a_fresh_file_is_believed_at_once(alive, monkeypatch):
    monkeypatch.setattr(abandoned, "FRESH_SECONDS", 30.0)
    monkeypatch.setattr(abandoned.time, "sleep", lambda _: pytest.fail("it waited"))

    assert not is_abandoned(alive)


@pytest.mark.parametrize("age", [0.2, 5, 1e6, -5, -1e6])
def test_a_file_that_nobody_touches_is_abandoned(alive, age):
    """A negative age is that of a file which another host's clock has dated."""
    set_age(alive, age)

    assert is_abandoned(alive)


@pytest.mark.parametrize("age", [5, -5])
def test_a_file_that_is_touched_is_not_abandoned_whatever_its_age(alive, monkeypatch, age):
    """The clock of the submitting host may be wrong."""
    monkeypatch.setattr(abandoned, "FRESH_SECONDS", 30.0)
    monkeypatch.setattr(abandoned, "ALIVE_SECONDS", 60.0)
    set_age(alive, age * 100)
    monkeypatch.setattr(abandoned.time, "sleep", lambda _: set_age(alive, age * 100 - 1))

    assert not is_abandoned(alive)


def test_a_file_that_is_gone_is_abandoned_at_once(alive, monkeypatch):
    monkeypatch.setattr(abandoned.time, "sleep", lambda _: pytest.fail("it waited"))
    alive.unlink()

    assert is_abandoned(alive)


def test_a_folder_that_cannot_be_written_leaves_the_local_clock(alive, monkeypatch):
    monkeypatch.setattr(abandoned, "FRESH_SECONDS", 30.0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/proc/none").touch())
    set_age(alive, 0.01)

    assert not is_abandoned(alive)
