"""The device model that every dialect shares: a queue, lanes, one executing task, sessions.

A task waits in a first-in-first-out queue until a lane is free, is prepared there in parallel
with others, and then executes alone on the device. Simulation happens in a worker process: while
a lane prepares when the execution's duration is given, else as the execution itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.dialects.base import Dialect
from qrmi_workflows.emulator.reservations import Reservations
from qrmi_workflows.emulator.settings import EmulatorSettings, QPUSettings
from qrmi_workflows.emulator.simulators import Outcome, SimulationError
from qrmi_workflows.emulator.simulators.null import null_outcome
from qrmi_workflows.emulator.store import Session, Store, Task
from qrmi_workflows.emulator.workers import WorkerPool

__all__ = ["AVAILABILITIES", "RAN_TOO_LONG", "Device", "Shared"]

AVAILABILITIES = ("online", "paused", "offline", "reserved")
RAN_TOO_LONG = "ran too long"
_log = logging.getLogger(__name__)


class Shared(Protocol):
    """What all devices of an emulator share."""

    store: Store
    pool: WorkerPool
    clock: Clock


@dataclass(slots=True)
class _Running:
    task: Task
    activity: asyncio.Task[None] | None = None


class Device:
    """One emulated QPU.

    Args:
        settings: How it behaves.
        emulator: What holds for all QPUs.
        shared: The store, the workers and the clock of all QPUs.
        dialect: The API that it is seen through.
    """

    def __init__(
        self,
        settings: QPUSettings,
        emulator: EmulatorSettings,
        shared: Shared,
        dialect: Dialect,
    ) -> None:
        self.settings = settings
        self.availability = "online"
        self._emulator = emulator
        self._store = shared.store
        self._pool = shared.pool
        self._clock = shared.clock
        self._dialect = dialect
        self._random = random.Random(f"{emulator.seed}:{settings.name}")  # noqa: S311 - no secret
        self._queue: OrderedDict[str, Task] = OrderedDict()
        self._lanes: dict[str, _Running] = {}
        self._executing = asyncio.Lock()
        self.sessions = Reservations(settings, shared.store, shared.clock, self._on_session_change)

    @property
    def name(self) -> str:
        """The QPU's name."""
        return self.settings.name

    @property
    def queue_length(self) -> int:
        """How many tasks wait for a lane."""
        return len(self._queue)

    @property
    def busy_lanes(self) -> int:
        """How many tasks are in a lane or on the device."""
        return len(self._lanes)

    def restore(self) -> None:
        """Take up what the store remembers: open sessions and unfinished tasks."""
        self.availability = self._store.note(f"availability:{self.name}") or "online"
        self.sessions.restore()
        for task in self._store.find_tasks(states=("queued", "running"), qpu=self.name):
            task.state, task.started = "queued", None
            self._enqueue(task)
        self.pump()

    def set_availability(self, availability: str) -> None:
        """Bring the device online, pause it or take it offline; what executes, ends."""
        self.availability = availability
        self._store.set_note(f"availability:{self.name}", availability)
        self.pump()

    def submit(self, tasks: list[Task]) -> None:
        """Queue tasks that the store remembers already."""
        for task in tasks:
            self._enqueue(task)
        self.pump()

    def task(self, task_id: str) -> Task | None:
        """Return an unfinished task of this device."""
        if running := self._lanes.get(task_id):
            return running.task
        return self._queue.get(task_id)

    def cancel(self, task_id: str, reason: str = "cancelled by its owner") -> bool:
        """End an unfinished task at once, its simulation too; `False` when it has ended."""
        if task := self._queue.pop(task_id, None):
            self._settle(task, "cancelled", reason=reason)
            self.pump()
            return True
        if running := self._lanes.get(task_id):
            if running.activity:
                running.activity.cancel()
            self._settle(running.task, "cancelled", reason=reason)
            self.pump()
            return True
        return False

    async def stop(self) -> None:
        """Stop all activity; unfinished tasks stay remembered as they are."""
        self.sessions.stop()
        activities = [running.activity for running in self._lanes.values() if running.activity]
        for activity in activities:
            activity.cancel()
        await asyncio.gather(*activities, return_exceptions=True)

    def pump(self) -> None:
        """Move tasks from the queue into free lanes, as far as the sessions allow."""
        while self.availability == "online" and len(self._lanes) < self.settings.lanes:
            task = self._next()
            if task is None:
                return
            del self._queue[task.id]
            self._begin(task)

    def _enqueue(self, task: Task) -> None:
        self._queue[task.id] = task
        self.sessions.joined(task)

    def _next(self) -> Task | None:
        preferred = self.sessions.preferred()
        if preferred is not None:
            return self._queue.get(preferred)
        if self.sessions.holder is not None or not self._queue:
            return None
        head = next(iter(self._queue.values()))
        session = self.sessions.find(head.session)
        if session and session.mode == "dedicated" and self._lanes:
            return None  # the lanes drain before a dedicated session takes the device
        return head

    def _begin(self, task: Task) -> None:
        task.state, task.started = "running", self._clock.now()
        self.sessions.started(task)
        running = _Running(task)
        self._lanes[task.id] = running
        running.activity = asyncio.ensure_future(self._run(task))

    async def _run(self, task: Task) -> None:
        state, logs = "failed", ""
        reason: str | None = "internal error of the emulator"
        result: str | None = None
        try:
            async with asyncio.timeout(task.details.get("timeout_seconds")):
                outcome = await self._prepare_and_execute(task)
            state, reason, logs, result = "completed", None, outcome.logs, outcome.result
        except TimeoutError:
            state, reason = "cancelled", RAN_TOO_LONG
        except SimulationError as error:
            reason, logs = str(error), error.logs
        except Exception:
            _log.exception("task %s of %s", task.id, self.name)
        if reason:
            logs += f"{Clock.iso(self._clock.now())} {state}: {reason}\n"
        try:
            await self._dialect.write_outcome(task, result, logs)
        except SimulationError as error:
            state, reason, result = "failed", str(error), None
        self._settle(task, state, reason=reason, result=result, logs=logs)
        self.pump()

    async def _prepare_and_execute(self, task: Task) -> Outcome:
        preparation = self.settings.preparation.draw(self._random)
        if self.settings.execution is None:
            await _sleep(preparation)
            async with self._executing:
                return await self._simulate(task)
        execution = self.settings.execution.draw(self._random)
        outcome, _ = await asyncio.gather(self._simulate(task), _sleep(preparation))
        async with self._executing:
            await _sleep(execution)
        return outcome

    async def _simulate(self, task: Task) -> Outcome:
        request = await self._dialect.read_request(task, self._store.request(task.id))
        if self.settings.simulator == "null":
            return null_outcome(task.program, request)
        return await self._pool.run(
            self.settings.simulator,
            {
                "program": task.program,
                "request": request,
                "qpu": self.name,
                "model": self.settings.model,
                "noise": self.settings.noise,
                "exact": self.settings.exact,
                "strict": self.settings.strict,
                "seed": self._seed(task, request),
            },
        )

    def _seed(self, task: Task, request: str) -> int:
        text = f"{self._emulator.seed}\n{self.name}\n{task.program}\n{request}"
        if self._emulator.independent:
            text += f"\n{task.id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF

    def _settle(
        self,
        task: Task,
        state: str,
        *,
        reason: str | None = None,
        result: str | None = None,
        logs: str = "",
    ) -> None:
        if task.is_final:
            return
        task.state, task.reason, task.finished = state, reason, self._clock.now()
        self._store.save_task(task, result, logs)
        self._lanes.pop(task.id, None)
        self.sessions.left(task)

    def _on_session_change(self, session: Session, cancel_queued: bool) -> None:
        if cancel_queued:
            for task_id in self.sessions.queued(session.id):
                if task := self._queue.pop(task_id, None):
                    self._settle(task, "cancelled", reason=f"session {session.id} was closed")
        self.pump()


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
