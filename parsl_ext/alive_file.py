"""The file that tells blocks whether the program that submitted them is alive.

Parsl's interchange and workers outlive a submitting process that is killed (Parsl 2026.10.26,
https://github.com/Parsl/parsl/issues/3663), and would hold the QPU until the walltime. So
`QPUExecutor` touches a file in the run's script folder, and a block's supervisor
(`qpu lease exec --alive`) stops the block when the file gets too old.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

__all__ = ["ALIVE_FILE", "AliveFile"]

logger = logging.getLogger(__name__)

ALIVE_FILE = "submit-side.alive"
"""The file's name in the run's script folder."""

_TOUCH_SECONDS = 5.0


class AliveFile:
    """Touches the file every few seconds, in a thread, until it is stopped.

    Args:
        folder: The run's script folder, which blocks can read; created if it does not exist.
        thread_name: A name for the thread.
    """

    def __init__(self, folder: Path, *, thread_name: str) -> None:
        self._file = folder / ALIVE_FILE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name=thread_name, daemon=True)

    def start(self) -> None:
        """Create the file and start touching it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.touch()
        self._thread.start()

    def stop(self) -> None:
        """Stop touching the file, without waiting for the thread."""
        self._stop.set()

    def _keep_fresh(self) -> None:
        while not self._stop.wait(_TOUCH_SECONDS):
            try:
                self._file.touch()
            except OSError as error:  # the file system is full or away, perhaps briefly
                logger.warning("could not touch %s: %s", self._file, error)
