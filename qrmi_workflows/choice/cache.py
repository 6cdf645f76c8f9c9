"""Small answers that the processes of a user share for a moment, in files.

::

    $XDG_CACHE_HOME/qrmi-workflows/choice/
      KIND-NAME.json        an answer, with the time when it was asked for

A cache that cannot be read or written only makes choosing slower.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrmi_workflows.config.folders import cache_folder
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.state.files import write_atomically

__all__ = ["cache_file", "read_cached", "write_cached"]

logger = logging.getLogger(__name__)

_AT = "at"


def cache_file(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the path of a file of the cache; `None` if the user has no place for one."""
    with suppress(ConfigError):
        return cache_folder(environ) / "choice" / name
    return None


def read_cached(path: Path | None, seconds: float) -> dict[str, Any] | None:
    """Return an answer that is at most so many seconds old; `None` if there is none."""
    if path is None:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        document = json.loads(path.read_text(encoding="utf-8"))
        # The clock may have been set back.
        if isinstance(document, dict) and abs(time.time() - float(document[_AT])) < seconds:
            return document
    return None


def write_cached(path: Path | None, document: Mapping[str, Any], *, at: float) -> None:
    """Keep an answer.

    Args:
        path: The file.
        document: The answer.
        at: When it was asked for.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, json.dumps({**document, _AT: at}))
    except OSError as error:
        logger.info("not cached: %s", error)
