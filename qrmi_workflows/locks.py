"""Locks between threads, processes and hosts: `flock` on the file system that they share.

A lock belongs to an open file, and ends with the process that opened it, whatever ends that: it is
taken off before the file is closed, for a forked child may have the file open as well. On NFS it
holds between hosts; on Lustre where that is mounted with `flock`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

__all__ = ["is_locked", "lock", "locked", "locked_at_once"]

_ATTEMPTS = 100


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, as soon as nobody else does; the file is made when it is absent.

    The one who holds it may remove the file, and its folder.

    Raises:
        OSError: The file system has no locks, or the file cannot be made.
    """
    for attempt in itertools.count(1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(path, "a")
        except (FileExistsError, FileNotFoundError):
            if attempt == _ATTEMPTS:
                raise
            continue  # the folder has just been removed
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if _is_at(path, file):
                    yield
                    return
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def locked_at_once(path: Path) -> Iterator[bool]:
    """Hold a file's lock, unless somebody else does or there is no such file; yields whether.

    Raises:
        OSError: The file cannot be opened for writing, or its file system has no locks.
    """
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield _is_at(path, file)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def lock(path: Path) -> FileIO:
    """Make a file and lock it until what is returned is closed, here and in forked children.

    Raises:
        OSError: The file is there already, cannot be made, or its file system has no locks.
    """
    file = FileIO(path, "x")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def is_locked(path: Path) -> bool:
    """Return whether somebody holds a file's lock; nobody does when there is no such file.

    Raises:
        OSError: The file cannot be read, or its file system has no locks.
    """
    try:
        with FileIO(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
