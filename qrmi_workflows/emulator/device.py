"""The device model shared by all dialects: a queue, lanes, and one executing task.

A task waits in a FIFO queue for a free lane, is prepared there in parallel with other tasks, and
then executes alone on the device. A worker process simulates it: during preparation if the
execution time is configured, otherwise as the execution itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Protocol

from qrmi_workflows.emulator.billing import Ledger
from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.reservations import Reservations
from qrmi_workflows.emulator.settings import EmulatorSettings, QPUSettings
from qrmi_workflows.emulator.simulators import Outcome, SimulationError
from qrmi_workflows.emulator.store import Session, Store, Task
from qrmi_workflows.emulator.vendor_queue import VendorQueue
from qrmi_workflows.emulator.workers import WorkerPool

__all__ = ["AVAILABILITIES", "RAN_TOO_LONG", "Device", "Shared", "TaskAdapter"]

_OTHERS_SECONDS = 2.0  # how long a task of another customer takes, unless this QPU's are set

AVAILABILITIES = ("online", "paused", "offline", "maintenance", "reserved")
RAN_TOO_LONG = "ran too long"
_log = logging.getLogger(__name__)


class Shared(Protocol):
    """The services shared by all devices of an emulator."""

    store: Store
    pool: WorkerPool
    clock: Clock


class TaskAdapter(Protocol):
    """The part of a dialect that translates tasks between its API and the simulators.

    The methods are documented in `dialects.base.Dialect`.
    """

    async def read_request(self, task: Task, request: str) -> str:
        """Return the simulator's input for a task that starts."""

    def null_outcome(self, task: Task, request: str) -> Outcome:
        """Return a valid result without a simulation."""

    def count_pubs(self, request: str) -> int:
        """Return how many PUBs the simulator's input has."""

    def stamp_result(self, task: Task, result: str) -> str:
        """Return a result with the times at which the device executed its task."""

    async def write_outcome(self, task: Task, result: str | None, logs: str) -> None:
        """Deliver a task's outcome before its final state becomes visible."""


@dataclass(slots=True)
class _Running:
    task: Task
    activity: asyncio.Task[None] | None = None


