"""The keeper: holds a stage's lease, and gives it to the stage's processes.

It acquires the QPU, publishes how to adopt the lease, and has the jobs that wait for it released.
Then it waits: for a member that asks for another session, for the last job to end, for SIGTERM. On
every path the lease is released once, what was published is removed, and the stage says why it has
ended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path

from qrmi_workflows.config.variables import QPU_STAGE, QPU_STAGE_MEMBER
from qrmi_workflows.errors import LeaseError, QPUError, RequestError, SchedulerError
from qrmi_workflows.lease.acquire import find_qpu
from qrmi_workflows.lease.at_exit import exit_deferred, exit_on_sigterm
from qrmi_workflows.lease.killwait import current_kill_wait
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.membership import is_member_alive
from qrmi_workflows.lease.open import open_found
from qrmi_workflows.lease.shared import count_lanes, lease_environment
from qrmi_workflows.lease.stage import Published, Stage, StageState, find_stage, update_stage
from qrmi_workflows.schedulers import is_this_job_requeued, this_job
from qrmi_workflows.stages.jobs import StageJobs
from qrmi_workflows.stages.members import Members
from qrmi_workflows.stages.modes import Action
from qrmi_workflows.stages.session import StageSession
from qrmi_workflows.state.locks import lock_file
from qrmi_workflows.state.process import Owner

__all__ = ["keep"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # how often the folder is looked at
_TOUCH_SECONDS = 5.0  # members expect a sign of life within KEEPER_SECONDS
# How often the scheduler is asked for waiting jobs that nobody has announced: soon after the stage
# has become ready, then ever less often.
_FIRST_SWEEP_SECONDS, _SWEEP_SECONDS = 1.0, 30.0
_TASKS_SECONDS = 5.0  # how often the vendor is asked about tasks that keep a session from ending
_BEFORE_SECONDS = 30.0  # how long to wait for the end of an earlier keeper


def keep(name: str, jobs: StageJobs, *, id: str | None = None) -> None:  # noqa: A002
    """Hold the lease of a stage until the stage ends.

    Args:
        name: The stage's name.
        jobs: Its jobs.
        id: The id of the stage's opening that is to be kept; if `None`, the present one.

    Raises:
        RequestError: There is no such stage, or another process keeps it.
        LeaseError: The vendor did not grant the QPU, or the release failed.
    """
    for variable in (QPU_STAGE, QPU_STAGE_MEMBER):  # or the keeper would join its own stage
        os.environ.pop(variable, None)
    exit_on_sigterm()
    stage = find_stage(name)
    with _lock(stage.folder.alive, name):
        stage = update_stage(name, lambda now: _start(now, id or stage.id))
        if stage.is_ended or stage.id != (id or stage.id):
            logger.warning("stage %r has ended: %s", name, stage.reason or "it was opened again")
            return
        _Keeper(stage, jobs).run()


def _lock(alive: Path, name: str) -> FileIO:
    try:
        # Wait: somebody may only be looking whether it is locked.
        return lock_file(alive, seconds=_BEFORE_SECONDS)
    except BlockingIOError as error:
        raise RequestError(
            f"stage {name!r} has a keeper already: {alive} is locked. Use the stage, or close it "
            "first."
        ) from error


def _start(stage: Stage, id: str) -> Stage:  # noqa: A002
    if stage.is_ended or stage.id != id:
        return stage
    # Before the lease of a keeper that was killed is looked at: members submit nothing until they
    # see the next publication.
    owner = Owner.this_process(this_job())
    return replace(stage, keeper=owner, state=StageState.OPENING, reason="")


def _ended(stage: Stage, reason: str) -> Stage:
    return replace(stage, state=StageState.ENDED, reason=reason)


class _Keeper:
    """Keeps one stage."""

    def __init__(self, stage: Stage, jobs: StageJobs) -> None:
        self._stage = stage
        self._folder = stage.folder
        self._jobs = jobs
        self._lease: Lease | None = None
        self._published: Published | None = None
        self._next_sweep = self._next_look_at_tasks = float("-inf")
        self._sweep_pause = _FIRST_SWEEP_SECONDS
        self._members = Members(stage.folder, report=self._say)
        self._active = time.monotonic()
        self._session = StageSession(stage, self._is_needed)
        self._next_session: Action | None = None
        self._token: str | None = None

    def run(self) -> None:
        """Open the lease, serve the stage, and end it on every path."""
        threading.Thread(target=self._touch, name="alive", daemon=True).start()
        reason, is_requeued = "its keeper failed", False
        try:
            self._publish(self._open())
            reason = self._serve()
        except QPUError as error:
            reason = error.message
            raise
        except OSError as error:
            reason = f"its keeper failed: {error.filename or self._folder.path}: {error.strerror}"
            raise
        except (SystemExit, KeyboardInterrupt):
            reason = "its keeper was stopped, by its time limit or a cancellation"
            is_requeued = is_this_job_requeued(timeout=current_kill_wait().record / 2)
            raise
        finally:
            # A second signal must not interrupt it: nothing would repeat it.
            with exit_deferred():
                if is_requeued:
                    self._pause()
                else:
                    self._end(reason)

    def _touch(self) -> None:
        while True:
            with suppress(OSError):
                self._folder.alive.touch()
            time.sleep(_TOUCH_SECONDS)

    def _open(self) -> Lease:
        stage = self._stage
        config = None if stage.config is None else Path(stage.config)
        found = find_qpu(stage.qpu, config=config)
        settings = self._session.settings(found)
        self._lease = lease = open_found(
            found, step=f"stage {stage.name}", config=config, settings=settings
        )
        lanes = stage.lanes or count_lanes(stage.qpu, lease.resource)
        self._change(lambda now: replace(self._with_mode(now), lanes=lanes))
        if self._has_only_held_jobs() and self._session.must_warm_up(lease):
            # Not in one of the stage's lanes: after a restart of the keeper, its members hold them
            # while they wait for it.
            reason = "waiting for the vendor's queue"
            self._change(lambda now: replace(now, reason=reason))
            self._say("runs a warm-up task: the vendor makes its session active with a first task")
            self._session.warm_up(lease)
        return lease

    def _has_only_held_jobs(self) -> bool:
        """Return whether no process of the stage waits for this session with a task of its own."""
        if self._published is not None:
            return False
        # Before the first publication, those that have joined need not be all that will come.
        return self._stage.generation == 0 or not self._members.alive()

    def _with_mode(self, stage: Stage) -> Stage:
        choice = self._session.choice
        if choice is None:
            return stage
        return replace(stage, session_mode=choice.mode, mode_reason=choice.reason)

    def _publish(self, lease: Lease) -> None:
        """Let the stage's processes use the lease from now on."""
        if not self._is_ours():
            return
        self._token = lease.held.qpu.token
        generation = self._stage.generation + 1
        variables = lease_environment([lease.held])
        published = Published(stage=self._stage.id, generation=generation, variables=variables)
        published.save(self._folder)
        self._published = published
        self._change(
            lambda now: replace(now, state=StageState.READY, generation=generation, reason="")
        )
        self._say(f"is ready: QPU {self._stage.qpu!r} is held (generation {generation})")
        self._ask_scheduler(self._jobs.release_waiting)
        # A job that was submitted just before, and that nobody announces, may be listed late.
        self._sweep_pause = _FIRST_SWEEP_SECONDS
        self._next_sweep = time.monotonic() + self._sweep_pause

    def _serve(self) -> str:
        """Wait until there is a reason to end the stage, and return it."""
        while True:
            self._look_at_wishes()
            if self._published is not None and not self._folder.environment.exists():
                self._say("publishes its lease again: the file was deleted")
                self._published.save(self._folder)
            self._look_at_session(self._lease)
            if (reason := self._reason_to_end()) is not None:
                return reason
            time.sleep(_LOOK_SECONDS)

    def _look_at_wishes(self) -> None:
        now = time.monotonic()
        for wish in list(self._folder.wishes.iterdir()):
            if self._asks_for_a_session(wish) and not self._renew(self._lease):
                continue
            if wish.name.startswith("jobs"):  # somebody has submitted a job that waits
                self._next_sweep = now
            with suppress(OSError):
                wish.unlink()
        if now >= self._next_sweep:
            self._next_sweep = now + self._sweep_pause
            self._sweep_pause = min(2 * self._sweep_pause, _SWEEP_SECONDS)
            self._ask_scheduler(self._jobs.release_waiting)

    def _asks_for_a_session(self, wish: Path) -> bool:
        """Return whether a living member asks for a session in place of the present one."""
        member = wish.name.removeprefix(f"renew-{self._stage.generation}-")
        return member != wish.name and is_member_alive(self._folder.members / member)

    def _look_at_session(self, lease: Lease | None) -> None:
        """Do what is best with an idle session."""
        if lease is None or (self._stage.closing and self._next_session is None):
            return
        action = self._next_session or self._session.look(lease)
        if action in (Action.REOPEN, Action.BATCH):
            self._next_session = action
            self._renew(lease, f"closes its idle session: {action}")
        elif lease.held.qpu.token != self._token:
            # The vendor had closed it, and the task that was to keep it warm has opened another.
            self._session.reopened()
            self._publish(lease)

    def _renew(
        self, lease: Lease | None, reason: str = "needs another session: the vendor closed the last"
    ) -> bool:
        """Acquire the QPU again, as soon as that is safe; return whether it was done.

        Args:
            lease: The lease.
            reason: Why, for the log.

        Raises:
            LeaseError: The vendor did not grant it, or the site owns the lease.
        """
        if lease is None or time.monotonic() < self._next_look_at_tasks:
            return False
        self._change(lambda now: replace(now, state=StageState.OPENING))
        # The vendor may let the tasks of a closed session finish. They have the QPU until then.
        try:
            running = lease.held.find_running_tasks()
        except QPUError as error:
            self._wait_for_tasks(f"the vendor does not tell what its tasks do: {error}")
            return False
        if running is not None:
            count = len(running.records)
            self._wait_for_tasks(f"its session has ended; {count} of its tasks still run")
            return False
        if lease.adopted:
            raise LeaseError(
                f"the session of QPU {lease.qpu!r} has ended, and the site, which opened it, must "
                "open another. Open the stage again, in a new job.",
                lease.qpu,
                retryable=True,
            )
        self._say(reason)
        # Members submit nothing now.
        if self._next_session is Action.BATCH:
            lease = self._open_batch(lease)
        else:
            self._session.reopen(lease)
        self._next_session = None
        self._publish(lease)
        return True

    def _open_batch(self, lease: Lease) -> Lease:
        """Open another lease, because a batch is billed by other rules than this one's session."""
        self._session.go_on_in_a_batch(lease)
        try:
            lease.release()
        except LeaseError as error:  # it is tried again before the next one is acquired
            logger.warning("%s", error)
        return self._open()

    def _wait_for_tasks(self, reason: str) -> None:
        self._next_look_at_tasks = time.monotonic() + _TASKS_SECONDS
        if reason != self._stage.reason:
            self._say(f"waits: {reason}")
            self._change(lambda now: replace(now, reason=reason))

    def _reason_to_end(self) -> str | None:
        stage, before = find_stage(self._stage.name), self._stage
        if stage.id != before.id:
            return "it was opened again"
        self._stage = stage
        if stage.is_ended:
            return stage.reason
        has_members = bool(self._members.alive())
        if stage.openers != before.openers or has_members:
            self._active = time.monotonic()
        if self._members.have_left():
            self._jobs.expect_change()
        idle = time.monotonic() - self._active
        if not stage.closing and idle < stage.idle_limit:
            return None
        try:
            if self._members.alive() or self._jobs.are_left():
                self._active = time.monotonic()
                return None
        except SchedulerError as error:
            logger.warning("%s", error)
            return None
        reason = "closed" if stage.closing else f"it had nothing to do for {idle:.0f} s"
        # Not if a workflow has opened it again since the scheduler was asked for its jobs.
        self._change(lambda now: _ended(now, reason) if now == stage else now)
        return reason if self._stage.is_ended else None

    def _is_ours(self) -> bool:
        stage = find_stage(self._stage.name)
        return stage.id == self._stage.id and not stage.is_ended

    def _is_needed(self) -> bool:
        """Return whether the stage's session is still needed, while the keeper waits for it."""
        if not self._is_ours():
            return False
        if not find_stage(self._stage.name).closing or self._members.alive():
            return True
        try:
            return self._jobs.are_left()
        except SchedulerError as error:
            logger.warning("%s", error)
            return True

    def _pause(self) -> None:
        """Release the lease, and leave the stage to the keeper that the scheduler will start."""
        reason = "its keeper's job was requeued, and waits for the QPU again"
        self._say(f"pauses: {reason}")
        self._tell(lambda now: replace(now, state=StageState.OPENING, keeper=None, reason=reason))
        if self._lease is not None:
            self._lease.release()

    def _end(self, reason: str) -> None:
        self._say(f"ends: {reason}")
        # In this order: nobody joins or submits any more, the lease is released, and then whatever
        # may take longer than the scheduler allows.
        self._tell(lambda now: _ended(now, reason))
        try:
            if self._lease is not None:
                self._lease.release()
        finally:
            self._ask_scheduler(lambda: self._jobs.cancel_waiting(reason))

    def _tell(self, change: Callable[[Stage], Stage]) -> None:
        """Remove the token, and say in the stage's folder what has become of it."""
        # In a thread, because the folder's lock may be held by a process that hangs, and the lease
        # must be released in time all the same.
        told = threading.Thread(target=self._try_to_tell, args=(change,), name="end", daemon=True)
        told.start()
        told.join(current_kill_wait().record / 2)
        if told.is_alive():
            self._say("cannot say so in its folder yet: another process holds its lock")

    def _try_to_tell(self, change: Callable[[Stage], Stage]) -> None:
        try:
            # First, because it works on a full disk. It is this keeper's: it holds `alive`.
            self._folder.environment.unlink(missing_ok=True)
            self._change(change)
        except (OSError, QPUError) as error:  # the folder was deleted, say
            self._say(f"cannot say so in its folder: {error}")

    def _change(self, change: Callable[[Stage], Stage]) -> None:
        """Change the stage, unless it has ended, or been opened again, in the meantime."""
        ours = self._stage.id

        def change_ours(now: Stage) -> Stage:
            return change(now) if now.id == ours and not now.is_ended else now

        after = update_stage(self._stage.name, change_ours)
        if after.id == ours:
            self._stage = after

    def _say(self, what: str) -> None:
        logger.warning("stage %r %s", self._stage.name, what)

    def _ask_scheduler(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except SchedulerError as error:
            logger.warning("%s", error)
