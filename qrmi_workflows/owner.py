"""Who owns a record on the shared file system, and whether it still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

import psutil

__all__ = ["Owner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One process, on one host, in a job or in none.

    Attributes:
        host: The host's name.
        pid: The process's id there.
        started: When the process was created, in seconds since the epoch: ids are used again.
        job: The scheduler's job that it runs in.
    """

    host: str
    pid: int
    started: float
    job: str | None = None

    @classmethod
    def this_process(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Describe the calling process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            started=_created(pid),
            job=environ.get("SLURM_JOB_ID"),
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_document` wrote."""
        return cls(
            host=document["host"],
            pid=document["pid"],
            started=document["started"],
            job=document.get("job"),
        )

    def to_document(self) -> dict[str, Any]:
        """Render for a record."""
        return asdict(self)

    @property
    def here(self) -> bool:
        """Whether this host can tell if it lives."""
        return self.host == socket.gethostname()

    def lives(self) -> bool | None:
        """Return whether the process lives; `None` when another host would have to say."""
        if not self.here:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


@cache
def _created(pid: int) -> float:
    return float(psutil.Process(pid).create_time())
