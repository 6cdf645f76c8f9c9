"""Files that commands write for their users."""

from __future__ import annotations

import os
from pathlib import Path

from qrmi_workflows.errors import RequestError

__all__ = ["require_writable"]


def require_writable(output: Path, *, apart_from: Path | None = None) -> None:
    """Refuse a file that could not be written, before anything is done for it.

    A file is written whole, by a rename: what is no regular file (`/dev/null`, a FIFO) would be
    replaced by one.

    Args:
        output: The file.
        apart_from: The file that it is made of, which must not be lost.

    Raises:
        RequestError: It cannot be written, or must not be.
    """
    if apart_from is not None and output.exists() and output.samefile(apart_from):
        raise RequestError(
            f"{output}: it is the payload's own file, which would be lost. Name another file."
        )
    special = output.exists() and not output.is_file()
    if special or not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise RequestError(
            f"{output}: could not be written. Name a file in a folder that exists and that you may "
            "write to; no folder, device or FIFO."
        )
