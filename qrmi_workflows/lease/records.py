"""The files of this user's open leases on the shared file system.

The file of an open lease is readable only by its user, because it holds the acquisition token, with
which `qpu reap` releases a lease whose process was killed. The file is removed at the release. It
leaves the lease record (see `record`).
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from qrmi_workflows.choice.reasons import why_chosen
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.config.emulated import is_emulated
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.lease.bill import NOTHING, estimate_bill, total_seconds
from qrmi_workflows.lease.record import LeaseRecord, acquisition_id
from qrmi_workflows.lease.site_records import save_for_site
from qrmi_workflows.schedulers import this_job
from qrmi_workflows.state.files import write_atomically
from qrmi_workflows.state.process import Owner
from qrmi_workflows.state.users import user_name
from qrmi_workflows.tasks.usage import TaskUsage, read_reports, read_usage
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import JobTimes

__all__ = ["OpenLease", "open_leases"]

logger = logging.getLogger(__name__)

_MALFORMED = (
    *(AttributeError, KeyError, OverflowError, OSError),
    *(RecursionError, TypeError, ValueError),
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
        mode: The mode of its session, `dedicated` or `batch`; `None` if its type has no modes.
        user: The user who opened it.
        account: The account that the job of its first owner is charged to, if known.
        acquisitions: The ids of its acquisitions (`acquisition_id`).
        chosen: What was asked for, and why this QPU was chosen; empty if it was named.
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
    mode: str | None = None
    user: str = ""
    account: str | None = None
    acquisitions: tuple[str, ...] = ()
    chosen: str = ""

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
        mode: str | None = None,
        user: str | None = None,
        account: str | None = None,
    ) -> Self:
        """Write the file of a lease that this process has just acquired or adopted.

        If the state folder cannot be written, the lease is used anyway, but `qpu reap` cannot find
        it. The token of an adopted lease, which is not ours to release, is not written.
        """
        lease, job = uuid.uuid4().hex, this_job()
        opened = cls(
            path=_open_folder() / f"{lease}.json",
            lease=lease,
            qpu=qpu,
            type=type,
            step=step,
            owner=Owner.this_process(job),
            acquired=time.time(),
            acquire=acquire,
            config=None if config is None else str(config),
            token="" if adopted else token,
            adopted=adopted,
            mode=mode,
            user=user_name() if user is None else user,
            account=account or (None if job is None else job.account),
            acquisitions=(acquisition_id(token),) if token else (),
            chosen=why_chosen(qpu),
        )
        opened._try_to_write()
        return opened

    def renew(self, token: str) -> Self:
        """Record that the lease continues under another acquisition token."""
        acquisitions = (*self.acquisitions, acquisition_id(token))
        again = replace(self, token=token, acquisitions=acquisitions)
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
        text = path.read_bytes()
        try:
            document = json.loads(text)
            # What only a later release knows is left out: its lease is still to be released.
            known = {
                each.name: document[each.name] for each in fields(cls) if each.name in document
            }
            known["owner"] = Owner(**document["owner"])
            known["acquisitions"] = tuple(document.get("acquisitions", ()))
            opened = cls(**known | {"path": path})
            _iso(opened.acquired)
        except _MALFORMED as error:
            raise ConfigError(
                f"{path}: not the file of an open lease: {error!r}. Check at the vendor that no "
                "session is open, and remove the file."
            ) from error
        return opened

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

    def close(self, *, times: JobTimes | None = None, reaped: bool = False) -> LeaseRecord:
        """Write the lease record and remove the file.

        Args:
            times: When the owner's job was submitted and started, if known.
            reaped: Whether the owner had died, or had left the lease.
        """
        usage = list(read_usage(self.usage_path))
        # Several payloads may share a task, and a rerun re-attaches to it for each of them.
        tasks = list({task.task_id: task for task in usage}.values())
        now = time.time()
        held = max(0.0, now - self.acquired)  # the clock may have been set back
        busy = min(total_seconds((task.started, task.ended) for task in usage), held)
        is_real = not is_emulated(self.qpu)
        bill = estimate_bill(
            tasks,
            traits=registered_type(self.type) or ResourceType(qrmi=""),
            mode=self.mode,
            closed=now,
            adopted=self.adopted,
        )
        bill = bill if is_real else NOTHING
        record = LeaseRecord(
            lease=self.lease,
            qpu=self.qpu,
            type=self.type,
            step=self.step,
            owner=self.owner,
            acquired=_iso(self.acquired),
            released=_iso(now),
            queue_wait=None if times is None else times.queue_wait,
            acquire=round(self.acquire, 3),
            held=round(held, 3),
            busy=round(busy, 3),
            idle=round(held - busy, 3),
            tasks=len(tasks),
            task_ids=[task.task_id for task in tasks],
            reaped=reaped,
            left=self.left,
            taken_over=self.taken_over,
            adopted=self.adopted,
            billed=bill.seconds,
            billing_rule=bill.rule,
            user=self.user,
            account=self.account,
            project=None if times is None else times.project,
            acquisitions=list(self.acquisitions),
            chosen=self.chosen,
            job_created=None if times is None else _iso(times.created),
            job_started=None if times is None else _iso(times.started),
            shots=sum(known) if (known := [each.shots for each in tasks if each.shots]) else None,
            reported=_reported(self.usage_path),
            without_result=[each.task_id for each in tasks if _has_run_in_vain(each)],
        )
        saves: list[Callable[[], None]] = [record.save]
        if is_real:  # the site accounts for its own QPUs
            saves.append(partial(save_for_site, record))
        for save in saves:
            try:
                save()
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


def _open_folder() -> Path:
    return state_folder() / "leases" / "open"


def _has_run_in_vain(task: TaskUsage) -> bool:
    return task.running is not None and task.state != TaskState.COMPLETED


def _reported(usage: Path) -> float | None:
    reports = read_reports(usage)
    return round(sum(reports.values()), 3) if reports else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
