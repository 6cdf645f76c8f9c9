"""The session of a stage's lease: its mode, its first task, and what is done between tasks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import ConfigError, LeaseError, QPUError, SessionEndedError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.at_exit import run_uninterrupted
from qrmi_workflows.lease.killwait import current_kill_wait
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.stage import Stage
from qrmi_workflows.stages.modes import (
    Action,
    Decision,
    ModeChoice,
    Situation,
    choose_mode,
    decide,
    gaps_between,
)
from qrmi_workflows.stages.warm_up import find_warm_up, name_warm_up
from qrmi_workflows.state.locks import is_locked
from qrmi_workflows.tasks.usage import TaskUsage, read_usage
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["StageSession"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # how often the tasks' usage is read, at least
_LOOKS = 20  # in an interactive TTL, at most
_AHEAD = 0.25  # of the interactive TTL: how long before its end a session is kept warm
_FEWEST_GAPS = 2  # from which the next one is predicted
_LEAST_QUEUE = 10.0  # seconds: a new session takes time even if the queue was empty the last time


class StageSession:
    """Watches the session of one stage's lease.

    Args:
        stage: The stage.
        is_wanted: Returns whether the stage still needs its session.
    """

    def __init__(self, stage: Stage, is_wanted: Callable[[], bool]) -> None:
        self._stage = stage
        self._is_wanted = is_wanted
        self._policy = _policy(stage.qpu)
        self._traits = ResourceType(qrmi="")
        self._queue = _LEAST_QUEUE
        self._next_look = 0.0
        self._opened = 0.0
        self._own: set[str] = set()
        self._decided: tuple[float, Action] | None = None
        self._earlier: list[TaskUsage] = []
        self.choice: ModeChoice | None = None
        if stage.session_mode is not None:  # another keeper has chosen it, which was killed
            self.choice = ModeChoice(mode=stage.session_mode, reason=stage.mode_reason)

    def settings(self, found: JobQPU) -> dict[str, str]:
        """Choose the mode of the session, and return the settings that tell QRMI; log the reason.

        Args:
            found: The QPU, before it is acquired.
        """
        self._traits = registered_type(found.type) or self._traits
        configured = self._traits.session_mode(found.environment)
        setting = self._traits.mode_setting
        if configured is None or setting is None or found.token is not None:
            return {}
        if self.choice is None:
            self.choice = choose_mode(
                requested=self._stage.mode, policy=self._policy.mode, configured=configured
            )
        self._log(f"opens a {self.choice.mode} session: {self.choice.reason}")
        return {setting: self.choice.mode}

    def must_warm_up(self, lease: Lease) -> bool:
        """Return whether a lease that was opened just now needs a warm-up task.

        The session of one that was taken over runs tasks. But if it was taken over from a keeper
        that was killed before the stage was ready, a warm-up task may be all that it has.
        """
        if not self._may_warm_up or lease.adopted:
            return False
        return not lease.held.was_taken_over or self._left(lease) is not None

    def warm_up(self, lease: Lease, *, seconds: float = math.inf) -> None:
        """Run a minimal task, which makes the session active.

        If it fails, the session's first task waits in the vendor's queue in its place.

        Args:
            lease: The stage's lease.
            seconds: How long it may take; then it is cancelled.

        Raises:
            LeaseError: The session has ended, and the vendor did not grant another.
        """
        if self._traits.warm_up is None:
            return
        step, started = self._left(lease) or name_warm_up(self._stage), time.time()
        try:
            task_id = self._run(self._traits.warm_up, lease, step, seconds)
        except LeaseError:
            raise
        except QPUError as error:
            self._log(f"goes on without a warm-up task, which failed: {error}")
            return
        except CancelledError:
            self._log("has cancelled its warm-up task, which is no longer needed")
            return
        finally:
            with suppress(QPUError):
                Journal().archive(step)
        self._own.add(task_id)
        own = [each for each in self._tasks(lease) if each.task_id == task_id]
        waited = max((each.running - each.started for each in own if each.running), default=0.0)
        self._queue = max(self._queue, waited)
        self._log(
            f"has an active session: its warm-up task took {time.time() - started:.1f} s, "
            f"{waited:.1f} s of them in the vendor's queue"
        )

    def _run(self, payload: Mapping[str, Any], lease: Lease, step: str, seconds: float) -> str:
        limit = time.monotonic() + seconds
        with lease.for_step(step) as warm:
            task = warm.submit(payload, on_stop="cancel")
            while not task.wait(_LOOK_SECONDS):
                if time.monotonic() > limit or not self._is_wanted():
                    task.cancel_task()
            return task.result().task_id

    def _left(self, lease: Lease) -> str | None:
        """Return the step of the warm-up that a killed keeper has left, if nothing else runs."""
        if self._stage.generation or not lease.held.was_taken_over:
            return None
        return find_warm_up(self._stage, lease.held.usage_path())

    @property
    def _may_warm_up(self) -> bool:
        return self._traits.warm_up is not None and self._stage.warm_up and self._policy.warm_up

    def reopen(self, lease: Lease) -> None:
        """Get another session under a lease.

        Without a warm-up task: whoever asked for the session has a task for it, and no job is held
        meanwhile that would otherwise wait on a node.

        Raises:
            LeaseError: The vendor did not grant it.
        """
        # A session that takes no tasks but is still open would be in the way of the next one, and
        # nobody would close it later.
        lease.held.end_session()
        ended = SessionEndedError(f"the session of QPU {lease.qpu!r} has ended.", lease.qpu)
        run_uninterrupted(
            lambda stop: lease.held.renew(ended, lease.held.qpu.token, stop),
            lambda _: None,  # a session that is granted after the release is released there
            late_seconds=current_kill_wait().command,
        )
        self.reopened()

    def reopened(self) -> None:
        """Note that another session has been opened, which is not active yet."""
        self._opened = time.time()

    def go_on_in_a_batch(self, lease: Lease) -> None:
        """Have the next session be a batch.

        Args:
            lease: The lease of the present session, whose tasks are remembered.
        """
        self._earlier = self._tasks(lease)
        reason = "it is expected to cost less than a dedicated session that is idle so often"
        self.choice = ModeChoice(mode="batch", reason=reason)
        self.reopened()

    def look(self, lease: Lease) -> Action | None:
        """Keep an idle session warm, if that is best; return what else is to be done."""
        now = time.time()
        mode = lease.held.session_mode
        if self._traits.warm_up is None or mode is None or now < self._next_look:
            return None
        if lease.adopted:
            return None  # the session is the site's
        ttl = self._policy.interactive_ttl or self._traits.interactive_ttl
        self._next_look = now + min(_LOOK_SECONDS, ttl / _LOOKS)
        if any(is_locked(lane) for lane in self._stage.lanes_folder.glob("lane-*")):
            return None  # a task has not ended
        tasks = self._tasks(lease)
        spans = [(task.started, task.ended) for task in tasks if task.task_id not in self._own]
        last = max((task.ended for task in tasks), default=0.0)
        if last <= self._opened or now - last > ttl or len(gaps_between(spans)) < _FEWEST_GAPS:
            return None
        decision = decide(self._situation(mode, spans, now - last, ttl, now), self._possible)
        self._log_decision(last, decision)
        if decision.action is Action.KEEP_WARM and now - last >= (1 - _AHEAD) * ttl:
            self.warm_up(lease, seconds=ttl)  # in an active session, it starts at once
        return decision.action

    @property
    def _possible(self) -> tuple[Action, ...]:
        possible = [Action.REOPEN]
        if self._may_warm_up:
            possible.append(Action.KEEP_WARM)
        if self._stage.mode == "auto" and self._policy.mode == "auto":
            possible.append(Action.BATCH)
        return tuple(possible)

    def _situation(
        self, mode: str, spans: list[tuple[float, float]], since: float, ttl: float, now: float
    ) -> Situation:
        gaps = gaps_between(spans)
        return Situation(
            mode=mode,
            gaps=gaps,
            idle=now - max(ended for _, ended in spans),
            since_task=since,
            interactive_ttl=ttl,
            queue=self._queue,
            task_overhead=self._traits.task_overhead,
            waiting_cost=self._policy.waiting_cost,
            gaps_left=len(gaps),  # of a stage at work, half is done on average
        )

    def _tasks(self, lease: Lease) -> list[TaskUsage]:
        """Return the tasks that have ended, also those of a lease before this one."""
        usage = lease.held.usage_path()
        return [*self._earlier, *([] if usage is None else read_usage(usage))]

    def _log_decision(self, last: float, decision: Decision) -> None:
        if self._decided != (last, decision.action):
            self._decided = last, decision.action
            self._log(f"decides about its session: {decision.reason}")

    def _log(self, what: str) -> None:
        logger.warning("stage %r %s", self._stage.name, what)


def _policy(qpu: str) -> QPUPolicy:
    try:
        return load_site_policy().qpu(qpu)
    except ConfigError:
        return QPUPolicy(name=qpu)
