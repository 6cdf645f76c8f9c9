"""One task, from payload to result: submit or re-attach, wait, fetch.

Every task is journaled: what an earlier run of the step has submitted is never submitted again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from qrmi_workflows.client.failures import is_transient
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.variables import OnStop, lane_wait_seconds
from qrmi_workflows.config.variables import on_stop as requested_on_stop
from qrmi_workflows.errors import (
    QPUError,
    ResourceError,
    SessionEndedError,
    TaskCancelledError,
    TaskFailedError,
    TaskUnknownError,
    UndecodedResultError,
)
from qrmi_workflows.journal.coalesced import discard_if_done, is_awaited_by_others, keep_result
from qrmi_workflows.journal.record import Move
from qrmi_workflows.journal.step import Entry, Step
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.retry import retry
from qrmi_workflows.tasks.cancellation import cancel_task
from qrmi_workflows.tasks.costs import (
    Allowance,
    charge,
    expect,
    record_report,
    record_usage,
    settle,
    took,
)
from qrmi_workflows.tasks.deletion import TaskDeletions
from qrmi_workflows.tasks.failure import ambiguous, failure_reason, session_lost
from qrmi_workflows.tasks.lanes import Stop
from qrmi_workflows.tasks.limits import Coalesce, OnAmbiguous
from qrmi_workflows.tasks.lookup import look_up, resolve
from qrmi_workflows.tasks.polling import next_pause
from qrmi_workflows.tasks.presence import Presence
from qrmi_workflows.tasks.recording import try_to_record, warn
from qrmi_workflows.tasks.submission import Submission, had_no_effect
from qrmi_workflows.tasks.usage import TaskTimes
from qrmi_workflows.tasks.withdrawal import Withdrawal
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import load_vendor, registered_type

__all__ = ["OnAmbiguous", "TaskRun"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(slots=True, kw_only=True)
class TaskRun:
    """One task on its way from payload to result; call it once, to run the task to its end.

    Attributes:
        resource: The QPU, acquired if its type requires that.
        resource_type: QRMI's type of the QPU.
        identity: What tells the QPU from others of its name (`JobQPU.identity`).
        payload: The task's input, for the QPU's vendor.
        step: The step it belongs to.
        stop: Set this event to end the run.
        on_stop: Whether a stopped task is cancelled at the vendor, or left for a rerun; what
            `default_on_stop` then returns, if `None`.
        default_on_stop: Called when the task is stopped.
        on_ambiguous: What to do if it is not known whether the vendor accepted it.
        on_state: Called with the task's id and each new state.
        usage: Returns the lease's usage file, if it has one; a stage may get another lease while
            the task waits.
        before_submission: Called before the task is submitted, with its record in the journal and
            `on_stop`.
        require_open: Called immediately before each submission; raises a `SessionEndedError` if the
            lease cannot be used at the moment.
        renew: Gets another session after such an error, given the error, the acquisition token of
            the submission and `stop`; returns `False` if only another process may do so.
        deletions: Deletes tasks that have ended, if the vendor needs that.
        coalesce: The limits within which it may share a task with others; `None`: it goes alone.
        allowance: What the lease's tasks may spend, if that is limited.
        overhead: How many seconds the vendor bills for it besides its time on the QPU.
        chosen: What was asked for, and why this QPU was chosen; empty if it was named.
        presence: Tells whether the QPU has gone, if the task may then move to another one.
        moved_from: The move that has brought it to this QPU.
        follows: Tells whether to go on where an earlier run has moved it.
        task_id: The vendor's id, once it is known.
    """

    resource: QRMIResource
    resource_type: str
    identity: str
    payload: Payload
    step: Step
    stop: threading.Event = field(default_factory=threading.Event)
    on_stop: OnStop | None = None
    default_on_stop: Callable[[], OnStop] = requested_on_stop
    on_ambiguous: OnAmbiguous = "fail"
    on_state: Callable[[str, TaskState], None] | None = None
    usage: Callable[[], Path | None] = lambda: None
    before_submission: Callable[[Path, OnStop | None], None] | None = None
    require_open: Callable[[], None] | None = None
    renew: Callable[[SessionEndedError, str | None, threading.Event], bool] | None = None
    deletions: TaskDeletions | None = None
    coalesce: Coalesce | None = None
    allowance: Allowance | None = None
    overhead: float = 0.0
    chosen: str = ""
    presence: Presence | None = None
    moved_from: Move | None = None
    follows: Callable[[Move], bool] = lambda _: False
    task_id: str | None = None
    _is_expected: bool = False
    _reserves_all: bool = False
    _reported: float | None = None
    _found: tuple[Entry, QuantumResult | str | None] | None = None
    _times: TaskTimes = field(default_factory=TaskTimes)

    def look_up(self) -> bool:
        """Look the task up in the journal; return whether it is new, and may share a task."""
        self._found = look_up(self)
        return self._may_share()

    def resume(self) -> bool:
        """Go on with the task as another process has left it; return as `look_up` does."""
        self._found = resolve(self, self.entry, self.entry.take_back())
        return self._may_share()

    def _may_share(self) -> bool:
        if self._found is None or self._found[1] is not None or self.coalesce is None:
            return False
        if self.allowance is not None:
            expect(self, self.entry)
            self.entry.write()  # for the process that submits the task for others, too
        return True

    @property
    def entry(self) -> Entry:
        """The task's place in the journal, once it was looked up."""
        if self._found is None:
            raise RuntimeError("the task was not looked up")
        return self._found[0]

    def __call__(self, lane: AbstractContextManager[object]) -> QuantumResult:
        """Look the task up in the journal, or submit it; wait for its end; fetch the result.

        Args:
            lane: A lane of the QPU, held while the vendor has the task.

        Raises:
            TaskFailedError, TaskCancelledError: It ended without a result.
            AmbiguousTaskError: It is not known whether the vendor accepted it.
            ResourceError: The vendor rejected a request, or failed for longer than `RETRY_SECONDS`.
            UndecodedResultError: This release cannot decode the result.
            JournalError: The journal could not be read or written; nothing was submitted.
        """
        self._found = self._found or look_up(self)
        entry, known = self._found
        if isinstance(known, QuantumResult):
            self.task_id = known.task_id
            return warn(self._decode_and_delete(entry, known).decoded())
        try:
            return warn(self._run(entry, known, lane).decoded())
        finally:
            settle(entry)

    def _run(
        self, entry: Entry, known: str | None, lane: AbstractContextManager[object]
    ) -> QuantumResult:
        with ExitStack() as held:
            held.enter_context(lane)
            held.callback(settle, entry)  # before another task has the lane
            self._times.start()
            state = self._run_to_end(entry, known)
            record_usage(self, state)  # before a later task's, or the end of the lease
            # Fetching and the journal need no QPU, unless an ended task keeps its lane. The next
            # task would be refused if this one had reserved all that is left of a budget.
            if not (self._traits.stop_deletes_finished or self._reserves_all):
                held.close()
            return self._fetch(entry, state)

    @property
    def _traits(self) -> ResourceType:
        return registered_type(self.resource_type) or ResourceType(qrmi="")

    def _run_to_end(self, entry: Entry, known: str | None) -> TaskState:
        state = None if known is None else self._re_attach(entry, known)
        if state is None:
            self.task_id = self._start(entry)
            self._times.submitted()
            state = self._wait(entry)
        # While the lane is held: the next task that takes it starts after this one's end.
        self._times.saw(state)
        return state

    def _re_attach(self, entry: Entry, known: str) -> TaskState | None:
        """Wait for a task that an earlier run has submitted; return `None` if it must run again."""
        self.task_id = known
        self._times.submitted(is_partial=True)
        # An earlier run may have requested the cancellation without seeing its end.
        was_stopping = entry.record.retryable
        try:
            state = self._ask_state()
            was_cancelled = state is TaskState.CANCELLED
            if not was_cancelled:
                state = self._wait(entry)
            if state is not TaskState.CANCELLED or not (was_cancelled or was_stopping):
                return state
            reason = "was cancelled"
            settle(entry, took(self, entry, state))
            self.delete(entry)
        except TaskUnknownError:
            reason = "is no longer known to the vendor"
            charge(self, entry)
        logger.warning("task %s %s; submitting it again", known, reason)
        entry.reset()
        return None

    @property
    def lane_stop(self) -> Stop:
        """What ends the wait for a lane: the run's stop, or the end of its QPU."""
        return self.stop

    def _start(self, entry: Entry) -> str:
        if self.moved_from is not None:
            entry.came(self.moved_from)
        expect(self, entry)
        if self.before_submission is not None:
            self.before_submission(entry.path, self.on_stop)
        submission = Submission(
            resource=self.resource,
            traits=self._traits,
            payload=load_vendor(self.payload.vendor).encode(self.payload.content),
            entry=entry,
            stop=self.stop,
            leaves=self.leaves,
            lane_wait=lane_wait_seconds(),
            require_open=self.require_open,
            presence=self.presence,
        )
        # Every pass but the last ends in a renewed session, or in a resubmission as requested.
        while True:
            token = self.resource.token
            try:
                task_id = submission.send()
            except QPUError as error:
                if isinstance(error, SessionEndedError):
                    if self.renew and self.renew(error, token, self.stop):
                        continue
                    try_to_record(entry.failed, error.message, retryable=True)
                    raise session_lost(error) from error
                if had_no_effect(error):  # nothing was paid for, so a rerun may submit it
                    try_to_record(entry.failed, error.message, retryable=True)
                    raise
                self.handle_ambiguity(error.message, error)
                submission.supersede()
                charge(self, entry)
                expect(self, entry)
            else:
                if task_id is None:
                    try_to_record(entry.failed, "stopped before it was submitted", retryable=True)
                    raise self.cancelled("was not submitted: the step was stopped")
                # Before anything else: from here on a crash must not lose the id.
                try_to_record(entry.submitted, task_id)
                return task_id

    def _ask_state(self) -> TaskState:
        stop = self.stop if self._traits.status_waits else None

        def ask() -> TaskState:
            self._times.asks()
            return TaskState.of(self.resource.task_status(str(self.task_id), stop=stop))

        return self._insist(ask)

    def _insist(self, request: Callable[[], _T]) -> _T:
        """Repeat a request about a task that the vendor has, until it is answered."""
        presence = self.presence
        if presence is None:
            return retry(request, is_transient, stop=self.stop)
        return retry(
            request,
            is_transient,
            stop=self.stop,
            seconds=presence.patience,
            before_pause=presence.tell_of_silence,
        )

    def _wait(self, entry: Entry) -> TaskState:
        last, since = None, time.monotonic()
        withdrawal = None if self.presence is None else Withdrawal(self, self.presence, entry)
        while True:
            try:
                state = self._ask_state()
            except ResourceError:
                if self.stop.is_set():
                    return self._stop(entry)
                raise
            self._times.saw(state)
            if state is not last:
                last, since = state, time.monotonic()
                self.report_state(state)
            if state.is_final:
                return state
            if withdrawal is not None and (end := withdrawal.look(state)) is not None:
                self._times.saw(end)
                return end
            # Wait on the event rather than sleep, so that a stop takes effect immediately.
            if self.stop.wait(next_pause(state, time.monotonic() - since)):
                return self._stop(entry)

    def report_state(self, state: TaskState) -> None:
        """Call `on_state`; an error in it (a closed terminal, say) must not lose the task."""
        try:
            if self.on_state:
                self.on_state(str(self.task_id), state)
        except Exception:
            logger.warning("on_state failed for task %s", self.task_id, exc_info=True)

    def _stop(self, entry: Entry) -> TaskState:
        """Cancel the task, or leave it; return its state if it had already ended."""
        if is_awaited_by_others(entry.record, entry.path):
            raise self.cancelled("goes on: other payloads share it")
        if self.leaves():
            raise self.cancelled("was left for a rerun: the step was stopped")
        state, failure = cancel_task(self.resource, str(self.task_id), self._traits)
        if state in (TaskState.COMPLETED, TaskState.FAILED):
            return state
        if state is TaskState.CANCELLED:
            record_usage(self, state)
            spent = took(self, entry, state)
            try_to_record(entry.failed, "stopped with its step", retryable=True, spent=spent)
            self.delete(entry)
            error = self.cancelled("was cancelled, because its step was stopped")
            logger.warning("%s", error)  # as below
            raise error
        try_to_record(entry.stopping, "its cancellation was requested")
        reason = failure or f"its cancellation was accepted, but its state is still {state}"
        error = self.cancelled(
            f"may still be running; rerun the step to check: {reason.removesuffix('.')}"
        )
        logger.warning("%s", error)  # whoever has stopped the step may not look at its errors
        raise error

    def leaves(self) -> bool:
        """Return whether the task is left for a rerun if it is stopped now."""
        return (self.on_stop or self.default_on_stop()) == "leave"

    def delete(self, entry: Entry) -> None:
        """Delete an ended task, if that is needed, once all payloads that share it are recorded."""
        portion = entry.record.portion
        if portion is not None and not discard_if_done(entry.path, portion):
            return
        if self.deletions is not None:
            self.deletions.delete(entry)

    def _fetch(self, entry: Entry, state: TaskState) -> QuantumResult:
        """Fetch the result and record it as it is: what is paid for is kept before it is decoded.

        Once its end is recorded, the task is deleted at the vendor, if that is needed.
        """
        if state is not TaskState.COMPLETED:
            error = self._ended_without_result(state)
            again = state is TaskState.CANCELLED or self._may_have_failed_with_its_qpu
            spent = took(self, entry, state)
            if try_to_record(entry.failed, error.message, retryable=again, spent=spent):
                self.delete(entry)
            raise error
        result = self._ask_result(
            entry, submitted=entry.record.since, completed=self._times.ended()
        )
        # A deleted task's result cannot be fetched again.
        spent = took(self, entry, state)
        is_last_copy = self._traits.stop_deletes_finished
        is_recorded = try_to_record(entry.completed, result, durable=is_last_copy, spent=spent)
        return self._decode_and_delete(entry, result, is_recorded=is_recorded)

    @property
    def _may_have_failed_with_its_qpu(self) -> bool:
        """Whether a failure is no reason against another try, where a fallback was asked for.

        The QPU may have gone and come back between two looks, or while no run was there to look.
        """
        return self.presence is not None and not self._traits.bills_own_errors

    def _decode_and_delete(
        self, entry: Entry, result: QuantumResult, *, is_recorded: bool = True
    ) -> QuantumResult:
        try:
            result = result.decoded()
        except UndecodedResultError:
            # The text may have been cut short on its way. Ask again, if the vendor still has it.
            with suppress(QPUError):
                times = {"submitted": result.submitted, "completed": result.completed}
                again = self._ask_result(entry, **times)
                result = again.decoded()
                is_recorded = try_to_record(entry.completed, again, durable=True)
        if is_recorded:
            self.delete(entry)
        return result

    def _ask_result(self, entry: Entry, *, submitted: str, completed: str) -> QuantumResult:
        task_id = str(self.task_id)
        text = self._insist(lambda: str(self.resource.task_result(task_id).value))
        record_report(self, text)
        whole = QuantumResult(
            qpu=self.resource.resource_id(),
            type=self.resource_type,
            program=self.payload.program,
            task_id=task_id,
            payload_digest=self.payload.digest,
            submitted=submitted,
            completed=completed,
            data=[],
            vendor_result=text,
            chosen=self.chosen or None,
        )
        portion = entry.record.portion
        if portion is None:
            return whole
        try_to_record(keep_result, entry.path, portion, whole)
        return whole.part(self.payload.digest, portion.counts).split_if_possible()

    def handle_ambiguity(self, reason: str, cause: Exception | None = None) -> None:
        """Raise an error if the vendor may have the task, unless it is to be submitted again."""
        error = ambiguous(self.resource.resource_id(), self._describe(), reason)
        if self.stop.is_set():  # whoever has stopped the step may not look at its errors
            logger.warning("%s", error)
        if self.on_ambiguous == "fail" or self.stop.is_set():
            raise error from cause
        logger.warning(
            "%s Submitting it again, as requested.", error.message.partition(" Check")[0]
        )

    def _describe(self) -> str:
        return f"a task of step {self.step.name!r} (payload {self.payload.digest[:12]})"

    def cancelled(self, what: str) -> TaskCancelledError:
        """Return the error of a run that ends without a result, with what becomes of the task."""
        qpu, task_id = self.resource.resource_id(), self.task_id or ""
        return TaskCancelledError(f"task {task_id} on QPU {qpu!r} {what}.", qpu, task_id)

    def _ended_without_result(self, state: TaskState) -> TaskFailedError | TaskCancelledError:
        qpu, task_id = self.resource.resource_id(), str(self.task_id)
        if state is TaskState.CANCELLED:
            return self.cancelled("was cancelled at the vendor")
        reason = failure_reason(self.resource, self._traits, self.payload, task_id)
        return TaskFailedError(
            f"task {task_id} on QPU {qpu!r} failed at the vendor: {reason}",
            qpu,
            task_id,
        )
