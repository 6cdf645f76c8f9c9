"""The vendor's queue: the work of other customers, for which a task waits.

A task waits until this work is done, and is then at the head of the queue. The tasks of an active
session do not wait: an active dedicated session has the device for itself, and those of an active
batch go first. The first task of a session, and the first one after the session has been idle for
longer than the interactive TTL, wait like all others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.durations import Duration
from qrmi_workflows.emulator.store import Store, Task

__all__ = ["VendorQueue"]

_HEAD = "at_head"


class VendorQueue:
    """The queue in front of one device.

    Each wait is stored with its task, so that a restart of the emulator does not begin it anew.

    Args:
        qpu: The device's name.
        waits: How long a task waits.
        seed: The seed of the waits, which then depend only on the order of the tasks; `None`: they
            are random.
        store: Where the waits are stored.
        clock: The emulator's clock.
        on_arrival: Called when a task has reached the head of the queue.
    """

    def __init__(
        self,
        qpu: str,
        waits: Duration,
        seed: int | None,
        store: Store,
        clock: Clock,
        on_arrival: Callable[[], None],
    ) -> None:
        self._waits = waits
        self._seed = None if seed is None else f"{seed}:{qpu}:queue"
        self._drawn = f"waits drawn:{qpu}"
        self._store = store
        self._clock = clock
        self._on_arrival = on_arrival
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, task: Task) -> None:
        """Let a task that has joined the queue wait, as far as it has not waited already."""
        if self._waits == Duration():
            return
        if _HEAD not in task.details:
            task.details[_HEAD] = task.accepted + self._draw()
            self._store.save_task(task)
        seconds = task.details[_HEAD] - self._clock.now()
        if seconds > 0:
            self._timers[task.id] = asyncio.get_running_loop().call_later(
                seconds, self._arrive, task.id
            )

    def remove(self, task: Task) -> None:
        """Forget a task that has started or has been cancelled."""
        if timer := self._timers.pop(task.id, None):
            timer.cancel()

    def first_at_head(self, tasks: Iterable[Task]) -> Task | None:
        """Return the first of these tasks that waits no longer, or `None`."""
        return next((task for task in tasks if task.id not in self._timers), None)

    def stop(self) -> None:
        """Stop all timers."""
        for timer in self._timers.values():
            timer.cancel()

    def _arrive(self, task_id: str) -> None:
        self._timers.pop(task_id, None)
        self._on_arrival()

    def _draw(self) -> float:
        if self._seed is None:
            return self._waits.draw(random.Random())  # noqa: S311 - no secret
        number = int(self._store.get_value(self._drawn) or 0)
        self._store.set_value(self._drawn, str(number + 1))
        return self._waits.draw(random.Random(f"{self._seed}:{number}"))  # noqa: S311 - no secret
