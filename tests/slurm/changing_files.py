"""Read the files of running daemons, which replace and delete some at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["files_below", "read_if_there"]


def files_below(*tops: Path) -> Iterator[Path]:
    """Return all files in folders. `Path.rglob` would fail if a folder is deleted meanwhile."""
    for top in tops:
        for folder, _, names in os.walk(top):
            yield from (path for name in names if (path := Path(folder, name)).is_file())


def read_if_there(path: Path) -> bytes:
    """Return what is in a file, which is nothing if it was deleted after it was listed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
