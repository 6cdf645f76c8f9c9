"""Files that commands write for their users."""

from __future__ import annotations

import os
from pathlib import Path

from qrmi_workflows.errors import RequestError

__all__ = ["require_writable"]


def require_writable(output: Path) -> None:
    """Refuse a file that could not be written, before anything is done for it.

    Raises:
        RequestError: It is a folder, or its folder does not exist or may not be written to.
    """
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise RequestError(
            f"{output}: could not be written. Name a file in a folder that exists and that you may "
            "write to."
        )
