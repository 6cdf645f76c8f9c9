"""A munged for the tests that use MUNGE credentials."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import wait_until

__all__ = ["is_munged_running", "running_munged"]

SOCKET = Path("/run/munge/munge.socket.2")  # compiled into libmunge, which QRMI loads


def is_munged_running() -> bool:
    """Return whether the machine's own munged is running."""
    try:
        return subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def running_munged(folder: Path) -> Iterator[None]:
    """Run munged if it is not running; only root can start it.

    Args:
        folder: A new folder for its files.
    """
    if is_munged_running():
        yield
        return
    if os.getuid() != 0:
        pytest.fail("munged is not running; start it as root with `systemctl start munge`")
    folder.chmod(0o700)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    created = not SOCKET.parent.exists()
    SOCKET.parent.mkdir(mode=0o755, exist_ok=True)
    files = [f"--{name}-file={folder / name}" for name in ("key", "pid", "seed")]
    daemon = subprocess.Popen(
        ["munged", "--foreground", "--force", *files], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: SOCKET.exists() or daemon.poll() is not None, "munged's socket")
        assert daemon.poll() is None
        yield
    finally:
        daemon.terminate()
        daemon.wait(60)
        if created:
            shutil.rmtree(SOCKET.parent)
