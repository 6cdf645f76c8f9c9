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
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from qrmi_workflows.client.failures import is_transient
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.variables import OnStop, lane_wait_seconds
from qrmi_workflows.config.variables import on_stop as requested_on_stop
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    JournalError,
    QPUError,
    ResourceError,
    SessionEndedError,
    TaskCancelledError,
    TaskFailedError,
    TaskUnknownError,
    UndecodedResultError,
)
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.journal.step import Entry, Step
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.retry import retry
from qrmi_workflows.tasks.cancellation import cancel_task
from qrmi_workflows.tasks.deletion import TaskDeletions
from qrmi_workflows.tasks.failure import failure_reason, session_lost
from qrmi_workflows.tasks.polling import next_pause
from qrmi_workflows.tasks.submission import Submission, had_no_effect
from qrmi_workflows.tasks.usage import TaskUsage
from qrmi_workflows.vendors.base import ResourceType
from qrmi_workflows.vendors.registry import load_vendor, registered_type

__all__ = ["OnAmbiguous", "TaskRun"]

logger = logging.getLogger(__name__)

OnAmbiguous = Literal["fail", "resubmit"]
"""The treatment of a task if it is not known whether the vendor accepted it."""


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
        usage: The lease's usage file, if it has one.
        before_submission: Called before the task is submitted, with its record in the journal and
            `on_stop`.
        renew: Acquires again after the vendor has closed the session; returns `False` if only
            another process may do so.
        deletions: Deletes tasks that have ended, if the vendor needs that.
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
    usage: Path | None = None
    before_submission: Callable[[Path, OnStop | None], None] | None = None
    renew: Callable[[], bool] | None = None
    deletions: TaskDeletions | None = None
    task_id: str | None = None

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
        entry, known = self._look_up()
        if isinstance(known, QuantumResult):
            self.task_id = known.task_id
            return _warn(self._decode_and_delete(entry, known).decoded())
        with ExitStack() as held:
            held.enter_context(lane)
            started = time.time()
            state = self._run_to_end(entry, known)
            # Fetching and the journal need no QPU, unless an ended task keeps its lane.
            if not self._traits.stop_deletes_finished:
                held.close()
            self._record_usage(started, state)
            result = self._fetch(entry, state)
        return _warn(result.decoded())

    @property
    def _traits(self) -> ResourceType:
        return registered_type(self.resource_type) or ResourceType(qrmi="")

    def _look_up(self) -> tuple[Entry, QuantumResult | str | None]:
        """Claim the task in the journal; return its result, its id, or `None` if it is new."""
        qpu = self.resource.resource_id()
        entry, before = self.step.claim(
            self.payload.digest, qpu=qpu, program=self.payload.program, identity=self.identity
        )
        if before is None:
            return entry, None
        if before.state is RecordState.COMPLETED:
            logger.info("task %s was completed in an earlier run", before.task_id)
            return entry, before.result
        if before.state is RecordState.SUBMITTED:
            logger.info("re-attaching to task %s", before.task_id)
            return entry, before.task_id
        if before.state is RecordState.FAILED:
            self._delete(entry)
            if not before.retryable:
                raise self._failed_earlier(before)
        if before.state is RecordState.INTENT:
            self._handle_ambiguity("an earlier run ended before the vendor had answered")
        if before.state is not RecordState.CLAIMED:
            entry.reset()
        return entry, None

    def _run_to_end(self, entry: Entry, known: str | None) -> TaskState:
        if known is not None and (state := self._re_attach(entry, known)) is not None:
            return state
        self.task_id = self._start(entry)
        return self._wait(entry)

    def _re_attach(self, entry: Entry, known: str) -> TaskState | None:
        """Wait for a task that an earlier run has submitted; return `None` if it must run again."""
        self.task_id = known
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
            self._delete(entry)
        except TaskUnknownError:
            reason = "is no longer known to the vendor"
        logger.warning("task %s %s; submitting it again", known, reason)
        entry.reset()
        return None

    def _start(self, entry: Entry) -> str:
        if self.before_submission is not None:
            self.before_submission(entry.path, self.on_stop)
        submission = Submission(
            resource=self.resource,
            traits=self._traits,
            payload=load_vendor(self.payload.vendor).encode(self.payload.content),
            entry=entry,
            stop=self.stop,
            leaves=self._leaves,
            lane_wait=lane_wait_seconds(),
        )
        # Every pass but the last ends in a renewed session, or in a resubmission as requested.
        while True:
            try:
                task_id = submission.send()
            except QPUError as error:
                if isinstance(error, SessionEndedError):
                    if self.renew and self.renew():
                        continue
                    _try_to_record(entry.failed, error.message, retryable=True)
                    raise session_lost(error) from error
                if had_no_effect(error):  # nothing was paid for, so a rerun may submit it
                    _try_to_record(entry.failed, error.message, retryable=True)
                    raise
                self._handle_ambiguity(error.message, error)
                submission.supersede()
            else:
                if task_id is None:
                    _try_to_record(entry.failed, "stopped before it was submitted", retryable=True)
                    raise self._cancelled("was not submitted: the step was stopped")
                # Before anything else: from here on a crash must not lose the id.
                _try_to_record(entry.submitted, task_id)
                return task_id

    def _ask_state(self) -> TaskState:
        stop = self.stop if self._traits.status_waits else None
        return retry(
            lambda: TaskState.of(self.resource.task_status(str(self.task_id), stop=stop)),
            is_transient,
            stop=self.stop,
        )

    def _wait(self, entry: Entry) -> TaskState:
        last, since = None, time.monotonic()
        while True:
            try:
                state = self._ask_state()
            except ResourceError:
                if self.stop.is_set():
                    return self._stop(entry)
                raise
            if state is not last:
                last, since = state, time.monotonic()
                self._report_state(state)
            if state.is_final:
                return state
            # Wait on the event rather than sleep, so that a stop takes effect immediately.
            if self.stop.wait(next_pause(state, time.monotonic() - since)):
                return self._stop(entry)

    def _report_state(self, state: TaskState) -> None:
        """Call `on_state`; an error in it (a closed terminal, say) must not lose the task."""
        try:
            if self.on_state:
                self.on_state(str(self.task_id), state)
        except Exception:
            logger.warning("on_state failed for task %s", self.task_id, exc_info=True)

    def _stop(self, entry: Entry) -> TaskState:
        """Cancel the task, or leave it; return its state if it had already ended."""
        if self._leaves():
            raise self._cancelled("was left for a rerun: the step was stopped")
        state, failure = cancel_task(self.resource, str(self.task_id), self._traits)
        if state in (TaskState.COMPLETED, TaskState.FAILED):
            return state
        if state is TaskState.CANCELLED:
            _try_to_record(entry.failed, "stopped with its step", retryable=True)
            self._delete(entry)
            raise self._cancelled("was stopped")
        _try_to_record(entry.stopping, "its cancellation was requested")
        reason = failure or f"its cancellation was accepted, but its state is still {state}"
        error = self._cancelled(
            f"may still be running; rerun the step to check: {reason.removesuffix('.')}"
        )
        logger.warning("%s", error)  # whoever has stopped the step may not look at its errors
        raise error

    def _leaves(self) -> bool:
        return (self.on_stop or self.default_on_stop()) == "leave"

    def _delete(self, entry: Entry) -> None:
        if self.deletions is not None:
            self.deletions.delete(entry)

    def _fetch(self, entry: Entry, state: TaskState) -> QuantumResult:
        """Fetch the result and record it as it is: what is paid for is kept before it is decoded.

        Once its end is recorded, the task is deleted at the vendor, if that is needed.
        """
        if state is not TaskState.COMPLETED:
            error = self._ended_without_result(state)
            if _try_to_record(entry.failed, error.message, retryable=state is TaskState.CANCELLED):
                self._delete(entry)
            raise error
        result = self._ask_result(submitted=entry.record.since, completed=_now())
        # A deleted task's result cannot be fetched again.
        is_last_copy = self._traits.stop_deletes_finished
        is_recorded = _try_to_record(entry.completed, result, durable=is_last_copy)
        return self._decode_and_delete(entry, result, is_recorded=is_recorded)

    def _decode_and_delete(
        self, entry: Entry, result: QuantumResult, *, is_recorded: bool = True
    ) -> QuantumResult:
        try:
            result = result.decoded()
        except UndecodedResultError:
            # The text may have been cut short on its way. Ask again, if the vendor still has it.
            with suppress(QPUError):
                again = self._ask_result(submitted=result.submitted, completed=result.completed)
                result = again.decoded()
                is_recorded = _try_to_record(entry.completed, again, durable=True)
        if is_recorded:
            self._delete(entry)
        return result

    def _ask_result(self, *, submitted: str, completed: str) -> QuantumResult:
        task_id = str(self.task_id)
        text = retry(lambda: self.resource.task_result(task_id).value, is_transient, stop=self.stop)
        return QuantumResult(
            qpu=self.resource.resource_id(),
            type=self.resource_type,
            program=self.payload.program,
            task_id=task_id,
            payload_digest=self.payload.digest,
            submitted=submitted,
            completed=completed,
            data=[],
            vendor_result=text,
        )

    def _record_usage(self, started: float, state: TaskState) -> None:
        if self.usage is None:
            return
        usage = TaskUsage(
            qpu=self.resource.resource_id(),
            task_id=str(self.task_id),
            started=started,
            ended=time.time(),
            state=state,
        )
        with suppress(OSError):
            usage.append_to(self.usage)

    def _handle_ambiguity(self, reason: str, cause: Exception | None = None) -> None:
        qpu = self.resource.resource_id()
        message = (
            f"it is not known whether QPU {qpu!r} accepted a task of step {self.step.name!r} "
            f"(payload {self.payload.digest[:12]}): {reason.removesuffix('.')}."
        )
        if self.on_ambiguous == "fail" or self.stop.is_set():
            error = AmbiguousTaskError(
                f"{message} Check the vendor's list of tasks. To submit it again, at the risk of "
                "paying twice, rerun the step with `--on-ambiguous resubmit` "
                "(on_ambiguous='resubmit').",
                qpu,
            )
            if self.stop.is_set():  # whoever has stopped the step may not look at its errors
                logger.warning("%s", error)
            raise error from cause
        logger.warning("%s Submitting it again, as requested.", message)

    def _cancelled(self, what: str) -> TaskCancelledError:
        qpu, task_id = self.resource.resource_id(), self.task_id or ""
        return TaskCancelledError(f"task {task_id} on QPU {qpu!r} {what}.", qpu, task_id)

    def _failed_earlier(self, before: TaskRecord) -> TaskFailedError:
        return TaskFailedError(
            f"{before.reason} This was recorded by an earlier run of step {before.step!r}, so the "
            "task is not submitted again. To forget it, run `qpu journal prune --step "
            f"{before.step!r}`.",
            before.qpu,
            before.task_id or "",
        )

    def _ended_without_result(self, state: TaskState) -> TaskFailedError | TaskCancelledError:
        qpu, task_id = self.resource.resource_id(), str(self.task_id)
        if state is TaskState.CANCELLED:
            return self._cancelled("was cancelled at the vendor")
        reason = failure_reason(self.resource, self._traits, self.payload, task_id)
        return TaskFailedError(
            f"task {task_id} on QPU {qpu!r} failed at the vendor: {reason}",
            qpu,
            task_id,
        )


def _warn(result: QuantumResult) -> QuantumResult:
    for warning in result.warnings:
        logger.warning("task %s on QPU %r: %s", result.task_id, result.qpu, warning)
    return result


def _try_to_record(write: Callable[..., None], *args: object, **kwargs: object) -> bool:
    """Record an event that has already happened; if the journal fails, log that, return `False`."""
    try:
        write(*args, **kwargs)
    except JournalError as error:
        logger.warning("not recorded, so a crash would lose it: %s", error)
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat()
