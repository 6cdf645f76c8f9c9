"""The QPU under a lease, from acquire to release. Several `Lease` objects may share it."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from qrmi_workflows.client.failures import is_session_ended, is_transient
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.folders import state_folder
from qrmi_workflows.config.job import JobQPU, read_job, write_job
from qrmi_workflows.config.site import load_site_policy
from qrmi_workflows.config.variables import (
    QPU_HELD_LANES,
    QPU_LEASE_JOB,
    QPU_LEASE_USAGE,
    OnStop,
    on_stop,
    requested_lanes,
)
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError
from qrmi_workflows.lease.acquire import acquire
from qrmi_workflows.lease.at_exit import exit_deferred, forget_at_exit, release_at_exit
from qrmi_workflows.lease.killwait import current_kill_wait, learn_kill_wait, release_budget
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.lease.time_limit import ask_time_limit
from qrmi_workflows.lease.wanted import RunningTasks, find_running_tasks, releasing_cancels
from qrmi_workflows.retry import retry
from qrmi_workflows.schedulers import describe_this_job, this_job, this_scheduler
from qrmi_workflows.tasks.deletion import TaskDeletions
from qrmi_workflows.tasks.lanes import LaneSemaphore, lane_semaphore
from qrmi_workflows.tasks.usage import note_submission
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["HeldQPU", "lease_environment"]

logger = logging.getLogger(__name__)

_RENEWAL_SECONDS = 2.0
_SHORTEST_CALL = 0.5  # seconds: a release call needs some time, however late it is made


class HeldQPU:
    """A QPU under a lease; created by `adopt`, `acquire` and `take_over`.

    Attributes:
        qpu: The QPU, with its acquisition token.
        resource: QRMI's handle to the QPU; its tasks run under that token.
        deletions: Deletes its tasks that have ended, if its vendor needs that.
        released: Whether it has been released.
        queue_wait: How many seconds its job was pending; if `None`, the scheduler is asked.
    """

    def __init__(self, qpu: JobQPU, opened: OpenLease | None) -> None:
        self.qpu = qpu
        self.resource = _resource(qpu)
        self.deletions = TaskDeletions(self.resource, registered_type(qpu.type))
        self.released = False
        self.queue_wait: float | None = None
        self._opened = opened
        self._owners_usage: Path | None = None
        self._pid = os.getpid()
        self._last_renewal = float("-inf")
        self._on_stop: dict[Path, OnStop | None] = {}
        self._lock = threading.Lock()
        self._renewing = threading.Lock()

    @classmethod
    def adopt(cls, carried: JobQPU, *, step: str = "") -> Self:
        """Use a QPU that another process, or the site, has acquired and will release.

        The process that acquired it records the use that it and its children make of it. The site
        records none, so this process records its own.

        Args:
            carried: The QPU, as `find_qpu` returns it.
            step: The name of the step that uses it.
        """
        adopted = cls(carried, None)
        adopted._owners_usage = _find_owners_usage(carried.name)
        if adopted._owners_usage is None:
            adopted._opened = OpenLease.create(
                qpu=carried.name,
                type=carried.type,
                step=step,
                acquire=0.0,
                config=None,
                token="",
                adopted=True,
            )
            release_at_exit(adopted, adopted.release)
        return adopted

    @classmethod
    def take_over(cls, found: JobQPU, opened: OpenLease) -> Self:
        """Hold a QPU whose open lease this process has taken over.

        The vendor is not asked whether the session still accepts tasks. QRMI could only acquire it
        again, which closes it, with its tasks, when little of its time is left (IBM QCS, qrmi
        0.26.4). If it accepts none, the first submission renews the lease.
        """
        threading.Thread(target=learn_kill_wait, name="kill-wait", daemon=True).start()
        environment = {**ask_time_limit().result(), **found.environment}
        taken = cls(replace(found, environment=environment, token=opened.token), opened)
        taken.resource.prepare()  # for the release, which may come at exit
        return taken

    @classmethod
    def acquire(
        cls, found: JobQPU, *, step: str, config: Path | None, stop: threading.Event
    ) -> Self:
        """Acquire a QPU and record the open lease.

        Args:
            found: The QPU, as `find_qpu` returns it.
            step: The name of the step that the QPU is held for.
            config: The `qrmi_config.json` that defines it.
            stop: Set this event to give up.

        Raises:
            ConfigError: The QPU's settings are incomplete.
            LeaseError: The vendor did not grant it.
        """
        # In the background while the vendor is asked, because this runs a scheduler command.
        threading.Thread(target=learn_kill_wait, name="kill-wait", daemon=True).start()
        limit = ask_time_limit()
        start = time.monotonic()
        held = replace(found, token=acquire(found, _resource(found), stop))
        try:
            opened = OpenLease.create(
                qpu=held.name,
                type=held.type,
                step=step,
                acquire=time.monotonic() - start,
                config=config,
                token=held.token or "",
            )
        except BaseException:  # without a record, nothing would ever release it
            with suppress(QPUError):
                _resource(held).release(held.token or "")
            raise
        # The file's own settings take precedence over the job's time limit.
        held = replace(held, environment={**limit.result(), **held.environment})
        acquired = cls(held, opened)
        acquired.resource.prepare()  # for the release, which may come at exit
        return acquired

    @property
    def is_adopted(self) -> bool:
        """Whether another process, or the site, owns the lease: for a forked child, its parent."""
        return self._opened is None or self._opened.adopted or self._pid != os.getpid()

    def usage_path(self) -> Path | None:
        """Return the lease's usage file; `None` if there is none (any more)."""
        return self._owners_usage if self._opened is None else self._opened.usage_path

    # Cached, because counting may ask the vendor and the number does not change under a lease.
    @functools.cached_property
    def lanes(self) -> LaneSemaphore:
        """The QPU's lanes, shared with all processes that use the lease."""
        is_of_site = self._opened is not None and self._opened.adopted
        folder = _lanes_folder(self.qpu.name, None if is_of_site else self.usage_path())
        return lane_semaphore(_count_lanes(self.qpu.name, self.resource), folder)

    def renew(self) -> bool:
        """Acquire the QPU again after its vendor has closed the session.

        Returns:
            Whether a session is open now; `False` if another process owns the lease.

        Raises:
            LeaseError: The vendor did not grant it.
        """
        with self._renewing:
            if self._opened is None or self.is_adopted:
                return False
            # All lanes notice a closed session at the same time; the first one renews it.
            if time.monotonic() - self._last_renewal < _RENEWAL_SECONDS:
                return True
            name = self.qpu.name
            logger.warning("the vendor has closed the session of QPU %r; acquiring it again", name)
            # A handle that knows the old token would ask the vendor to reuse the closed session
            # (IBM QCS, qrmi 0.26.4), so acquire with a new handle without a token.
            unheld = replace(self.qpu, token=None)
            token = acquire(unheld, _resource(unheld), threading.Event())
            with self._lock:
                if not self.released:
                    self.resource.use_token(token)
                    self.qpu = replace(self.qpu, token=token)
                    self._opened = self._opened.renew(token)
                    self._last_renewal = time.monotonic()
                    return True
        with suppress(QPUError):  # released while it was being acquired again
            self.resource.release(token)
        return False

    def release(self) -> None:
        """Release the QPU and write the lease record; leave an adopted QPU to its owner.

        Raises:
            LeaseError: The release failed.
        """
        self.deletions.try_again(release_budget().record)
        if self._opened is None or self._pid != os.getpid():
            return
        if self._opened.adopted:
            # Only this process's use of it ends. Leases of other steps may go on using the QPU.
            used, self._opened = self._opened, None
            forget_at_exit(self)
            used.close(queue_wait=self.queue_wait)
            return
        with self._lock:
            self.released = True
        try:
            # A second signal must not interrupt the release: nothing would repeat it.
            with exit_deferred():
                if (running := self._find_running_tasks()) is not None:
                    self._leave()
                    logger.warning("%s", running)
                    return
                self._release_in_time()
                self._opened.close(queue_wait=self._find_queue_wait())
        except QPUError as error:
            self._leave()
            raise LeaseError(
                f"the lease of QPU {self.qpu.name!r} could not be released: {error} Run `qpu "
                "reap` to try again; at the latest, the vendor ends the session when its time to "
                "live expires.",
                self.qpu.name,
                retryable=True,
            ) from error

    def note_submission(self, record: Path, on_stop: OnStop | None) -> None:
        """Note that a task is about to be submitted under the lease.

        Args:
            record: The task's record in the journal.
            on_stop: Whether the task is cancelled, or left for a rerun, if this process is stopped;
                what `$QPU_ON_STOP` then says, if `None`.
        """
        usage = self.usage_path()
        if usage is None or not releasing_cancels(self.qpu.type):
            return
        self._on_stop[record.absolute()] = on_stop
        try:
            note_submission(usage, record)
        except OSError as error:
            logger.warning("not noted, so a crash would cancel the task: %s: %s", usage, error)

    def on_stop(self) -> OnStop:
        """Return what happens by default to the tasks of a stopped step: as `$QPU_ON_STOP` says.

        If the process that holds the lease has been killed, nobody has stopped the step, although
        its children get SIGTERM then: its tasks are left for a rerun, as if all had been killed.
        """
        return "leave" if self._holder_was_killed() else on_stop()

    def _holder_was_killed(self) -> bool:
        opened, usage = self._opened, self.usage_path()
        if opened is None and usage is not None:
            with suppress(OSError, ConfigError):  # released, or not a lease of ours
                opened = OpenLease.load(OpenLease.of_usage(usage))
        return opened is not None and opened.owner.is_alive() is False

    def _find_running_tasks(self) -> RunningTasks | None:
        """Find the tasks for which the lease must outlive this process."""
        if self._opened is None:
            return None
        # Those of this process that are cancelled when it is stopped do not keep the lease open.
        cancelled = [path for path, own in self._on_stop.items() if (own or on_stop()) == "cancel"]
        return find_running_tasks(
            self._opened,
            self.resource,
            environment=self.qpu.environment,
            seconds=release_budget().release_call,
            ignored=cancelled,
        )

    def _leave(self) -> None:
        """Let others take the lease over, or release it, although this process is alive."""
        try:
            if self._opened is not None:
                self._opened.leave()
        except OSError as error:
            logger.warning("the lease was not recorded as left open: %s", error)

    def _release_in_time(self) -> None:
        """Release within this share of KillWait, even if the vendor fails or hangs."""
        end = time.monotonic() + release_budget().release

        def request() -> None:
            # Looked up for each call: SIGTERM may have arrived since the last one.
            seconds = min(release_budget().release_call, end - time.monotonic())
            self.resource.release(self.qpu.token or "", deadline=max(_SHORTEST_CALL, seconds))

        def may_repeat(error: BaseException) -> bool:
            return is_transient(error) and not is_session_ended(error)

        seconds = max(0.0, end - time.monotonic() - _SHORTEST_CALL)
        try:
            retry(request, may_repeat, seconds=seconds, max_pause=1.0)
        except QPUError as error:
            if not is_session_ended(error):
                raise

    def _find_queue_wait(self) -> float | None:
        job = this_job()
        if job is None or self.queue_wait is not None:
            return self.queue_wait
        return this_scheduler().queue_wait(job.id, timeout=current_kill_wait().record / 2)


