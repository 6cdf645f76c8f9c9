"""Whether the process that submitted this job is alive: it keeps touching a file, or deletes it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

__all__ = ["ALIVE_SECONDS", "FRESH_SECONDS", "is_abandoned", "stop_if_abandoned"]

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 30.0
"""The submitting process counts as dead if its file was not touched for this many seconds."""

FRESH_SECONDS = ALIVE_SECONDS / 3
"""A file of this age leaves no doubt: it must be touched more often."""

_LOOK_SECONDS = 5.0


def is_abandoned(alive: Path) -> bool:
    """Return whether the submitting process has ended; if in doubt, wait for a sign of life.

    Args:
        alive: The file that it keeps touching.
    """
    started, first = time.monotonic(), _touched(alive)
    # The ages say how long to wait, but decide nothing alone: two hosts' clocks may differ.
    while first is not None and not 0 <= (age := _clock(alive.parent) - first) <= FRESH_SECONDS:
        waited = time.monotonic() - started
        if waited >= (FRESH_SECONDS if age > ALIVE_SECONDS else ALIVE_SECONDS):
            return True
        time.sleep(min(_LOOK_SECONDS, FRESH_SECONDS) / 10)
        if _touched(alive) != first:
            first = _touched(alive)
            break
    return first is None


def stop_if_abandoned(alive: Path) -> None:
    """Send this process SIGTERM once the submitting process has ended.

    Args:
        alive: The file that it keeps touching. It is deleted if that process has died, to say that
            nobody will run the job's steps again.
    """
    threading.Thread(target=_watch, args=(alive,), name="alive", daemon=True).start()


def _watch(alive: Path) -> None:
    last, since, is_gone = _touched(alive), time.monotonic(), False
    # Only changes of the modification time count: two hosts' clocks need not agree.
    while time.monotonic() - since < ALIVE_SECONDS:
        time.sleep(_LOOK_SECONDS)
        now = _touched(alive)
        if now is None and is_gone:
            break
        is_gone = now is None
        if now is not None and now != last:
            last, since = now, time.monotonic()
    how = "is gone" if is_gone else "is no longer touched"
    logger.warning("%s %s: the submitting process has ended", alive, how)
    with suppress(OSError):
        alive.unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _touched(file: Path) -> float | None:
    try:
        # Open it: on NFS, `stat` alone may answer from a cache, for up to a minute (nfs(5)).
        with FileIO(file) as opened:
            return os.fstat(opened.fileno()).st_mtime
    except OSError:
        return None


def _clock(folder: Path) -> float:
    """Return the time by the clock that dates the folder's files, which may be a server's."""
    import tempfile  # only jobs of Snakemake have such a file

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
