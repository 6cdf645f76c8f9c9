"""Payloads that wait for a lane, and may share a task with others that wait at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from qrmi_workflows.payloads import MAX_BYTES
from qrmi_workflows.tasks.future import TaskFuture
from qrmi_workflows.tasks.limits import Coalesce
from qrmi_workflows.vendors.base import Coalescible
from qrmi_workflows.vendors.registry import coalescible

__all__ = ["Guest", "WaitingRoom", "may_share"]

_SLICE_SECONDS = 0.1
_ENTERING_SECONDS = 5.0  # how long a journal that hangs may delay the others
_MAX_BYTES = MAX_BYTES // 2  # of the PUBs of one task, before they are encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A payload that waits."""

    future: TaskFuture
    pool: object
    limits: Coalesce
    needs: Coalescible
    since: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What must be equal for payloads to share a task."""
        run = self.future.run
        return run.payload.vendor, self.needs.key, run.on_ambiguous


class WaitingRoom:
    """The payloads of one QPU in this process that may share a task; safe to use from any thread.

    Several pools may use one room: their leases are for several steps on the same QPU.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._guests: list[Guest] = []
        self._entering = 0
        self._is_taken = False
        self._pid = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """Whether the room is that of the parent, whose payloads do not run in a forked child."""
        return self._pid != os.getpid()

    def expect(self, count: int) -> None:
        """Let others wait for payloads that are about to be looked up in the journal."""
        with self._changed:
            self._entering += count

    def arrive(self) -> None:
        """Let others wait for one payload less: it is here, or will not be."""
        with self._changed:
            self._entering -= 1
            self._changed.notify_all()

    def add(self, future: TaskFuture, pool: object) -> bool:
        """Let a payload wait for others; return `False` if it has to go alone."""
        limits, payload = future.run.coalesce, future.run.payload
        needs = coalescible(payload.vendor, payload.content)
        if limits is None or needs is None:
            return False
        guest = Guest(future=future, pool=pool, limits=limits, needs=needs, since=time.monotonic())
        with self._changed:
            self._guests.append(guest)
            self._changed.notify_all()
        return True

    def has_guests_of(self, pool: object) -> bool:
        """Return whether a payload that this pool has added still waits."""
        with self._changed:
            return self._has_guests_of(pool)

    @contextmanager
    def turn(self, pool: object) -> Iterator[bool]:
        """Wait until no other thread gathers; yield whether any of the pool still waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken or not self._has_guests_of(pool))
            has_turn = self._has_guests_of(pool)
            self._is_taken = self._is_taken or has_turn
        try:
            yield has_turn
        finally:
            if has_turn:
                with self._changed:
                    self._is_taken = False
                    self._changed.notify_all()

    def await_others(self) -> None:
        """Wait until those that are entering are here, and the first guest has waited enough."""
        start = time.monotonic()
        with self._changed:
            while self._guests and not self.is_set():
                first = self._guests[0]
                end = first.since + first.limits.wait
                if self._entering:
                    end = max(end, start + _ENTERING_SECONDS)
                left = end - time.monotonic()
                if left <= 0 or len(self._choose()) >= first.limits.max_pubs:
                    return
                self._changed.wait(min(left, _SLICE_SECONDS))

    def is_set(self) -> bool:
        """Return whether any payload that waits was stopped, or none waits any more.

        The name is that of `threading.Event`, because this ends the wait for a lane.
        """
        with self._changed:
            stopped = any(guest.future.run.stop.is_set() for guest in self._guests)
            return stopped or not self._guests

    def guests(self) -> list[Guest]:
        """Return the payloads that wait, oldest first."""
        with self._changed:
            return list(self._guests)

    def remove(self, futures: Collection[TaskFuture]) -> None:
        """Remove payloads that another process has claimed."""
        with self._changed:
            self._guests = [guest for guest in self._guests if guest.future not in futures]

    def take_stopped(self) -> list[TaskFuture]:
        """Remove the payloads that were stopped, and return their futures."""
        with self._changed:
            stopped = self._take([g for g in self._guests if g.future.run.stop.is_set()])
            return [guest.future for guest in stopped]

    def take(self) -> list[Guest]:
        """Remove the first payload and those that may share its task; return them."""
        with self._changed:
            return self._take(self._choose())

    def _has_guests_of(self, pool: object) -> bool:
        return any(guest.pool is pool for guest in self._guests)

    def _take(self, guests: list[Guest]) -> list[Guest]:
        for guest in guests:
            self._guests.remove(guest)
        return guests

    def _choose(self) -> list[Guest]:
        chosen: list[Guest] = []
        for guest in self._guests:
            if not chosen or may_share(chosen, guest):
                chosen.append(guest)
        return chosen


class _Sharing(Protocol):
    @property
    def key(self) -> tuple[str, str, str]: ...
    @property
    def limits(self) -> Coalesce: ...
    @property
    def needs(self) -> Coalescible: ...


def may_share(chosen: Sequence[_Sharing], another: _Sharing) -> bool:
    """Return whether another payload fits in a task of these, within the limits of each."""
    if another.key != chosen[0].key:
        return False
    guests = [*chosen, another]

    def total(need: Callable[[Coalescible], int]) -> int:
        return sum(need(guest.needs) for guest in guests)

    return (
        total(lambda needs: needs.pubs) <= min(guest.limits.max_pubs for guest in guests)
        and total(lambda needs: needs.executions) <= min(g.limits.max_shots for g in guests)
        and total(lambda needs: needs.size) <= _MAX_BYTES
    )