def lease_environment(held: Iterable[HeldQPU]) -> dict[str, str]:
    """Return the variables that let a child process adopt these leases; they hold credentials."""
    all_held = list(held)
    variables = describe_this_job() | write_job(_complete(each.qpu) for each in all_held)
    job = this_job()
    variables[QPU_LEASE_JOB] = "" if job is None else job.id
    usage = [each.usage_path() for each in all_held]
    if any(usage):
        variables[QPU_LEASE_USAGE] = os.pathsep.join(str(path or "") for path in usage)
    if QPU_HELD_LANES in os.environ:  # inside of a call, whose lane the child shares
        variables[QPU_HELD_LANES] = os.environ[QPU_HELD_LANES]
    return variables


def _complete(qpu: JobQPU) -> JobQPU:
    """Add the defaults of the QPU's type, which programs that only know QRMI do not have."""
    known = registered_type(qpu.type)
    defaults = {} if known is None else known.settings
    return replace(qpu, environment={**defaults, **qpu.environment})


def _find_owners_usage(qpu: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the usage file that the lease's owner keeps; `None` if the site owns the lease."""
    # In the order of the job's QPUs, because each has a lease of its own.
    paths = environ.get(QPU_LEASE_USAGE, "").split(os.pathsep)
    named = dict(zip(read_job(environ), paths, strict=False)).get(qpu)
    return Path(named) if named else None


def _lanes_folder(qpu: str, usage: Path | None) -> Path | None:
    """Return the folder for locking the lease's lanes; `None` if no other process can share it."""
    if usage is not None:
        return OpenLease.lanes_folder(usage) / qpu
    # A lease that the site acquired is shared by the processes of its job.
    job = this_job()
    return state_folder() / "leases" / "adopted" / f"{job.id}.lanes" / qpu if job else None


def _count_lanes(qpu: str, resource: QRMIResource) -> int:
    """Return the number of lanes: from `$QPU_LANES`, the site policy or the vendor, else 1."""
    if (lanes := requested_lanes()) is not None:
        return lanes
    with suppress(ConfigError):
        return load_site_policy().qpu(qpu).lanes
    with suppress(QPUError):
        capacity = resource.status().capacity
        if capacity is not None and capacity.max_slots:
            return int(capacity.max_slots)
    return 1


def _resource(qpu: JobQPU) -> QRMIResource:
    return QRMIResource(qpu.name, qpu.type, qpu.environment, token=qpu.token)
