"""The QPU under a lease, from acquire to release. Several `Lease` objects may share it."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.variables import OnStop, on_stop
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError, SessionEndedError
from qrmi_workflows.lease.acquire import acquire
from qrmi_workflows.lease.at_exit import exit_deferred, forget_at_exit, release_at_exit
from qrmi_workflows.lease.killwait import current_kill_wait, learn_kill_wait, release_budget
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.lease.releasing import release_in_time, releasing_cancels
from qrmi_workflows.lease.shared import count_lanes, find_owners_usage, lanes_folder
from qrmi_workflows.lease.time_limit import ask_time_limit
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.schedulers.base import JobTimes
from qrmi_workflows.tasks.deletion import TaskDeletions
from qrmi_workflows.tasks.lanes import LaneSemaphore, lane_semaphore
from qrmi_workflows.tasks.usage import note_submission, read_submissions
from qrmi_workflows.vendors.registry import registered_type

if TYPE_CHECKING:
    from qrmi_workflows.lease.emulated import PrivateEmulator
    from qrmi_workflows.lease.membership import Membership
    from qrmi_workflows.lease.wanted import RunningTasks
    from qrmi_workflows.tasks.waiting_room import WaitingRoom

__all__ = ["HeldQPU"]

logger = logging.getLogger(__name__)


class HeldQPU:
    """A QPU under a lease; created by `adopt`, `join`, `acquire` and `take_over`.

    Attributes:
        qpu: The QPU, with its acquisition token.
        resource: QRMI's handle to the QPU; its tasks run under that token.
        deletions: Deletes its tasks that have ended, if its vendor needs that.
        released: Whether it has been released.
        job_times: When its job was submitted and started; if `None`, the scheduler is asked.
        membership: This process's part in the stage whose keeper owns the lease, if any.
        emulator: The QPU's own emulator, if this process holds an emulated QPU.
        shared_lanes: How many lanes the stage has that this process has joined, and the folder
            where its processes lock them.
        leaves_tasks: Whether its tasks are left for another job of the step, whatever
            `$QPU_ON_STOP` says.
        budget_of: The QPU whose lease has the budget, if its tasks have come from there.
    """

    def __init__(self, qpu: JobQPU, opened: OpenLease | None) -> None:
        self.qpu = qpu
        self.resource = _resource(qpu)
        self.deletions = TaskDeletions(self.resource, registered_type(qpu.type))
        self.released = False
        self._room: WaitingRoom | None = None
        self._room_lock = threading.Lock()
        self.job_times: JobTimes | None = None
        self.membership: Membership | None = None
        self.emulator: PrivateEmulator | None = None
        self.shared_lanes: tuple[int, Path] | None = None
        self.budget_of: HeldQPU | None = None
        self.leaves_tasks = False
        self._opened = opened
        self._owners_usage: Path | None = None
        self._pid = os.getpid()
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
        adopted._owners_usage = find_owners_usage(carried.name)
        if adopted._owners_usage is None:
            adopted._opened = OpenLease.create(
                qpu=carried.name,
                type=carried.type,
                step=step,
                acquire=0.0,
                config=None,
                token=carried.token or "",
                adopted=True,
                mode=_session_mode(carried),
            )
            release_at_exit(adopted, adopted.release)
        return adopted

    @classmethod
    def join(cls, membership: Membership) -> Self:
        """Use the QPU of a stage, whose keeper acquires and releases it."""
        joined = cls(membership.qpu, None)
        joined.membership = membership
        joined.shared_lanes = membership.lanes, membership.stage.lanes_folder
        return joined

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
        cls,
        found: JobQPU,
        *,
        step: str,
        config: Path | None,
        stop: threading.Event,
        emulator: PrivateEmulator | None = None,
    ) -> Self:
        """Acquire a QPU and record the open lease.

        Args:
            found: The QPU, as `find_qpu` returns it.
            step: The name of the step that the QPU is held for.
            config: The `qrmi_config.json` that defines it.
            stop: Set this event to give up.
            emulator: The QPU's own emulator, which ends with the lease, if it is emulated.

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
                mode=_session_mode(held),
            )
        except BaseException:  # without a record, nothing would ever release it
            with suppress(QPUError):
                _resource(held).release(held.token or "")
            raise
        # The file's own settings take precedence over the job's time limit.
        held = replace(held, environment={**limit.result(), **held.environment})
        acquired = cls(held, opened)
        acquired.emulator = emulator
        acquired.resource.prepare()  # for the release, which may come at exit
        return acquired

    @property
    def is_adopted(self) -> bool:
        """Whether another process, or the site, owns the lease: for a forked child, its parent."""
        return self._opened is None or self._opened.adopted or self._pid != os.getpid()

    @property
    def was_taken_over(self) -> bool:
        """Whether an earlier process acquired it; its tasks were running when it was taken over."""
        return self._opened is not None and self._opened.taken_over > 0

    @property
    def session_mode(self) -> str | None:
        """The mode of the session, `dedicated` or `batch`, if this process has acquired one."""
        return None if self._opened is None else self._opened.mode

    def usage_path(self) -> Path | None:
        """Return the lease's usage file; `None` if there is none (any more)."""
        if self.membership is not None:
            return self.membership.published.usage
        return self._owners_usage if self._opened is None else self._opened.usage_path

    @property
    def room(self) -> WaitingRoom:
        """Where payloads wait for others with which they may share a task."""
        from qrmi_workflows.tasks.waiting_room import WaitingRoom

        with self._room_lock:  # several leases may share it
            if self._room is None or self._room.is_inherited:
                self._room = WaitingRoom()
            return self._room

    # Cached, because counting may ask the vendor and the number does not change under a lease.
    @functools.cached_property
    def lanes(self) -> LaneSemaphore:
        """The QPU's lanes, shared with all processes that use the lease."""
        if self.shared_lanes is not None:
            return lane_semaphore(*self.shared_lanes)
        is_of_site = self._opened is not None and self._opened.adopted
        folder = lanes_folder(self.qpu.name, None if is_of_site else self.usage_path())
        return lane_semaphore(count_lanes(self.qpu.name, self.resource), folder)

    def require_open(self) -> None:
        """Refuse a submission while the keeper of the stage cannot vouch for the lease.

        Raises:
            SessionEndedError: Nothing was submitted; `renew` waits for the keeper.
        """
        if self.membership is not None:
            self.membership.require_open()

    def renew(self, ended: SessionEndedError, token: str | None, stop: threading.Event) -> bool:
        """Get another session after the present one has ended: acquire it, or await the keeper's.

        Args:
            ended: The error of the submission that was refused.
            token: The acquisition token under which it was made.
            stop: Set this event to give up waiting for the keeper.

        Returns:
            Whether a session is open now; `False` if another process owns the lease.

        Raises:
            LeaseError: The vendor did not grant it, or the stage has ended.
        """
        with self._renewing:
            # All lanes notice a closed session at the same time; the first one renews it.
            if token != self.qpu.token:
                return True
            if self.membership is not None:
                return self._await_keeper(self.membership, ended, stop)
            if self._opened is None or self.is_adopted:
                return False
            name = self.qpu.name
            logger.warning("the vendor has closed the session of QPU %r; acquiring it again", name)
            # A handle that knows the old token would ask the vendor to reuse the closed session
            # (IBM QCS, qrmi 0.26.4), so acquire with a new handle without a token.
            unheld = replace(self.qpu, token=None)
            token = acquire(unheld, _resource(unheld), threading.Event())
            with self._lock:
                if not self.released:
                    self._use(replace(self.qpu, token=token))
                    self._opened = self._opened.renew(token)
                    return True
        with suppress(QPUError):  # released while it was being acquired again
            self.resource.release(token)
        return False

    def end_session(self) -> None:
        """Close the session before another one is acquired; the vendor may have done so already."""
        with suppress(QPUError):
            self.resource.release(self.qpu.token or "")

    def _await_keeper(
        self, membership: Membership, ended: SessionEndedError, stop: threading.Event
    ) -> bool:
        # `require_open` raises the error, too; only the vendor's own says that the session is over.
        membership.await_newer(stop, is_session_ended=bool(ended.call))
        if not stop.is_set():
            self._use(membership.qpu)
        return True  # a stopped task finds out by itself

    def _use(self, qpu: JobQPU) -> None:
        """Use the QPU under another acquisition token from now on."""
        if qpu.token is not None and qpu.token != self.qpu.token:
            self.resource.use_token(qpu.token)
        self.qpu = replace(self.qpu, token=qpu.token)

    def release(self) -> None:
        """Release the QPU and write the lease record; leave an adopted QPU to its owner.

        Raises:
            LeaseError: The release failed.
        """
        self.deletions.try_again(release_budget().record)
        if self.membership is not None:
            self._leave_stage(self.membership)
        if self._opened is None or self._pid != os.getpid():
            return
        if self._opened.adopted:
            # Only this process's use of it ends. Leases of other steps may go on using the QPU.
            used, self._opened = self._opened, None
            forget_at_exit(self)
            used.close(times=self.job_times)
            return
        with self._lock:
            self.released = True
        if self.emulator is not None:
            with exit_deferred():
                self.emulator.stop()  # and its tasks and sessions with it
                self._opened.close(times=self._find_job_times())
            return
        try:
            # A second signal must not interrupt the release: nothing would repeat it.
            with exit_deferred():
                if (running := self.find_running_tasks()) is not None:
                    self._leave()
                    logger.warning("%s", running)
                    return
                release_in_time(self.resource, self.qpu.token or "")
                self._opened.close(times=self._find_job_times())
        except QPUError as error:
            self._leave()
            raise LeaseError(
                f"the lease of QPU {self.qpu.name!r} could not be released: {error} Run `qpu "
                "reap` to try again; at the latest, the vendor ends the session when its time to "
                "live expires.",
                self.qpu.name,
                retryable=True,
            ) from error

    def _leave_stage(self, membership: Membership) -> None:
        membership.leave()
        # A keeper that ends leaves the lease to the tasks of its members.
        if self._pid == os.getpid() and membership.was_left_to_members():
            reap(patience=release_budget().release_call)

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
        return "leave" if self.leaves_tasks or self._holder_was_killed() else on_stop()

    def _holder_was_killed(self) -> bool:
        if self.membership is not None:
            return self.membership.supervisor_was_killed()
        opened, usage = self._opened, self.usage_path()
        if opened is None and usage is not None:
            with suppress(OSError, ConfigError):  # released, or not a lease of ours
                opened = OpenLease.load(OpenLease.of_usage(usage))
        return opened is not None and opened.owner.is_alive() is False

    def find_running_tasks(self) -> RunningTasks | None:
        """Find the tasks for which the lease must outlive this process."""
        if self._opened is None or not read_submissions(self._opened.usage_path):
            return None
        from qrmi_workflows.lease.wanted import find_running_tasks

        # Those of this process that are cancelled when it is stopped do not keep the lease open.
        default = "leave" if self.leaves_tasks else on_stop()
        cancelled = [path for path, own in self._on_stop.items() if (own or default) == "cancel"]
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

    def _find_job_times(self) -> JobTimes | None:
        job = this_job()
        if job is None or self.job_times is not None:
            return self.job_times
        return this_scheduler().job_times(job.id, timeout=current_kill_wait().record / 2)


def _session_mode(qpu: JobQPU) -> str | None:
    known = registered_type(qpu.type)
    return None if known is None else known.session_mode(qpu.environment)


def _resource(qpu: JobQPU) -> QRMIResource:
    return QRMIResource(qpu.name, qpu.type, qpu.environment, token=qpu.token)
