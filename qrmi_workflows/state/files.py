"""Write files that others read, whole or line by line, and read the ends of long ones."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from qrmi_workflows.state.locks import hold_lock

__all__ = ["append_line", "read_tail", "sync_folder", "write_atomically"]


def write_atomically(
    path: Path, content: str | bytes, *, mode: int = 0o644, durable: bool = False
) -> None:
    """Write a file so that readers see all of it or none of it.

    The content goes to a temporary file in the same folder, which is synced and renamed.

    Args:
        path: The file; its folder must exist.
        content: Its new content; text is encoded as UTF-8.
        mode: Permission bits, before the umask.
        durable: Also sync the folder, so that the file survives a power failure.

    Raises:
        OSError: The file could not be written; an existing file is left unchanged.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file that other processes may append to at the same time.

    Raises:
        OSError: The file could not be written.
    """
    with hold_lock(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power failure (fsync(2)).

    Raises:
        OSError: The folder could not be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tail(path: Path, size: int = 65536) -> str:
    """Return the end of a file of any size, without reading the rest.

    Args:
        path: The file.
        size: How many bytes to read.

    Raises:
        OSError: The file could not be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size).decode(errors="replace")
