"""Who owns a record on the shared file system, and whether it still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

__all__ = ["Owner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One process, on one host, in a job or in none.

    Attributes:
        host: The host's name.
        boot: The id of the host's boot.
        pid: The process's id there.
        started: When the process was created, in clock ticks since that boot: ids are used again,
            and a host's clock may be set.
        job: The scheduler's job that it runs in.
        restart: How often that job had been requeued.
        cluster: The scheduler's cluster of that job.
    """

    host: str
    boot: str
    pid: int
    started: int
    job: str | None = None
    restart: int = 0
    cluster: str | None = None

    @classmethod
    def this_process(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Describe the calling process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            pid=pid,
            started=_started(pid),
            job=environ.get("SLURM_JOB_ID"),
            restart=_restart(environ),
            cluster=environ.get("SLURM_CLUSTER_NAME"),
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_document` wrote.

        Raises:
            TypeError: It was written by something else.
        """
        return cls(**document)

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
        if self.boot != _boot():
            return False
        state, started = _stat(self.pid)
        return started == self.started and state not in ("Z", "X")

    def requeued(self, environ: Mapping[str, str] = os.environ) -> bool:
        """Return whether this process is a later run of its job, which Slurm began anew."""
        same = self.job is not None and self.job == environ.get("SLURM_JOB_ID")
        same = same and self.cluster == environ.get("SLURM_CLUSTER_NAME")
        return same and self.restart < _restart(environ)


def _restart(environ: Mapping[str, str]) -> int:
    count = environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@cache
def _started(pid: int) -> int:
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """Read a process's state and start from `/proc/PID/stat` (proc(5)); none lives as `X`, 0."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    after_name = text.rpartition(")")[2].split()  # the name may hold blanks and parentheses
    return after_name[0], int(after_name[19])
