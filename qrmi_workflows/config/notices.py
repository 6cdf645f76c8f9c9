"""Notices: why a QPU starts no job at the moment, for everybody to read.

::

    MAINTENANCE/            root's, 0755; `[site] maintenance` in site.toml
      by-hand.json          root's, 0644: `qpu site maintenance QPU on`
      by-state.json         root's, 0644: `qpu site reconcile`, from the vendors' answers

Both have an object for each QPU, by name. A file counts only if root, or the owner of the site
policy, has written it.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qrmi_workflows.config.site import SitePolicy
from qrmi_workflows.errors import ConfigError

__all__ = [
    "BY_HAND",
    "BY_STATE",
    "Notice",
    "operators",
    "read_entries",
    "read_notice",
    "read_notices",
    "refusal",
    "valid_since",
]

logger = logging.getLogger(__name__)

BY_HAND, BY_STATE = "by-hand.json", "by-state.json"
_MOST = 16 * 2**20  # bytes
_LATEST = 253_402_300_800.0  # the year 10000, which Python's dates do not reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Why a QPU starts no job.

    Attributes:
        qpu: The QPU's name.
        message: The reason.
        since: Since when, in seconds since the epoch; 0 if not known.
        by_hand: Whether an administrator has written it.
    """

    qpu: str
    message: str
    since: float
    by_hand: bool

    def __str__(self) -> str:
        """Say it in one sentence, without a full stop."""
        since = f" since {self.since_text}" if self.since else ""
        what = "is in maintenance" if self.by_hand else "is not operational"
        reason = f": {self.message}" if self.message else ""
        return f"QPU {self.qpu!r} {what}{since}{reason}"

    @property
    def since_text(self) -> str:
        """Since when, for people; `unknown` if not known."""
        if not self.since:
            return "unknown"
        return datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M UTC")


def operators(site: SitePolicy) -> frozenset[int]:
    """Return the ids of the users who may write notices: root, and who owns the site policy."""
    try:
        return frozenset({0, site.path.stat().st_uid})
    except OSError:
        return frozenset({0})


def read_notice(qpu: str, site: SitePolicy) -> Notice | None:
    """Return why a QPU starts no job; `None` if it does. What is set by hand comes first."""
    return read_notices(site).get(qpu)


def read_notices(site: SitePolicy, *, strict: bool = False) -> dict[str, Notice]:
    """Return the notices about the site's QPUs, by name.

    Args:
        site: The site policy.
        strict: Whether to raise an error if a file cannot be understood. Otherwise it is ignored,
            with a warning, so that it does not stop the jobs of all QPUs.

    Raises:
        ConfigError: A file cannot be understood.
    """
    found: dict[str, Notice] = {}
    for kind in (BY_STATE, BY_HAND):
        path = site.folders.maintenance / kind
        for name, entry in read_entries(path, operators(site), strict=strict).items():
            if name in site.qpus:
                found[name] = _notice(name, entry, by_hand=kind == BY_HAND)
    return {name: found[name] for name in sorted(found)}


def _notice(qpu: str, entry: object, *, by_hand: bool) -> Notice:
    # What cannot be understood still keeps the QPU from being used.
    fields = entry if isinstance(entry, Mapping) else {}
    message = fields.get("message")
    return Notice(
        qpu=qpu,
        message="" if message is None else " ".join(str(message).split()),
        since=valid_since(fields.get("since")),
        by_hand=by_hand,
    )


def valid_since(value: object) -> float:
    """Return a time from a file of notices; 0 if it is none: administrators may edit the file."""
    if isinstance(value, int | float) and 0 < value < _LATEST:
        return float(value)
    return 0.0


def refusal(notice: Notice) -> str:
    """Return the message of an error about a QPU that starts no job."""
    return f"{notice}. Try again when `qpu list` shows it as available."


def read_entries(path: Path, trusted: frozenset[int], *, strict: bool = False) -> dict[str, object]:
    """Read a file of notices: its entries, by QPU; none if there is no file that counts.

    Args:
        path: The file.
        trusted: The ids of the users of whom one must have written it.
        strict: Whether to raise an error if it cannot be understood; otherwise that is logged.

    Raises:
        ConfigError: It cannot be understood.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in trusted:
            return {}
        text = file.read(_MOST).decode(errors="replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return document
    error = ConfigError(f"{path}: not a JSON object. Correct it, or remove it.")
    if strict:
        raise error
    logger.warning("notices about QPUs are ignored: %s", error)
    return {}
