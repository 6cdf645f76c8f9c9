"""Checks of the files that commands write."""

from __future__ import annotations

import os
from pathlib import Path

from qrmi_workflows.errors import RequestError

__all__ = ["require_writable"]


def require_writable(output: Path, *, source: Path | None = None) -> None:
    """Refuse a file that cannot be written, before any work is done for it.

    Files are written atomically, by a rename, which would replace a device or FIFO (`/dev/null`)
    by a regular file.

    Args:
        output: The file.
        source: The file that it is made from, which must not be overwritten.

    Raises:
        RequestError: The file cannot be written, or must not be.
    """
    if source is not None and output.exists() and output.samefile(source):
        raise RequestError(
            f"{output}: is the payload's own file; must not be overwritten. Name another file."
        )
    is_special = output.exists() and not output.is_file()
    if is_special or not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise RequestError(
            f"{output}: cannot be written. Name a regular file in an existing folder that you may "
            "write to."
        )
