"""Many tasks at once, as many in flight as the QPU has lanes; each is a future."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from qrmi_workflows.errors import TaskCancelledError
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks.future import TaskFuture
from qrmi_workflows.tasks.lanes import LaneSemaphore

if TYPE_CHECKING:
    from qrmi_workflows.tasks.coalesced import CoalescedRun
    from qrmi_workflows.tasks.offers import Leadership
    from qrmi_workflows.tasks.run import TaskRun
    from qrmi_workflows.tasks.waiting_room import Guest, WaitingRoom

__all__ = ["TaskPool"]

logger = logging.getLogger(__name__)

_SPARE_THREADS = 2


class TaskPool:
    """Runs tasks on one QPU, as many at once as it has lanes.

    A lane is held from submitting a task until its end. There are more threads than lanes, so that
    work that needs no vendor (the journal, decoding) overlaps with other tasks. Threads are started
    as needed, and are daemons: a silent vendor must not delay the process's exit. Tasks never run
    in the main thread, where a signal could interrupt a submission.

    Payloads that may share a task wait in the room. One thread at a time waits for a lane for them,
    and then runs those that wait together as one task.

    Args:
        lanes: The QPU's lanes.
        room: Where payloads wait for others.
    """

    def __init__(self, lanes: LaneSemaphore, room: WaitingRoom) -> None:
        self._lanes = lanes
        self._room = room
        self._is_gathering = False
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._unfinished: set[TaskFuture] = set()
        # Reentrant, because a signal handler may release the lease in the middle of a submission.
        self._lock = threading.RLock()

    @property
    def is_inherited(self) -> bool:
        """Whether the pool belongs to the parent: a forked child has none of its threads."""
        return self._pid != os.getpid()

    def submit(self, run: TaskRun) -> TaskFuture:
        """Accept a task; it starts as soon as a lane is free."""
        (future,) = self.submit_all([run])
        return future

    def submit_all(self, runs: Iterable[TaskRun]) -> list[TaskFuture]:
        """Accept tasks at the same time: those that may share a task do."""
        futures = [TaskFuture(run) for run in runs]
        self._room.expect(sum(future.run.coalesce is not None for future in futures))
        for future in futures:
            goes_alone = future.run.coalesce is None
            self._start(future, partial(self._run_alone if goes_alone else self._enter, future))
        return futures

    def _start(self, future: TaskFuture, work: Callable[[], None]) -> None:
        with self._lock:
            self._unfinished.add(future)
            if self._threads < min(len(self._unfinished), self._lanes.count + _SPARE_THREADS):
                self._threads += 1
                threading.Thread(target=self._work, name="qpu-lane", daemon=True).start()
        future.add_done_callback(self._discard)
        self._inbox.put(work)

    def drain(self) -> None:
        """Wait until all submitted tasks have ended."""
        for future in self._pending():
            future.wait()

    def cancel_tasks(self) -> None:
        """Cancel all unfinished tasks: nobody will want their results."""
        for future in self._pending():
            future.cancel_task()

    def close(self, seconds: float) -> None:
        """Stop all unfinished tasks, and the threads.

        Args:
            seconds: How long to wait for the tasks to stop.
        """
        pending = self._pending()
        for future in pending:
            future.cancel()
        limit = time.monotonic() + seconds
        for future in pending:
            with suppress(Exception):
                future.exception(timeout=max(0.0, limit - time.monotonic()))
        for _ in range(self._threads):
            self._inbox.put(None)

    def _pending(self) -> list[TaskFuture]:
        with self._lock:
            return list(self._unfinished)

    def _discard(self, future: Future[QuantumResult]) -> None:
        with self._lock:
            self._unfinished.discard(future)

    def _work(self) -> None:
        while (work := self._inbox.get()) is not None:
            work()
            del work  # or this frame would keep the last result alive

    def _run_alone(self, future: TaskFuture) -> None:
        if future.running() or future.set_running_or_notify_cancel():
            self._run(future, self._lanes.hold_for_task(future.run.lane_stop))

    def _run(self, future: TaskFuture, lane: AbstractContextManager[object]) -> None:
        try:
            future.end(future.run(lane))
        except BaseException as error:  # raised to the caller by the future
            future.end(error)

    def _enter(self, future: TaskFuture) -> None:
        """Let a payload wait for others, unless an earlier run of its step has submitted it."""
        waits = False
        try:
            if not future.set_running_or_notify_cancel():
                return
            waits = future.run.look_up() and self._room.add(future, self)
        except BaseException as error:  # raised to the caller by the future
            future.end(error)
            return
        finally:
            self._room.arrive()
        if waits:
            self._inbox.put(self._gather)
        else:
            self._run_alone(future)

    def _gather(self) -> None:
        """Wait for a lane, and run those that then wait together as one task."""
        with self._lock:
            if self._is_gathering:
                return
            self._is_gathering = True
        try:
            guests, lane = self._take_together()
        finally:
            self._is_gathering = False
            if self._room.has_guests_of(self):  # others may have returned meanwhile
                self._inbox.put(self._gather)
        with lane:
            if guests:
                self._run_guests(guests, lane)

    def _take_together(self) -> tuple[list[Guest], ExitStack]:
        # Imported only here, because most processes run one task.
        from qrmi_workflows.tasks.offers import Offers
        from qrmi_workflows.tasks.shared_tasks import follow

        with self._room.turn(self) as has_turn:
            while has_turn:
                self._room.await_others()
                with ExitStack() as held:
                    offers = Offers(self._lanes.offers, self._room)
                    try:
                        held.enter_context(self._lanes.hold_for_task(offers))
                    finally:
                        claims = offers.withdraw()
                        self._room.remove({claimed.future for claimed in claims})
                    stopped = self._room.take_stopped()
                    if not stopped and not claims:
                        return self._room.take(), held.pop_all()
                follow(claims, self._go_on)
                for future in stopped:
                    self._inbox.put(partial(self._run_alone, future))
                has_turn = self._room.has_guests_of(self)
        return [], ExitStack()

    def _go_on(self, future: TaskFuture, may_share: bool) -> None:
        """Go on with a payload that another process had claimed."""
        if may_share and self._room.add(future, self):
            self._inbox.put(self._gather)
        else:
            self._inbox.put(partial(self._run_alone, future))

    def _run_guests(self, guests: list[Guest], lane: ExitStack) -> None:
        """Run payloads as one task, with those of other processes that wait for a lane, too."""
        from qrmi_workflows.tasks.offers import Leadership
        from qrmi_workflows.tasks.shared_tasks import runs_of

        futures = [guest.future for guest in guests]
        leadership = Leadership(self._lanes.offers, futures[0].run.entry.path)
        try:
            leadership.claim(guests)
            others = runs_of(leadership, futures[0].run)
            if others or len(futures) > 1:
                self._run_together(futures, others, leadership, lane)
        finally:
            leadership.end({})
        if not others and len(futures) == 1:
            self._run(futures[0], lane)

    def _run_together(
        self,
        futures: list[TaskFuture],
        others: list[TaskRun],
        leadership: Leadership,
        lane: ExitStack,
    ) -> None:
        from qrmi_workflows.tasks.coalesced import CoalescedRun
        from qrmi_workflows.tasks.shared_tasks import describe_end, goes_alone

        runs = [*(future.run for future in futures), *others]
        try:
            together = CoalescedRun.of(runs, leadership.name)
            for future in futures:
                future.leave = partial(_leave, future, together)
            results = together.run_all(lane)
        except BaseException as error:
            # First, because this process may exit as soon as its own futures have ended.
            leadership.end(describe_end(error))
            if goes_alone(error):
                self._submit_alone(futures, error, len(runs))
                return
            for future in futures:
                future.end(error)
        else:
            leadership.end({})  # the others' results are in the journal
            for future, result in zip(futures, results, strict=False):
                future.end(result)

    def _submit_alone(self, futures: list[TaskFuture], error: BaseException, count: int) -> None:
        """Submit payloads alone that were refused together: one of them may be the reason."""
        from qrmi_workflows.tasks.coalesced import is_refused

        if is_refused(error):
            logger.warning(
                "QPU %r refused a task of %d payloads; submitting each of them alone",
                futures[0].run.resource.resource_id(), count,
            )  # fmt: skip
        for future in futures:
            future.leave = None
            self._inbox.put(partial(self._run_alone, future))


def _leave(future: TaskFuture, together: CoalescedRun) -> None:
    """End a cancelled future whose task goes on for others."""
    if together.stop.is_set():
        return  # nobody wants the task any more: it ends as one that goes alone does
    run = future.run
    qpu, task_id = run.resource.resource_id(), run.task_id or ""
    reason = f"goes on: other payloads share it; its result will be in the journal (QPU {qpu!r})"
    future.end(TaskCancelledError(f"task {task_id} {reason}.", qpu, task_id))
