"""Sessions on one device: who holds it, until when, and what ends a session.

A session is `open` until its first task reaches the head of the queue, then `active`. While it is
active, a `dedicated` session keeps all other tasks off the device, a `batch` session's tasks go
first but exclude nobody, and a `shared` session only tells whose a task is. A session that idles
for longer than the interactive TTL becomes `inactive` and queues again with its next task. Closing
it lets its tasks end; cancelling it, or its maximum TTL, cancels those that still wait. What runs
is never interrupted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.settings import QPUSettings
from qrmi_workflows.emulator.store import Session, Store, Task

__all__ = ["Reservations"]


class _Live:
    """A session that is not closed, with its unfinished tasks and its timers."""

    __slots__ = ("idle_timer", "queued", "running", "session", "ttl_timer")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.queued: OrderedDict[str, None] = OrderedDict()
        self.running: set[str] = set()
        self.ttl_timer: asyncio.TimerHandle | None = None
        self.idle_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return not self.queued and not self.running

    def stop_timers(self) -> None:
        for timer in (self.ttl_timer, self.idle_timer):
            if timer:
                timer.cancel()
        self.ttl_timer = self.idle_timer = None


class Reservations:
    """The sessions of one device.

    Args:
        settings: The device's settings.
        store: Where sessions are remembered.
        clock: The time.
        on_change: Called with a session that changed, and whether its queued tasks are to be
            cancelled.
    """

    def __init__(
        self,
        settings: QPUSettings,
        store: Store,
        clock: Clock,
        on_change: Callable[[Session, bool], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._on_change = on_change
        self._live: dict[str, _Live] = {}
        self.holder: Session | None = None

    def restore(self) -> None:
        """Take up the sessions that the store remembers."""
        for session in self._store.open_sessions(self._settings.name):
            live = self._live[session.id] = _Live(session)
            if session.state == "active" and session.mode == "dedicated":
                self.holder = session
            self._start_ttl(live)
            if session.state == "active":
                self._start_idle(live)

    def stop(self) -> None:
        """Stop all timers."""
        for live in self._live.values():
            live.stop_timers()

    def open(self, session: Session) -> None:
        """Open a session."""
        self._store.save_session(session)
        self._live[session.id] = _Live(session)
        self._start_ttl(self._live[session.id])

    def find(self, session_id: str | None) -> Session | None:
        """Return a session that is not closed."""
        live = self._live.get(session_id) if session_id else None
        return live.session if live else None

    def queued(self, session_id: str) -> list[str]:
        """Return the ids of a session's tasks that wait for a lane."""
        live = self._live.get(session_id)
        return list(live.queued) if live else []

    def stop_accepting(self, session_id: str) -> None:
        """Take no more tasks; the session closes when its last one has ended."""
        if live := self._live.get(session_id):
            live.session.accepting = False
            self._store.save_session(live.session)
            self._close_when_drained(live, "closed by its owner")

    def close(self, session_id: str, reason: str = "cancelled by its owner") -> None:
        """Close a session now: tasks that wait are cancelled, those that run will end."""
        if live := self._live.get(session_id):
            live.session.accepting, live.session.reason = False, reason
            self._store.save_session(live.session)
            self._on_change(live.session, True)
            self._close_when_drained(live, reason)

    def close_all(self, reason: str) -> None:
        """Close every session now."""
        for session_id in tuple(self._live):
            self.close(session_id, reason)

    def preferred(self) -> str | None:
        """Return the id of the task that an active session puts before all others."""
        if self.holder is not None:
            return next(iter(self._live[self.holder.id].queued), None)
        for live in self._live.values():
            if live.session.mode == "batch" and live.session.state == "active" and live.queued:
                return next(iter(live.queued))
        return None

    def joined(self, task: Task) -> None:
        """Note that a task of a session waits."""
        if live := self._live.get(task.session or ""):
            live.queued[task.id] = None
            if live.idle_timer:
                live.idle_timer.cancel()
                live.idle_timer = None

    def started(self, task: Task) -> None:
        """Note that a task got a lane: its session is active now."""
        live = self._live.get(task.session or "")
        if live is None:
            return
        live.queued.pop(task.id, None)
        live.running.add(task.id)
        session = live.session
        session.last_started = self._clock.now()
        if session.state != "active":
            session.state = "active"
            first = session.activated is None
            session.activated = session.activated or self._clock.now()
            if session.mode == "dedicated":
                self.holder = session
            if first:
                self._start_ttl(live)
        self._store.save_session(session)

    def left(self, task: Task) -> None:
        """Note that a task of a session has ended."""
        live = self._live.get(task.session or "")
        if live is None:
            return
        live.queued.pop(task.id, None)
        live.running.discard(task.id)
        live.session.last_finished = self._clock.now()
        if not live.session.accepting:
            self._close_when_drained(live, "closed by its owner")
        elif live.is_idle:
            self._start_idle(live)

    def remaining_ttl(self, session: Session) -> int:
        """Return how many seconds of its maximum TTL a session has left."""
        if session.state == "closed":
            return 0
        since = session.activated or session.created
        return max(0, int(since + session.max_ttl - self._clock.now()))

    def _start_ttl(self, live: _Live) -> None:
        if live.ttl_timer:
            live.ttl_timer.cancel()
        since = live.session.activated or live.session.created
        delay = max(0.0, since + live.session.max_ttl - self._clock.now())
        live.ttl_timer = asyncio.get_running_loop().call_later(
            delay, self.close, live.session.id, "its maximum TTL has passed"
        )

    def _start_idle(self, live: _Live) -> None:
        if live.session.state == "active":
            live.idle_timer = asyncio.get_running_loop().call_later(
                self._settings.interactive_ttl_seconds, self._deactivate, live
            )

    def _deactivate(self, live: _Live) -> None:
        live.session.state = "inactive"
        self._give_up(live.session)
        self._store.save_session(live.session)
        self._on_change(live.session, False)

    def _close_when_drained(self, live: _Live, reason: str) -> None:
        session = live.session
        if not live.is_idle or session.state == "closed":
            return
        live.stop_timers()
        session.state, session.closed = "closed", self._clock.now()
        session.reason = session.reason or reason
        self._give_up(session)
        self._live.pop(session.id, None)
        self._store.save_session(session)
        self._on_change(session, False)

    def _give_up(self, session: Session) -> None:
        if self.holder is session:
            self.holder = None
