"""What the vendor bills for tasks and sessions.

A dedicated session of IBM's is billed by the wall clock while it is active: from the start of its
first task until it is closed, its last task has ended, or it has been idle for longer than the
interactive TTL, and again from the task that activates it anew. Its tasks then cost nothing more.
All other tasks are billed by QPU seconds, the time for which they occupy the device, plus an
overhead per task for vendors that charge one. A task that never reached the device costs nothing.

Sources: https://quantum.cloud.ibm.com/docs/guides/estimate-job-run-time (modes, failed and
cancelled jobs, the overhead of about 2 s) and
https://quantum.cloud.ibm.com/docs/guides/execution-modes-faq (the interactive TTL counts).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.settings import QPUSettings
from qrmi_workflows.emulator.spans import SessionTime, TaskTime
from qrmi_workflows.emulator.store import Session, Store, Task

__all__ = ["BY_SESSION", "BY_TASK", "Charge", "Ledger"]

BY_TASK = "QPU seconds"
BY_SESSION = "dedicated session: wall clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a task costs.

    Attributes:
        id: The vendor's task id.
        session: The id of its session, if any.
        state: Its state.
        qpu_seconds: How long it occupied the device.
        overhead_seconds: The overhead that the vendor adds.
        usage_seconds: Its usage, which IBM reports for each job, even if its session is billed.
        billed_seconds: What is billed for the task itself: 0 if its session is billed instead.
        rule: The rule by which it is billed.
    """

    id: str
    session: str | None
    state: str
    qpu_seconds: float
    overhead_seconds: float
    usage_seconds: float
    billed_seconds: float
    rule: str


class Ledger:
    """Records what happens on one device, and tells what it costs.

    Args:
        settings: The device's settings.
        store: Where it is recorded.
        clock: The emulator's clock.
    """

    def __init__(self, settings: QPUSettings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._stopping = False
        self._waived: set[str] = set()

    def waive(self, task: Task) -> None:
        """Bill nothing for a task that is executing now, or whose result is being written."""
        self._waived.add(task.id)

    def stop(self) -> None:
        """Forget executions that are under way: they start anew when the emulator does."""
        self._stopping = True

    @contextmanager
    def execution(self, task: Task) -> Iterator[None]:
        """Record that a task occupies the device, also if it is cancelled or fails."""
        started = self._clock.now()
        try:
            yield
        except asyncio.CancelledError:
            if not self._stopping:
                self._record(task, started)
            raise
        except BaseException:
            self._record(task, started)
            raise
        self._record(task, started)

    def session_changed(self, session: Session | None) -> None:
        """Record that a session is active, or no longer active."""
        if session is None:
            return
        if session.state == "active":
            # The task that has just started has activated it, if it was not active before.
            started = session.last_started or self._clock.now()
            self._store.spans.begin_session(session.id, session.qpu, started)
        else:
            ended = session.closed or self._clock.now()
            self._store.spans.end_session(session.id, ended)

    def task(self, task_id: str) -> Charge:
        """Return what a task costs so far.

        Raises:
            KeyError: There is no such task.
        """
        time = self._store.spans.task(task_id)
        if time is None:
            raise KeyError(task_id)
        session = self._store.session(time.session) if time.session else None
        return self._charge(time, session.mode if session else None)

    def session(self, session_id: str) -> float:
        """Return what a session costs so far, including its tasks, in seconds.

        Raises:
            KeyError: There is no such session.
        """
        time = self._store.spans.session(session_id, self._clock.now())
        if time is None:
            raise KeyError(session_id)
        own = self._session_seconds(time)
        tasks = self._store.spans.tasks_of_session(session_id)
        charges = [self._charge(each, time.mode) for each in tasks]
        return round(own + sum(charge.billed_seconds for charge in charges), 6)

    def total(self) -> float:
        """Return what all tasks and sessions of the device cost so far, in seconds."""
        return float(self.report()["billed_seconds"])

    def report(self) -> dict[str, Any]:
        """Return the bill: the total, and what each session and each task costs."""
        sessions = list(self._store.spans.sessions(self._settings.name, self._clock.now()))
        modes = {each.id: each.mode for each in sessions}
        charges = [
            self._charge(each, modes.get(each.session or ""))
            for each in self._store.spans.tasks(self._settings.name)
        ]
        of_sessions = [self._session_report(each, charges) for each in sessions]
        own = sum(self._session_seconds(each) for each in sessions)
        total = own + sum(charge.billed_seconds for charge in charges)
        return {
            "billed_seconds": round(total, 6),
            "qpu_seconds": round(sum(charge.qpu_seconds for charge in charges), 6),
            "overhead_seconds": self._settings.overhead_seconds,
            "sessions": of_sessions,
            "tasks": [asdict(charge) for charge in charges],
        }

    def _record(self, task: Task, started: float) -> None:
        if task.id in self._waived:
            return
        now = self._clock.now()
        self._store.spans.add_execution(task.id, task.qpu, started, now)

    def _session_report(self, time: SessionTime, charges: list[Charge]) -> dict[str, Any]:
        own = [charge for charge in charges if charge.session == time.id]
        seconds = self._session_seconds(time) + sum(charge.billed_seconds for charge in own)
        return {
            "id": time.id,
            "mode": time.mode,
            "state": time.state,
            "active_seconds": round(time.seconds, 6),
            "billed_seconds": round(seconds, 6),
            "rule": BY_SESSION if time.mode == "dedicated" else BY_TASK,
            "tasks": len(own),
        }

    def _session_seconds(self, time: SessionTime) -> float:
        if time.mode != "dedicated":
            return 0.0
        if self._settings.server.bills_inactive_sessions and time.activated is not None:
            return max(0.0, (time.closed or self._clock.now()) - time.activated)
        return time.seconds

    def _charge(self, time: TaskTime, mode: str | None) -> Charge:
        overhead = self._settings.overhead_seconds if time.executions else 0.0
        is_billed = self._bills(time.state) and time.id not in self._waived
        usage = round(time.seconds + overhead, 6) if is_billed else 0.0
        by_session = mode == "dedicated"
        return Charge(
            id=time.id,
            session=time.session,
            state=time.state,
            qpu_seconds=round(time.seconds, 6),
            overhead_seconds=overhead,
            usage_seconds=usage,
            billed_seconds=0.0 if by_session else usage,
            rule=BY_SESSION if by_session else BY_TASK,
        )

    def _bills(self, state: str) -> bool:
        server = self._settings.server
        return {"cancelled": server.bills_cancelled_tasks, "failed": server.bills_failed_tasks}.get(
            state, True
        )
