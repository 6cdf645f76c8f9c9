"""Locks between threads, processes and hosts: `flock` on a shared file system.

A lock ends with the process that holds it, however the process ends. NFS honours `flock` between
hosts (nfs(5), since Linux 2.6.12); Lustre does if it is mounted with `-o flock`.

Every lock is released explicitly before its file is closed: a forked child inherits the open file,
and would otherwise keep the lock.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

__all__ = ["create_locked", "hold_any_lock", "hold_lock", "is_locked", "lock_file", "try_lock"]

_ATTEMPTS = 100
_FRACTION, _SHORTEST, _LONGEST = 0.02, 0.0005, 0.05  # of a pause: share of the wait; seconds


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Wait for a file's lock and hold it; create the file if it does not exist.

    The holder may delete the file and its folder.

    Raises:
        OSError: The file could not be created, or its file system has no locks.
    """
    for attempt in itertools.count(1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(str(path), "a")  # else an error's message would have the Path's repr
        except (FileExistsError, FileNotFoundError):
            if attempt == _ATTEMPTS:
                raise
            continue  # another process has just deleted the folder
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                # The previous holder may have deleted the file while this one waited.
                if _is_at(path, file):
                    yield
                    return
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def try_lock(path: Path, seconds: float = 0.0) -> Iterator[bool]:
    """Hold the lock of an existing file if it is free; yield whether it is held.

    Args:
        path: The file.
        seconds: How long to wait for another process to release it.

    Raises:
        OSError: The file could not be opened for writing, or its file system has no locks.
    """
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        yield False
        return
    with file:
        limit = time.monotonic() + seconds
        while not _try_flock(file):
            if time.monotonic() >= limit:
                yield False
                return
            time.sleep(_LONGEST)
        try:
            yield _is_at(path, file)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def hold_any_lock(
    paths: Sequence[Path],
    is_stopped: Callable[[], bool],
    accept: Callable[[Path, FileIO], bool] = lambda _path, _file: True,
) -> Iterator[Path | None]:
    """Wait until one of several files can be locked, and hold its lock; create missing files.

    Args:
        paths: The files; their folders must exist.
        is_stopped: Tells whether to stop waiting.
        accept: Called with a file that has just been locked; tells whether to keep the lock.

    Yields:
        The file whose lock is held; `None` if the wait was stopped.

    Raises:
        OSError: A file could not be created, or its file system has no locks.
    """
    with ExitStack() as stack:
        yield _lock_any(paths, is_stopped, accept, stack)


def _lock_any(
    paths: Sequence[Path],
    is_stopped: Callable[[], bool],
    accept: Callable[[Path, FileIO], bool],
    stack: ExitStack,
) -> Path | None:
    with ExitStack() as opened:
        files = [opened.enter_context(FileIO(str(path), "a")) for path in paths]
        start = time.monotonic()
        # Polled, because flock can wait for one file only.
        while not is_stopped():
            for path, file in zip(paths, files, strict=True):
                if not _try_flock(file):
                    continue
                if not accept(path, file):
                    fcntl.flock(file, fcntl.LOCK_UN)
                    continue
                # A lock lasts until every duplicate of its descriptor is closed, so the other files
                # can be closed while this one stays locked.
                held = stack.enter_context(FileIO(os.dup(file.fileno()), "a"))
                stack.callback(fcntl.flock, held, fcntl.LOCK_UN)
                return path
            time.sleep(min(max(_FRACTION * (time.monotonic() - start), _SHORTEST), _LONGEST))
    return None


def lock_file(path: Path) -> FileIO:
    """Lock a file until the returned file is closed; create it with mode 0600 if it is missing.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file could not be created, or its file system has no locks.
    """
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


def create_locked(path: Path) -> FileIO:
    """Create a file and lock it until the returned file is closed here and in forked children.

    Raises:
        OSError: The file exists or could not be created, or its file system has no locks.
    """
    file = FileIO(path, "x")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def is_locked(path: Path) -> bool:
    """Return whether another open file holds the lock; `False` if the file does not exist.

    Raises:
        OSError: The file could not be read, or its file system has no locks.
    """
    try:
        with FileIO(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _try_flock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
