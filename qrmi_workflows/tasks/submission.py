"""Submitting a task: wait for a lane at the vendor, then for its answer, however late that comes.

QRMI's client for IBM Quantum System API does not return from `task_start` while all of the QPU's
lanes are taken, and its call cannot be interrupted. So a task is sent only when the vendor says
that a lane is free; until then, nothing is at stake. If another client is faster, the call is
watched: as long as the vendor answers other requests, it is merely waiting. If the wait ends before
the call, the answer is still received: its task is recorded for the next run, or stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from qrmi_workflows.client.failures import is_busy, is_lane_refusal, may_submit_again
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.client.start_call import StartCall
from qrmi_workflows.config.variables import QPU_LANE_WAIT
from qrmi_workflows.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    JournalError,
    PayloadError,
    QPUError,
    ResourceError,
)
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.retry import RETRY_SECONDS, retry
from qrmi_workflows.tasks.cancellation import cancel_task
from qrmi_workflows.tasks.costs import settle, unseen
from qrmi_workflows.tasks.polling import next_pause
from qrmi_workflows.tasks.presence import Presence
from qrmi_workflows.vendors.base import ResourceType, VendorPayload

__all__ = ["Submission", "had_no_effect"]

logger = logging.getLogger(__name__)

_STOP_LATENCY = 0.1  # seconds within which a wait for an answer notices its stop
_ANSWER_SECONDS = 3.0  # how long a stopped run waits for an answer: less than KillWait's share
_LOOK_SECONDS = 15.0  # how often the vendor is asked whether it answers at all
_STATUS_SECONDS = 5.0
_FIRST_MESSAGE, _NEXT_MESSAGE = 5.0, 600.0  # seconds of waiting after which the user is told


class _StoppedError(Exception):
    """The step was stopped before anything was sent."""


@dataclass(slots=True, kw_only=True)
class Submission:
    """Submits one task.

    Attributes:
        resource: The QPU.
        traits: How QRMI reaches its type.
        payload: The encoded payload.
        entry: The task's place in the journal.
        stop: Set this event to give up.
        leaves: Tells whether a stopped task is left for a rerun, as things stand.
        lane_wait: How many seconds to wait for a lane.
        require_open: Called immediately before the task is sent; raises an error that
            `had_no_effect` if the lease cannot be used at the moment.
        presence: Tells whether the QPU has gone, if the task may then move to another one.
    """

    resource: QRMIResource
    traits: ResourceType
    payload: VendorPayload
    entry: Entry
    stop: threading.Event
    leaves: Callable[[], bool]
    lane_wait: float
    require_open: Callable[[], None] | None = None
    presence: Presence | None = None
    _limit: float = 0.0
    _failing_since: float | None = None
    _next_message: float = field(default_factory=lambda: _FIRST_MESSAGE)
    _given_up: StartCall | None = None
    _superseded: list[StartCall] = field(default_factory=list)

    def send(self) -> str | None:
        """Submit the task, and return its id; `None` if stopped before anything was sent.

        Raises:
            ConfigError, JournalError: Nothing was sent.
            ResourceError: The vendor did not accept it. Unless the error `had_no_effect`, the
                vendor may have.
        """
        self._limit = time.monotonic() + self.lane_wait
        try:
            task_id: str = retry(
                self._try_once, self._may_try_again, stop=self.stop, seconds=self.lane_wait
            )
        except _StoppedError:
            return None
        except ResourceError as error:
            if self.stop.is_set() and is_busy(error):
                return None
            raise
        return task_id

    def supersede(self) -> None:
        """Cancel the task of the unanswered call if it is accepted after all: another is sent."""
        if self._given_up is not None:
            self._superseded.append(self._given_up)
            self._given_up = None

    def _try_once(self) -> str:
        call = self._begin()
        try:
            return self._await_answer(call)
        except QPUError as error:
            if had_no_effect(error):  # withdraw the intent: a crash must not find it
                with suppress(JournalError):
                    self.entry.reset()
            raise

    def _may_try_again(self, error: BaseException) -> bool:
        if is_lane_refusal(error):
            self._failing_since = None
            self._tell_that_it_waits(getattr(error, "message", ""))
            return True
        if not may_submit_again(error):
            return False
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        return now - self._failing_since < RETRY_SECONDS

    def _begin(self) -> StartCall:
        since = time.monotonic()
        while True:
            if self.stop.is_set():
                raise _StoppedError
            if self.presence is not None:
                self.presence.require()
            call = self.resource.begin_task(
                self.payload, before=self._intend, needs_lane=self.traits.start_waits_for_lane
            )
            if call is not None:
                return call
            if time.monotonic() >= self._limit:
                raise self._no_lane()
            self._tell_that_it_waits("all of its lanes are taken")
            self.stop.wait(next_pause(TaskState.QUEUED, time.monotonic() - since))

    def _intend(self) -> None:
        if self.stop.is_set():
            raise _StoppedError
        self.entry.intend()
        if self.require_open is None:
            return
        # After the intent is recorded: whoever closes the lease looks for intents first.
        try:
            self.require_open()
        except QPUError:
            with suppress(JournalError):
                self.entry.reset()
            raise

    def _await_answer(self, call: StartCall) -> str:
        silence = self.resource.deadline_of("task_start")
        if self.presence is not None:  # it may not move before it is known what became of it
            silence = max(silence, self.presence.patience)
        next_look = min(_FIRST_MESSAGE, silence)
        while not call.is_answered(_STOP_LATENCY):
            if self.stop.is_set():
                if call.is_answered(_ANSWER_SECONDS):
                    break
                raise self._give_up(call, "the step was stopped while the submission was under way")
            if call.seconds < next_look:
                continue
            next_look = call.seconds + min(_LOOK_SECONDS, silence)
            if self.presence is not None and not self.traits.start_waits_for_lane:
                self.presence.tell("a task may have been accepted: no answer", call.seconds)
            may_wait = self.traits.start_waits_for_lane and self._is_vendor_there()
            if call.seconds >= silence and not (may_wait and time.monotonic() < self._limit):
                raise self._give_up(call, f"it did not answer within {call.seconds:.3g} s")
        return call.task_id()

    def _is_vendor_there(self) -> bool:
        """Ask for the QPU's status; an answer means that the submission waits for a lane."""
        try:
            status = self.resource.status(deadline=_STATUS_SECONDS)
        except QPUError:
            return False
        free = status.capacity and status.capacity.available_slots
        self._tell_that_it_waits(
            "it has not accepted the task yet, and reports "
            f"{'an unknown number of' if free is None else free} free lanes"
        )
        return True

    def _tell_that_it_waits(self, reason: str) -> None:
        waited = time.monotonic() - (self._limit - self.lane_wait)
        if waited >= self._next_message:
            self._next_message = waited + _NEXT_MESSAGE
            logger.warning(
                "QPU %r: %s; waiting for a lane for %.0f s so far, at most %.0f s ($%s)",
                self.resource.name, reason, waited, self.lane_wait, QPU_LANE_WAIT,
            )  # fmt: skip

    def _no_lane(self) -> ResourceError:
        return ResourceError(
            f"QPU {self.resource.name!r}: all of its lanes have been taken for "
            f"{self.lane_wait:.3g} s; the task was not submitted. Try again later, or set "
            f"${QPU_LANE_WAIT} to wait longer.",
            self.resource.name, "task_start", 429, retryable=True, had_no_effect=True,
        )  # fmt: skip

    def _give_up(self, call: StartCall, reason: str) -> DeadlineError:
        self._given_up = call
        call.when_answered(self._receive_late)
        name = self.resource.name
        return DeadlineError(f"QPU {name!r}: {reason}", name, "task_start", retryable=True)

    def _receive_late(self, call: StartCall) -> None:
        """Record a late answer; cancel the task if nobody wants it any more."""
        try:
            self._settle(call)
        except (QPUError, RuntimeError) as error:  # no thread can be started at interpreter exit
            logger.warning("a late answer of QPU %r is lost: %s", self.resource.name, error)

    def _settle(self, call: StartCall) -> None:
        is_current = call not in self._superseded
        try:
            task_id = call.task_id()
        except QPUError as error:
            if is_current and had_no_effect(error):
                with self.entry.holding(RecordState.INTENT) as is_held:
                    if is_held:
                        self.entry.failed(error.message, retryable=True)
                settle(self.entry)
            return
        is_recorded = is_current and self._record_late(task_id)
        if is_recorded and self._is_wanted():
            self._warn(f"has accepted task {task_id} late; a rerun of the step waits for it")
            return
        state, failure = cancel_task(self.resource, task_id, self.traits)
        if state is not TaskState.CANCELLED:
            failure = failure or "its cancellation was accepted"
            self._warn(f"has accepted task {task_id} late; its state is {state}: {failure}")
            return
        self._warn(f"has accepted task {task_id} late; nobody wants it, so it was cancelled")
        if is_recorded:
            with self.entry.holding(RecordState.SUBMITTED) as is_held:
                if is_held:
                    reason, spent = "accepted after its step was stopped", unseen(self.entry)
                    self.entry.failed(reason, retryable=True, spent=spent)
            settle(self.entry)

    def _record_late(self, task_id: str) -> bool:
        try:
            with self.entry.holding(RecordState.INTENT) as is_held:
                if is_held:
                    self.entry.submitted(task_id)
                    if not self._is_wanted():
                        self.entry.stopping("accepted after its step was stopped")
                return is_held
        except JournalError as error:
            logger.warning("task %s is not recorded: %s", task_id, error)
            return False

    def _warn(self, what: str) -> None:
        logger.warning("QPU %r %s", self.resource.name, what)

    def _is_wanted(self) -> bool:
        """Return whether another run of the step may take the task over."""
        return self.entry.step.named and (self.leaves() or not self.stop.is_set())


def had_no_effect(error: BaseException) -> bool:
    """Return whether a failed submission was certainly not accepted."""
    if isinstance(error, ResourceError):
        return error.had_no_effect
    return isinstance(error, (AuthenticationError, ConfigError, JournalError, PayloadError))
