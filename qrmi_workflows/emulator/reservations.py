"""The sessions on one device: which of them holds it, and when each closes.

A session is `open` until its first task gets a lane, and `active` from then on. An active
`dedicated` session keeps all other tasks off the device; the tasks of an active `batch` session go
first but exclude no others; a `shared` session only records the owner of its tasks. A session that
has been idle for longer than the interactive TTL becomes `inactive`: it loses the device, and its
next task queues like any other.

A session that stops accepting tasks closes when its last task has ended. Closing it immediately,
or reaching its maximum TTL, also cancels its queued tasks, and its running ones if the server's
setting `closing_cancels_running` is true.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.settings import QPUSettings
from qrmi_workflows.emulator.store import Session, Store, Task

__all__ = ["Reservations"]


class _Tracked:
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
        store: Where sessions are stored.
        clock: The emulator's clock.
        on_change: Called with a session that changed, and the ids of its tasks to cancel.

    Attributes:
        holder: The dedicated session that holds the device, if any.
    """

    def __init__(
        self,
        settings: QPUSettings,
        store: Store,
        clock: Clock,
        on_change: Callable[[Session, tuple[str, ...]], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._on_change = on_change
        self._tracked: dict[str, _Tracked] = {}
        self.holder: Session | None = None

    def restore(self) -> None:
        """Resume the sessions in the store that are not closed."""
        for session in self._store.open_sessions(self._settings.name):
            tracked = self._tracked[session.id] = _Tracked(session)
            if session.state == "active" and session.mode == "dedicated":
                self.holder = session
            self._start_ttl_timer(tracked)
            if session.state == "active":
                self._start_idle_timer(tracked)

    def stop(self) -> None:
        """Stop all timers."""
        for tracked in self._tracked.values():
            tracked.stop_timers()

    def open(self, session: Session) -> None:
        """Open a session."""
        self._store.save_session(session)
        self._tracked[session.id] = _Tracked(session)
        self._start_ttl_timer(self._tracked[session.id])

    def find(self, session_id: str | None) -> Session | None:
        """Return a session that is not closed, or `None`."""
        tracked = self._tracked.get(session_id) if session_id else None
        return tracked.session if tracked else None

    def stop_accepting(self, session_id: str) -> None:
        """Refuse further tasks, and close the session when its last task has ended."""
        if tracked := self._tracked.get(session_id):
            tracked.session.accepting = False
            self._store.save_session(tracked.session)
            self._close_if_drained(tracked, "closed by its owner")

    def close(self, session_id: str, reason: str = "cancelled by its owner") -> None:
        """Refuse further tasks, cancel the unfinished ones, and close once none is running."""
        if tracked := self._tracked.get(session_id):
            tracked.session.accepting, tracked.session.reason = False, reason
            self._store.save_session(tracked.session)
            running = tracked.running if self._settings.server.closing_cancels_running else ()
            self._on_change(tracked.session, (*tracked.queued, *running))
            self._close_if_drained(tracked, reason)

    def close_all(self, reason: str) -> None:
        """Close every session as `close` does."""
        for session_id in tuple(self._tracked):
            self.close(session_id, reason)

    def preferred_task(self) -> str | None:
        """Return the id of the queued task that an active session puts first, or `None`."""
        if self.holder is not None:
            return next(iter(self._tracked[self.holder.id].queued), None)
        for tracked in self._tracked.values():
            session = tracked.session
            if session.mode == "batch" and session.state == "active" and tracked.queued:
                return next(iter(tracked.queued))
        return None

    def task_queued(self, task: Task) -> None:
        """Record that a task has joined the queue: its session is not idle."""
        if tracked := self._tracked.get(task.session or ""):
            tracked.queued[task.id] = None
            if tracked.idle_timer:
                tracked.idle_timer.cancel()
                tracked.idle_timer = None

    def task_started(self, task: Task) -> None:
        """Record that a task got a lane, and activate its session."""
        tracked = self._tracked.get(task.session or "")
        if tracked is None:
            return
        tracked.queued.pop(task.id, None)
        tracked.running.add(task.id)
        session = tracked.session
        session.last_started = now = self._clock.now()
        if session.state != "active":
            session.state = "active"
            is_first_activation = session.activated is None
            session.activated = session.activated or now
            if session.mode == "dedicated":
                self.holder = session
            if is_first_activation:  # the maximum TTL counts from here
                self._start_ttl_timer(tracked)
        self._store.save_session(session)

    def task_ended(self, task: Task) -> None:
        """Record that a task has ended, and close its session or start its idle timer."""
        tracked = self._tracked.get(task.session or "")
        if tracked is None:
            return
        tracked.queued.pop(task.id, None)
        tracked.running.discard(task.id)
        tracked.session.last_finished = self._clock.now()
        if not tracked.session.accepting:
            self._close_if_drained(tracked, "closed by its owner")
        elif tracked.is_idle:
            self._start_idle_timer(tracked)

    def remaining_ttl(self, session: Session) -> int:
        """Return how many seconds remain of a session's maximum TTL."""
        if session.state == "closed":
            return 0
        since = session.activated or session.created
        return max(0, int(since + session.max_ttl - self._clock.now()))

    def _start_ttl_timer(self, tracked: _Tracked) -> None:
        if tracked.ttl_timer:
            tracked.ttl_timer.cancel()
        since = tracked.session.activated or tracked.session.created
        delay = max(0.0, since + tracked.session.max_ttl - self._clock.now())
        tracked.ttl_timer = asyncio.get_running_loop().call_later(
            delay, self.close, tracked.session.id, "its maximum TTL has passed"
        )

    def _start_idle_timer(self, tracked: _Tracked) -> None:
        if tracked.session.state == "active":
            tracked.idle_timer = asyncio.get_running_loop().call_later(
                self._settings.interactive_ttl_seconds, self._deactivate, tracked
            )

    def _deactivate(self, tracked: _Tracked) -> None:
        tracked.session.state = "inactive"
        self._free_device(tracked.session)
        self._store.save_session(tracked.session)
        self._on_change(tracked.session, ())

    def _close_if_drained(self, tracked: _Tracked, reason: str) -> None:
        session = tracked.session
        if not tracked.is_idle or session.state == "closed":
            return
        tracked.stop_timers()
        session.state, session.closed = "closed", self._clock.now()
        session.reason = session.reason or reason
        self._free_device(session)
        self._tracked.pop(session.id, None)
        self._store.save_session(session)
        self._on_change(session, ())

    def _free_device(self, session: Session) -> None:
        if self.holder is session:
            self.holder = None
