"""Count every access to the files of a folder, with inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_IN_ALL_EVENTS = 0xFFF  # <sys/inotify.h>
_HEADER = struct.Struct("iIII")


class Watch:
    """Watches folders; a context manager."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)

    def __enter__(self) -> Watch:
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(os.O_NONBLOCK)
        for folder in self._folders:
            if libc.inotify_add_watch(self._queue, os.fsencode(folder), _IN_ALL_EVENTS) < 0:
                raise OSError(ctypes.get_errno(), f"inotify_add_watch {folder}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._queue)

    def events(self) -> int:
        """Return the number of events since the last call."""
        try:
            data = os.read(self._queue, 1 << 16)
        except BlockingIOError:
            return 0
        count = at = 0
        while at < len(data):
            *_, name_length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + name_length
            count += 1
        return count
