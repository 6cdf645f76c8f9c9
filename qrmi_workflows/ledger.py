"""The leases of this user on the shared file system: which are open, and what the ended ones used.

An open lease has a file that only its user can read, for it holds the acquisition token: with it
`qpu reap` releases what no process can release any more. It is removed at the release; what stays
is one line of JSON, the lease record, which holds neither token nor credential.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from qrmi_workflows.config import state_folder
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.owner import Owner
from qrmi_workflows.results import write_whole

__all__ = [
    "RECORD_VARIABLE",
    "USAGE_VARIABLE",
    "LeaseRecord",
    "OpenLease",
    "TaskUsage",
    "append_line",
    "lanes_folder",
    "open_leases",
]

logger = logging.getLogger(__name__)

RECORD_VARIABLE = "QPU_LEASE_RECORD"
USAGE_VARIABLE = "QPU_LEASE_USAGE"

_LANES = ".lanes"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUsage:
    """A QPU's time that one task took, as the process that ran it saw it.

    Attributes:
        qpu: The QPU's name.
        task_id: The vendor's id.
        started: When it was submitted, in seconds since the epoch.
        ended: When its end was seen, in seconds since the epoch.
        state: How it ended (`Completed`).
    """

    qpu: str
    task_id: str
    started: float
    ended: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One ended lease: what was waited for, held and used. All spans are in seconds.

    Attributes:
        lease: The lease's own id.
        qpu: The QPU's name.
        type: QRMI's resource type.
        step: The step that it was held for.
        owner: The process that held it.
        acquired: When it was acquired, ISO 8601 in UTC.
        released: When it was released, ISO 8601 in UTC.
        queue_wait: What the job waited in the scheduler's queue; `None` outside a job.
        acquire: What acquiring took.
        held: From acquire to release.
        busy: How much of that at least one task was with the vendor.
        idle: The rest of it.
        tasks: How many tasks ran.
        task_ids: The vendor's ids of them.
        reaped: Whether `qpu reap` released it, because its owner was dead.
    """

    lease: str
    qpu: str
    type: str
    step: str
    owner: Owner
    acquired: str
    released: str
    queue_wait: float | None
    acquire: float
    held: float
    busy: float
    idle: float
    tasks: int
    task_ids: list[str]
    reaped: bool = False

    def save(self, environ: Mapping[str, str] = os.environ) -> None:
        """Append it to `$QPU_LEASE_RECORD`, else to this host's file in the state folder."""
        named = environ.get(RECORD_VARIABLE)
        month = self.released[:7]
        default = state_folder(environ) / "leases" / f"{month}-{self.owner.host}.jsonl"
        append_line(Path(named) if named else default, json.dumps(asdict(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLease:
    """An open lease's file.

    Attributes:
        path: The file.
        lease: The lease's own id.
        qpu: The QPU's name.
        type: QRMI's resource type.
        step: The step that it is held for.
        owner: The process that holds it.
        acquired: When it was acquired, in seconds since the epoch.
        acquire: What acquiring took, in seconds.
        config: The `qrmi_config.json` that defines the QPU; `None` when its job's environment did.
        token: The acquisition token.
    """

    path: Path
    lease: str
    qpu: str
    type: str
    step: str
    owner: Owner
    acquired: float
    acquire: float
    config: str | None
    token: str = field(repr=False)

    @classmethod
    def create(
        cls,
        *,
        qpu: str,
        type: str,  # noqa: A002 - QRMI's own word
        step: str,
        acquire: float,
        config: Path | None,
        token: str,
    ) -> Self:
        """Write the file of a lease that this process has just acquired.

        A state folder that cannot be written costs the reaper its knowledge, not the lease.
        """
        lease = uuid.uuid4().hex
        opened = cls(
            path=_open_folder() / f"{lease}.json",
            lease=lease,
            qpu=qpu,
            type=type,
            step=step,
            owner=Owner.this_process(),
            acquired=time.time(),
            acquire=acquire,
            config=None if config is None else str(config),
            token=token,
        )
        opened._write()
        return opened

    def renewed(self, token: str) -> Self:
        """Note that the lease goes on under another acquisition token."""
        again = replace(self, token=token)
        again._write()
        return again

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a lease's file.

        Raises:
            ConfigError: It is no such file.
            FileNotFoundError: The lease has ended.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            owner = Owner.from_document(document["owner"])
            return cls(**(document | {"path": path, "owner": owner}))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not an open lease's file: {error!r}. Remove it.") from error

    @property
    def usage_path(self) -> Path:
        """Where all processes of the lease append what their tasks used."""
        return self.path.with_suffix(".usage")

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            document = asdict(self) | {"path": None}
            write_whole(self.path, json.dumps(document), mode=0o600)
        except OSError as error:
            logger.warning("a crash would leave this lease open, for %s: %s", self.path, error)

    def close(self, *, queue_wait: float | None = None, reaped: bool = False) -> LeaseRecord:
        """Remove the file and write the lease record."""
        usage = list(_usage(self.usage_path))
        now = time.time()
        held = max(0.0, now - self.acquired)  # a clock may have been set back
        busy = min(_covered((task.started, task.ended) for task in usage), held)
        record = LeaseRecord(
            lease=self.lease,
            qpu=self.qpu,
            type=self.type,
            step=self.step,
            owner=self.owner,
            acquired=_iso(self.acquired),
            released=_iso(now),
            queue_wait=queue_wait,
            acquire=round(self.acquire, 3),
            held=round(held, 3),
            busy=round(busy, 3),
            idle=round(held - busy, 3),
            tasks=len(usage),
            task_ids=[task.task_id for task in usage],
            reaped=reaped,
        )
        try:
            record.save()
        except OSError as error:
            logger.warning("the lease record was not written: %s", error)
        for path in (self.path, self.usage_path):
            with suppress(OSError):
                path.unlink()
        shutil.rmtree(self.usage_path.with_suffix(_LANES), ignore_errors=True)
        return record


def open_leases() -> Iterator[OpenLease]:
    """Read the files of all open leases of this user, on any host."""
    for path in sorted(_open_folder().glob("*.json")):
        try:
            yield OpenLease.load(path)
        except FileNotFoundError:
            continue  # released in the meantime
        except ConfigError as error:
            logger.warning("%s", error)
        except OSError as error:
            logger.warning("%s: not an open lease's file: %s. Remove it.", path, error.strerror)


def lanes_folder(
    qpu: str, usage: Path | None, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Return where the processes that share a lease lock its lanes; `None` where none can share it.

    Args:
        qpu: The QPU's name.
        usage: Where the lease's tasks note what they used, when its owner is ours.
        environ: The job's environment: a lease that the site acquired is its job's.
    """
    if usage is not None:
        return usage.with_suffix(_LANES) / qpu
    job = environ.get("SLURM_JOB_ID")
    return state_folder(environ) / "leases" / "adopted" / f"{job}{_LANES}" / qpu if job else None


def append_line(path: Path, line: str) -> None:
    """Append a line that other processes append to as well.

    Raises:
        OSError: The file could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line + "\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may have the file open as well


def _open_folder() -> Path:
    return state_folder() / "leases" / "open"


def _usage(path: Path) -> Iterator[TaskUsage]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(TypeError, ValueError):
            yield TaskUsage(**json.loads(line))


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Add up spans of time, overlaps once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
