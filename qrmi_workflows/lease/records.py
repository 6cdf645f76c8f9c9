"""The user's leases on the shared file system: files of open ones, records of ended ones.

The file of an open lease is readable only by its user, because it holds the acquisition token, with
which `qpu reap` releases a lease whose process was killed. The file is removed at the release. It
leaves the lease record: one line of JSON, without token or credentials.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.variables import QPU_LEASE_RECORD
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.files import append_line, write_atomically
from qrmi_workflows.state.process import Owner
from qrmi_workflows.tasks.usage import read_usage

__all__ = ["LeaseRecord", "OpenLease", "open_leases", "records_of_job"]

logger = logging.getLogger(__name__)

_CLOCK_SKEW = timedelta(minutes=1)  # by which a node's clock may be behind
_TAIL_BYTES = 1 << 18  # about 500 records; a job that has just ended is among them


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One ended lease. All durations are in seconds.

    Attributes:
        lease: The lease's own id.
        qpu: The QPU's name.
        type: QRMI's resource type.
        step: The step that the QPU was held for.
        owner: The process that held it.
        acquired: When it was acquired, ISO 8601 in UTC.
        released: When it was released, ISO 8601 in UTC.
        queue_wait: How long the job was pending; `None` outside a job.
        acquire: How long acquiring took.
        held: How long it was held, from acquire to release.
        busy: How long of that time the vendor had at least one task.
        idle: The rest of that time.
        tasks: The number of tasks.
        task_ids: The vendor's ids of the tasks.
        reaped: Whether `qpu reap` released it, because its owner had died or had left it.
        left: How many times its owner left it open for tasks that were still running.
        taken_over: How many times a later process took it over, after its owner had died or had
            left it; `owner` is the last one.
        adopted: Whether it was the site's lease; `acquired` and `released` then say when this
            process started and stopped using it.
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
    left: int = 0
    taken_over: int = 0
    adopted: bool = False

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Parse a line of a file of records.

        Raises:
            ValueError: The line is not a lease record.
        """
        try:
            document = json.loads(line)
            return cls(**(document | {"owner": Owner(**document["owner"])}))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a lease record: {error!r}") from error

    def to_json(self) -> str:
        """Render the record as one line of JSON."""
        return json.dumps(asdict(self))

    def save(self, environ: Mapping[str, str] = os.environ) -> None:
        """Append the record to `$QPU_LEASE_RECORD`, else to this host's file in the state folder.

        Raises:
            OSError: The file could not be written.
        """
        named = environ.get(QPU_LEASE_RECORD)
        month = self.released[:7]
        default = _records_folder(environ) / f"{month}-{self.owner.host}.jsonl"
        append_line(Path(named) if named else default, self.to_json())

    def describe(self) -> str:
        """Render the record as a line for a log."""
        pending = "" if self.queue_wait is None else f"job pending {self.queue_wait:.0f} s, "
        ids = ", ".join(self.task_ids) or "none"
        how = "the site's lease used" if self.adopted else "lease held"
        return (
            f"QPU {self.qpu}: {pending}{how} {self.held:.2f} s, QPU busy {self.busy:.2f} s, "
            f"idle {self.idle:.2f} s, tasks: {self.tasks} ({ids})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLease:
    """The file of an open lease.

    Attributes:
        path: The file.
        lease: The lease's own id.
        qpu: The QPU's name.
        type: QRMI's resource type.
        step: The step that the QPU is held for.
        owner: The process that holds it.
        acquired: When it was acquired, in seconds since the epoch.
        acquire: How long acquiring took, in seconds.
        config: The `qrmi_config.json` that defines the QPU; `None` if the job's environment did.
        token: The acquisition token; empty for the site's lease, which is not ours to release.
        is_left: Whether the owner has left it to its tasks: then anyone may take it over.
        left: How many times an owner has left it.
        taken_over: How many times another process has taken it over.
        adopted: Whether it is the site's lease.
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
    is_left: bool = False
    left: int = 0
    taken_over: int = 0
    adopted: bool = False

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
        adopted: bool = False,
    ) -> Self:
        """Write the file of a lease that this process has just acquired or adopted.

        If the state folder cannot be written, the lease is used anyway, but `qpu reap` cannot find
        it.
        """
        lease = uuid.uuid4().hex
        opened = cls(
            path=_open_folder() / f"{lease}.json",
            lease=lease,
            qpu=qpu,
            type=type,
            step=step,
            owner=Owner.this_process(this_job()),
            acquired=time.time(),
            acquire=acquire,
            config=None if config is None else str(config),
            token=token,
            adopted=adopted,
        )
        opened._try_to_write()
        return opened

    def renew(self, token: str) -> Self:
        """Record that the lease continues under another acquisition token."""
        again = replace(self, token=token)
        again._try_to_write()
        return again

    def leave(self) -> Self:
        """Record that the owner is done with the lease, whose tasks are still running.

        Raises:
            OSError: The file could not be written.
        """
        left = replace(self, is_left=True, left=self.left + 1)
        left._write()
        return left

    def take_over(self, step: str) -> Self:
        """Record that the lease continues with this process as its owner.

        Raises:
            OSError: The file could not be written.
        """
        taken = replace(
            self,
            step=step,
            owner=Owner.this_process(this_job()),
            is_left=False,
            taken_over=self.taken_over + 1,
        )
        taken._write()
        return taken

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file of an open lease.

        Raises:
            ConfigError: The file is malformed.
            FileNotFoundError: The lease has ended.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            owner = Owner(**document["owner"])
            return cls(**(document | {"path": path, "owner": owner}))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}: not the file of an open lease: {error!r}. Remove it."
            ) from error

    @property
    def usage_path(self) -> Path:
        """The file to which all processes of the lease append their tasks' usage."""
        return self.path.with_suffix(".usage")

    @property
    def renewal_lock(self) -> Path:
        """The file that the processes of the lease lock to acquire its QPU again."""
        return self.path.with_suffix(".renewal")

    @staticmethod
    def of_usage(usage: Path) -> Path:
        """Return the path of the lease's file.

        Args:
            usage: The lease's usage file, the only path that an adopting process knows.
        """
        return usage.with_suffix(".json")

    @staticmethod
    def lanes_folder(usage: Path) -> Path:
        """Return the folder in which the processes of a lease lock its lanes.

        Args:
            usage: The lease's usage file, the only path that an adopting process knows.
        """
        return usage.with_suffix(".lanes")

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        document = asdict(self) | {"path": None}
        write_atomically(self.path, json.dumps(document), mode=0o600)

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError as error:
            logger.warning(
                "lease not recorded, so a crash would leave it open: %s: %s", self.path, error
            )

    def close(self, *, queue_wait: float | None = None, reaped: bool = False) -> LeaseRecord:
        """Write the lease record and remove the file."""
        usage = list(read_usage(self.usage_path))
        now = time.time()
        held = max(0.0, now - self.acquired)  # the clock may have been set back
        busy = min(_union((task.started, task.ended) for task in usage), held)
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
            left=self.left,
            taken_over=self.taken_over,
            adopted=self.adopted,
        )
        try:
            record.save()
        except OSError as error:
            logger.warning("the lease record was not written: %s", error)
        for path in (self.path, self.usage_path, self.renewal_lock):
            with suppress(OSError):
                path.unlink()
        shutil.rmtree(self.lanes_folder(self.usage_path), ignore_errors=True)
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
            logger.warning("%s: cannot be read: %s. Remove it.", path, error.strerror)


