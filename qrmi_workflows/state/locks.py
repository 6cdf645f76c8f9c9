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
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
    queue: Path | None = None,
) -> Iterator[Path | None]:
    """Wait until one of several files can be locked, and hold its lock; create missing files.

    Args:
        paths: The files; their folders must exist.
        is_stopped: Tells whether to stop waiting.
        accept: Called with a file that has just been locked; tells whether to keep the lock.
        queue: A folder, which must exist, in which those who wait stand in a queue: the first one
            gets the next lock, however long the others have waited for it.

    Yields:
        The file whose lock is held; `None` if the wait was stopped.

    Raises:
        OSError: A file could not be created, or its file system has no locks.
    """
    with ExitStack() as stack:
        yield _lock_any(paths, is_stopped, accept, stack, queue)


def _lock_any(
    paths: Sequence[Path],
    is_stopped: Callable[[], bool],
    accept: Callable[[Path, FileIO], bool],
    stack: ExitStack,
    queue: Path | None,
) -> Path | None:
    with ExitStack() as opened:
        files = [opened.enter_context(FileIO(str(path), "a")) for path in paths]
        place = None if queue is None else opened.enter_context(_Place(queue))
        start = time.monotonic()
        # Polled, because flock can wait for one file only.
        while not is_stopped():
            may_try = place is None or place.is_first()
            for path, file in zip(paths, files, strict=True) if may_try else ():
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
            if place is not None:
                place.take()
                start = max(start, place.moved)  # the next lock may be free soon
            time.sleep(min(max(_FRACTION * (time.monotonic() - start), _SHORTEST), _LONGEST))
    return None


class _Place:
    """A place in a queue: a numbered file, locked until the process ends or the block is left.

    Attributes:
        moved: When somebody close before this place was last seen to have gone, by the monotonic
            clock.
    """

    # Only the two places next before this one are watched. If everybody listed the folder, N who
    # wait would look at N files each, all the time. The nearer one tells when this place is first;
    # the farther one, when it is second, and should look more often.
    _WATCHED = 2

    def __init__(self, queue: Path) -> None:
        self.moved = float("-inf")
        self._queue = queue
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._before: list[Path] | None = None

    def take(self) -> None:
        """Stand in the queue, if that is not so yet."""
        if self._path is not None:
            return
        with hold_lock(self._queue / "lock"):
            # After those who are there, so nobody is ever put before a place that is taken.
            number = max((int(path.name) for path in self._places()), default=0) + 1
            # Locked before it has its name: an unlocked place is one of a process that has died.
            new = self._queue / f"new-{uuid.uuid4().hex}"
            self._file = create_locked(new)
            self._path = self._queue / f"{number:012}"
            new.rename(self._path)
        self._before = None

    def is_first(self) -> bool:
        """Return whether nobody alive stands before this place; without one, in the whole queue."""
        if self._before is None or self._path is None or not all(map(is_locked, self._before)):
            self._before = self._find_before()
            self.moved = time.monotonic()
        return not self._before

    def _find_before(self) -> list[Path]:
        """Return the nearest places before this one whose processes are alive."""
        alive: list[Path] = []
        for path in reversed(self._places()):
            if self._path is not None and path >= self._path:
                continue
            if is_locked(path):
                alive.append(path)
                if len(alive) == self._WATCHED:
                    break
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        return alive

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._path is not None and self._file is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def _places(self) -> list[Path]:
        return sorted(path for path in self._queue.iterdir() if path.name.isdecimal())


def lock_file(path: Path, seconds: float = 0.0) -> FileIO:
    """Lock a file until the returned file is closed; create it with mode 0600 if it is missing.

    Args:
        path: The file.
        seconds: How long to wait for another process to release it.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file could not be created, or its file system has no locks.
    """
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    limit = time.monotonic() + seconds
    try:
        while time.monotonic() < limit and not _try_flock(file):
            time.sleep(_LONGEST)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises; done once more, it does nothing
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
