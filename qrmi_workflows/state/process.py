"""Process identity: who owns a record on the shared file system, and whether it is alive."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

__all__ = ["JobIdentity", "Owner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIdentity:
    """A scheduler's job, as seen by one of its processes.

    Attributes:
        id: The job's id.
        cluster: The cluster it runs on, where the scheduler has several.
        restart: How many times the scheduler has requeued it.
        job_step: The id of the process's job step within it; empty if not known.
        rank: The process's rank within that job step; empty if not known.
        account: The account that it is charged to, if known.
    """

    id: str
    cluster: str | None = None
    restart: int = 0
    job_step: str = ""
    rank: str = ""
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One process on one host, inside a job or not.

    Attributes:
        host: The host's name.
        boot: The id of the host's boot.
        pid: The process id.
        started: When the process started, in clock ticks since that boot: process ids are reused,
            and the host's clock may be changed.
        job: The id of the job it runs in.
        restart: How many times that job had been requeued.
        cluster: The cluster of that job.
        pids: The namespace of the process id (pid_namespaces(7)): in a container, ids may differ.
    """

    host: str
    boot: str
    pid: int
    started: int
    job: str | None = None
    restart: int = 0
    cluster: str | None = None
    pids: str = ""

    @classmethod
    def this_process(cls, job: JobIdentity | None) -> Self:
        """Describe the calling process.

        Args:
            job: The job it runs in, as returned by `schedulers.this_job`.
        """
        pid = os.getpid()
        return cls(
            host=os.uname().nodename,
            boot=_boot(),
            pid=pid,
            started=_started(pid),
            job=job.id if job else None,
            restart=job.restart if job else 0,
            cluster=job.cluster if job else None,
            pids=_namespace(),
        )

    @property
    def is_on_this_host(self) -> bool:
        """Whether this host can tell if the process is alive."""
        return self.host == os.uname().nodename

    def is_alive(self) -> bool | None:
        """Return whether the process is alive; `None` if that cannot be told from here."""
        if not self.is_on_this_host:
            return None
        if self.boot != _boot():
            return False
        if self.pids != _namespace():
            return None
        state, started = _stat(self.pid)
        return started == self.started and state not in ("Z", "X")

    def was_requeued(self, job: JobIdentity | None) -> bool:
        """Return whether `job` is a later run of this owner's job; the requeue ended the owner."""
        return (
            job is not None
            and (self.job, self.cluster) == (job.id, job.cluster)
            and self.restart < job.restart
        )


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


@cache
def _started(pid: int) -> int:
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """Read a process's state and start time from `/proc/PID/stat` (proc(5)); `X`, 0 if absent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    after_name = text.rpartition(")")[2].split()  # the name may contain spaces and parentheses
    return after_name[0], int(after_name[19])
