"""A munged for the tests that use MUNGE credentials."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

__all__ = ["is_munged_running", "running_munged"]

SOCKET = Path("/run/munge/munge.socket.2")  # compiled into libmunge, which QRMI loads
# Tests in several processes share the one socket, and with it the munged behind it.
FOLDER = Path("/run/munge-of-tests")
PID = FOLDER / "pid"


def is_munged_running() -> bool:
    """Return whether a munged answers on the machine's socket."""
    try:
        return subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def running_munged() -> Iterator[None]:
    """Run munged if it is not running, and end it with its last user; only root can start it."""
    if os.getuid() != 0:
        if not is_munged_running():
            pytest.fail("munged is not running; start it as root with `systemctl start munge`")
        yield
        return
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (FOLDER / "users").open("w") as users:
        with _changes():
            if not is_munged_running():
                _start()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with _changes():
                try:
                    # This also drops the shared lock, whether the exclusive one is granted or not.
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # others still use it
                else:
                    _end()


@contextmanager
def _changes() -> Iterator[None]:
    """Let one process at a time start or end munged."""
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start() -> None:
    key = FOLDER / "key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    SOCKET.parent.mkdir(mode=0o755, exist_ok=True)
    files = [f"--{name}-file={FOLDER / name}" for name in ("key", "pid", "seed", "log")]
    subprocess.run(["munged", "--force", *files], check=True)
    wait_until(is_munged_running, "munged's answer")


def _end() -> None:
    """End munged if tests have started it."""
    if not PID.exists():
        return
    with suppress(psutil.NoSuchProcess):
        daemon = psutil.Process(int(PID.read_text()))
        if daemon.name() == "munged":
            daemon.terminate()
            daemon.wait(60)
    PID.unlink(missing_ok=True)