class Device:
    """One emulated QPU.

    Args:
        settings: The QPU's settings.
        emulator: The settings common to all QPUs.
        shared: The store, worker pool and clock of all QPUs.
        adapter: Translates its tasks between the vendor's API and the simulators.
    """

    def __init__(
        self,
        settings: QPUSettings,
        emulator: EmulatorSettings,
        shared: Shared,
        adapter: TaskAdapter,
    ) -> None:
        self.settings = settings
        self.availability = "online"
        self._emulator = emulator
        self._store = shared.store
        self._pool = shared.pool
        self._clock = shared.clock
        self._adapter = adapter
        seed = None if emulator.seed is None else f"{emulator.seed}:{settings.name}"
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._queue: OrderedDict[str, Task] = OrderedDict()
        self._lanes: dict[str, _Running] = {}
        self._executing = asyncio.Lock()
        self.ledger = Ledger(settings, shared.store, shared.clock)
        self.sessions = Reservations(settings, shared.store, shared.clock, self._on_session_change)
        self._vendor_queue = VendorQueue(
            settings.name,
            settings.queue,
            emulator.seed,
            shared.store,
            shared.clock,
            self.fill_lanes,
        )

    @property
    def name(self) -> str:
        """The QPU's name."""
        return self.settings.name

    @property
    def queue_length(self) -> int:
        """The number of tasks waiting for a lane."""
        return len(self._queue)

    @property
    def others_waiting(self) -> int:
        """The number of other customers' tasks that the server shows, for which new ones wait.

        They take as long as a task of this QPU takes.
        """
        wait = self.settings.queue.mean
        if not wait or not self.settings.server.counts_others:
            return 0
        execution = self.settings.execution
        each = _OTHERS_SECONDS if execution is None or not execution.mean else execution.mean
        return max(1, round(wait / each))

    @property
    def unfinished(self) -> int:
        """The number of tasks that wait or run, with those of others that the server shows."""
        return self.queue_length + self.busy_lanes + self.others_waiting

    @property
    def busy_lanes(self) -> int:
        """The number of tasks in a lane or on the device."""
        return len(self._lanes)

    @property
    def is_offline(self) -> bool:
        """Whether the QPU is away, for whatever reason."""
        return self.availability in ("offline", "maintenance")

    def restore(self) -> None:
        """Resume open sessions and unfinished tasks from the store."""
        self.availability = self._store.get_value(f"availability:{self.name}") or "online"
        self.sessions.restore()
        for task in self._store.find_tasks(states=("queued", "running"), qpu=self.name):
            task.state, task.started = "queued", None
            self._enqueue(task)
        self.fill_lanes()

    def set_availability(self, availability: str) -> None:
        """Set the availability, one of `AVAILABILITIES`.

        Tasks start only while it is `online`; those already running continue, unless the server's
        settings say otherwise.
        """
        self.availability = availability
        if self.is_offline and self.settings.server.offline_fails_running:
            for running in list(self._lanes.values()):
                self._fail(running, "the QPU went offline")
        self._store.set_value(f"availability:{self.name}", availability)
        self.fill_lanes()

    def submit(self, tasks: list[Task]) -> None:
        """Queue tasks that are already in the store."""
        for task in tasks:
            self._enqueue(task)
        self.fill_lanes()

    def unfinished_task(self, task_id: str) -> Task | None:
        """Return a queued or running task of this device, or `None`."""
        if running := self._lanes.get(task_id):
            return running.task
        return self._queue.get(task_id)

    def cancel(self, task_id: str, reason: str = "cancelled by its owner") -> bool:
        """Cancel an unfinished task, stopping its simulation; return `False` if it has ended."""
        if task := self._queue.pop(task_id, None):
            self._vendor_queue.remove(task)
            self._finish(task, "cancelled", reason=reason)
            self.fill_lanes()
            return True
        if running := self._lanes.get(task_id):
            if running.activity:
                running.activity.cancel()
            self._finish(running.task, "cancelled", reason=reason)
            self.fill_lanes()
            return True
        return False

    async def stop(self) -> None:
        """Stop all activity. Unfinished tasks keep their state in the store."""
        self.sessions.stop()
        self.ledger.stop()
        self._vendor_queue.stop()
        activities = [running.activity for running in self._lanes.values() if running.activity]
        for activity in activities:
            activity.cancel()
        await asyncio.gather(*activities, return_exceptions=True)

    def fill_lanes(self) -> None:
        """Move tasks from the queue into free lanes, as far as sessions allow."""
        while self.availability == "online" and len(self._lanes) < self.settings.lanes:
            task = self._next_task()
            if task is None:
                return
            del self._queue[task.id]
            self._vendor_queue.remove(task)
            self._start(task)

    def _enqueue(self, task: Task) -> None:
        self._queue[task.id] = task
        self._vendor_queue.add(task)
        self.sessions.task_queued(task)

    def _next_task(self) -> Task | None:
        preferred = self.sessions.preferred_task()
        if preferred is not None:
            return self._queue.get(preferred)
        if self.sessions.holder is not None:
            return None
        head = self._vendor_queue.first_at_head(self._queue.values())
        if head is None:
            return None
        session = self.sessions.find(head.session)
        if session and session.mode == "dedicated" and self._lanes:
            return None  # a dedicated session takes the device only once all lanes are free
        return head

    def _start(self, task: Task) -> None:
        task.state, task.started = "running", self._clock.now()
        self.sessions.task_started(task)
        self.ledger.session_changed(self.sessions.find(task.session))
        running = _Running(task)
        self._lanes[task.id] = running
        running.activity = asyncio.ensure_future(self._run(task))

    async def _run(self, task: Task) -> None:
        # Cancellation bypasses all of this: `cancel` has finished the task already, and after
        # `stop` it must stay unfinished in the store.
        state, logs = "failed", ""
        reason: str | None = "internal error of the emulator"
        result: str | None = None
        try:
            async with asyncio.timeout(task.details.get("timeout_seconds")):
                outcome = await self._prepare_and_execute(task)
            result = self._adapter.stamp_result(task, outcome.result)
            state, reason, logs = "completed", None, outcome.logs
        except TimeoutError:
            state, reason = "cancelled", RAN_TOO_LONG
        except SimulationError as error:
            reason, logs = str(error), error.logs
        except Exception:
            _log.exception("task %s of %s", task.id, self.name)
        if reason:
            logs += f"{Clock.iso(self._clock.now())} {state}: {reason}\n"
        try:
            await self._adapter.write_outcome(task, result, logs)
        except SimulationError as error:
            state, reason, result = "failed", str(error), None
        self._finish(task, state, reason=reason, result=result, logs=logs)
        self.fill_lanes()

    async def _prepare_and_execute(self, task: Task) -> Outcome:
        preparation = self.settings.preparation.draw(self._random)
        if self.settings.execution is None:
            await _sleep(preparation)
            async with self._executing:
                with self.ledger.execution(task):
                    outcome, _ = await self._simulate(task)
                    return outcome
        execution = self.settings.execution.draw(self._random)
        (outcome, pubs), _ = await asyncio.gather(self._simulate(task), _sleep(preparation))
        execution += pubs * self.settings.pub_seconds
        async with self._executing:
            with self.ledger.execution(task):
                await _sleep(execution)
        return outcome

    async def _simulate(self, task: Task) -> tuple[Outcome, int]:
        """Return a task's outcome and the number of its PUBs."""
        request = await self._adapter.read_request(task, self._store.request(task.id))
        return await self._compute(task, request), self._adapter.count_pubs(request)

    async def _compute(self, task: Task, request: str) -> Outcome:
        if self.settings.simulator == "null":
            return self._adapter.null_outcome(task, request)
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
                "limit_seconds": self._emulator.simulation_seconds,
                "server": asdict(self.settings.server),
                "seed": self._derive_seed(task, request),
            },
        )

    def _derive_seed(self, task: Task, request: str) -> int:
        if self._emulator.seed is None:
            return secrets.randbits(31)
        text = f"{self._emulator.seed}\n{self.name}\n{task.program}\n{request}"
        if task.batch is not None:  # its equal jobs are independent, as equal PUBs are
            jobs = [item.id for item in self._store.find_tasks(batch=task.batch)]
            text += f"\n{jobs.index(task.id) if task.id in jobs else 0}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF

    def _fail(self, running: _Running, reason: str) -> None:
        """Fail a task for a reason that is not its own."""
        if not self.settings.server.bills_own_errors:
            self.ledger.waive(running.task)
        if running.activity:
            running.activity.cancel()
        self._finish(running.task, "failed", reason=reason, logs=f"{reason}\n")

    def _finish(
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
        self.sessions.task_ended(task)

    def _on_session_change(self, session: Session, cancelled: tuple[str, ...]) -> None:
        for task_id in cancelled:
            self.cancel(task_id, f"session {session.id} was closed")
        self.ledger.session_changed(session)
        self.fill_lanes()


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