def records_of_job(
    job_id: str, since: datetime, environ: Mapping[str, str] = os.environ
) -> list[LeaseRecord]:
    """Return the lease records that a job has left.

    Args:
        job_id: The scheduler's id of the job.
        since: When the job was submitted; another cluster, or this one years ago, may have used the
            same id.
        environ: The environment with `QPU_LEASE_RECORD` and `QPU_STATE`.
    """
    named = environ.get(QPU_LEASE_RECORD)
    files = [Path(named)] if named else sorted(_records_folder(environ).glob("*.jsonl"))
    records = [record for file in files for record in _last_records(file)]
    return [
        record
        for record in records
        if record.owner.job == job_id and _is_since(record, since - _CLOCK_SKEW)
    ]


def _is_since(record: LeaseRecord, earliest: datetime) -> bool:
    try:
        return datetime.fromisoformat(record.acquired) >= earliest
    except (TypeError, ValueError):  # a damaged record, or one without a time zone
        return False


def _last_records(file: Path) -> Iterator[LeaseRecord]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            text = opened.read().decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        with suppress(ValueError):  # the first line may be incomplete
            yield LeaseRecord.from_json(line)


def _records_folder(environ: Mapping[str, str]) -> Path:
    return state_folder(environ) / "leases"


def _open_folder() -> Path:
    return state_folder() / "leases" / "open"


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Return the total length of spans of time, counting overlaps once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
