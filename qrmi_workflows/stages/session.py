"""The session of a stage's lease: its mode, its first task, and what is done between tasks."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import ConfigError, QPUError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.lease import Lease
from qrmi_workflows.lease.stage import Stage
from qrmi_workflows.stages.modes import (
    Action,
    Decision,
    Situation,
    choose_mode,
    decide,
    gaps_between,
)
from qrmi_workflows.state.locks import is_locked
from qrmi_workflows.tasks.usage import TaskUsage, read_usage
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import registered_type

__all__ = ["StageSession"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # how often the tasks' usage is read
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
        choice = choose_mode(
            requested=self._stage.mode, policy=self._policy.mode, configured=configured
        )
        self._log(f"opens a {choice.mode} session: {choice.reason}")
        return {setting: choice.mode}

    def warm_up(self, lease: Lease) -> None:
        """Run a minimal task, if the vendor needs one to make the session active.

        If it fails, the session's first task waits in the vendor's queue in its place.
        """
        if self._traits.warm_up is None or lease.adopted:
            return
        # A step of its own for each: the journal would return the result of the one before.
        name = f"stage {self._stage.name}, warm-up {uuid.uuid4().hex[:8]}"
        started = time.time()
        try:
            with lease.for_step(name) as step:
                task = step.submit(self._traits.warm_up, on_stop="cancel")
                while not task.wait(_LOOK_SECONDS):
                    if not self._is_wanted():
                        task.cancel_task()
                result = task.result()
        except QPUError as error:
            self._log(f"goes on without a warm-up task, which failed: {error}")
            return
        self._own.add(result.task_id)
        with suppress(QPUError):
            Journal().archive(name)
        own = [each for each in _tasks(lease) if each.task_id == result.task_id]
        waited = max((each.running - each.started for each in own if each.running), default=0.0)
        self._queue = max(self._queue, waited)
        self._log(
            f"has an active session: its warm-up task took {time.time() - started:.1f} s, "
            f"{waited:.1f} s of them in the vendor's queue"
        )

    def reopened(self) -> None:
        """Note that another session has been opened, which is not active yet."""
        self._opened = time.time()

    def look(self, lease: Lease) -> Action | None:
        """Keep an idle session warm, if that is best; return what else is to be done."""
        now = time.time()
        mode = lease.held.session_mode
        if self._traits.warm_up is None or mode is None or now < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        if any(is_locked(lane) for lane in self._stage.folder.lanes.glob("lane-*")):
            return None  # a task has not ended
        tasks = _tasks(lease)
        spans = [(task.started, task.ended) for task in tasks if task.task_id not in self._own]
        last = max((task.ended for task in tasks), default=0.0)
        ttl = self._policy.interactive_ttl or self._traits.interactive_ttl
        if last <= self._opened or now - last > ttl or len(gaps_between(spans)) < _FEWEST_GAPS:
            return None
        decision = decide(self._situation(mode, spans, now - last, ttl, now), _POSSIBLE)
        self._log_decision(last, decision)
        if decision.action is Action.KEEP_WARM and now - last >= (1 - _AHEAD) * ttl:
            self.warm_up(lease)
        return decision.action

    def _situation(
        self, mode: str, spans: list[tuple[float, float]], since: float, ttl: float, now: float
    ) -> Situation:
        return Situation(
            mode=mode,
            gaps=gaps_between(spans),
            idle=now - max(ended for _, ended in spans),
            since_task=since,
            interactive_ttl=ttl,
            queue=self._queue,
            task_overhead=self._traits.task_overhead,
            waiting_cost=self._policy.waiting_cost,
        )

    def _log_decision(self, last: float, decision: Decision) -> None:
        if self._decided != (last, decision.action):
            self._decided = last, decision.action
            self._log(f"decides about its session: {decision.reason}")

    def _log(self, what: str) -> None:
        logger.warning("stage %r %s", self._stage.name, what)


_POSSIBLE = (Action.KEEP_WARM, Action.REOPEN)


def _tasks(lease: Lease) -> list[TaskUsage]:
    usage = lease.held.usage_path()
    return [] if usage is None else list(read_usage(usage))


def _policy(qpu: str) -> QPUPolicy:
    try:
        return load_site_policy().qpu(qpu)
    except ConfigError:
        return QPUPolicy(name=qpu)
