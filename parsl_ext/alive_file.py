"""Files that tell blocks whether the program that submitted them still waits for their calls.

Parsl's interchange and workers outlive a submitting process that is killed (Parsl 2026.10.26,
https://github.com/Parsl/parsl/issues/3663), and would hold the QPU until the walltime. So each
block has a file, which a thread of that process touches. The block's supervisor
(`qpu lease exec --alive`) ends the block when the file is no longer touched, and takes no QPU if
that is so from the start. A file that is gone says that the program has ended by itself.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["give_up", "keep_alive", "stop_touching"]

logger = logging.getLogger(__name__)

_TOUCH_SECONDS = 5.0
_files: set[Path] = set()
_changed = threading.Condition()
_thread: threading.Thread | None = None


def keep_alive(file: Path) -> None:
    """Create a block's file, and touch it until this process ends.

    Raises
    ------
    OSError
        The file cannot be created.
    """
    global _thread  # one for all blocks of this process
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with _changed:
        _files.add(file)
        if _thread is None:
            _thread = threading.Thread(target=_touch_all, name="qpu-blocks-alive", daemon=True)
            _thread.start()


def stop_touching(file: Path) -> None:
    """Let a block's file grow old: the block has ended."""
    with _changed:
        _files.discard(file)
        _changed.notify_all()


def give_up(file: Path) -> None:
    """Delete a block's file: this program will not repeat the block's calls."""
    stop_touching(file)
    with suppress(OSError):
        file.unlink(missing_ok=True)


def _touch_all() -> None:
    global _thread
    while True:
        with _changed:
            _changed.wait_for(lambda: not _files, timeout=_TOUCH_SECONDS)
            if not _files:
                _thread = None
                return
            files = list(_files)
        for file in files:  # without the lock: a file system may hang
            _touch(file)


def _touch(file: Path) -> None:
    try:
        os.utime(file)
    except FileNotFoundError:  # the block's supervisor, or whoever cleans up, has deleted it
        stop_touching(file)
    except OSError as error:  # the file system is full or away, perhaps briefly
        logger.warning("could not touch %s: %s; if this lasts, its block ends", file, error)


@atexit.register
def _give_up_all() -> None:
    for file in list(_files):
        give_up(file)


def _forget_all() -> None:
    """Leave the files to the parent, in a forked child."""
    global _changed, _thread
    _changed, _thread = threading.Condition(), None
    _files.clear()


os.register_at_fork(after_in_child=_forget_all)
