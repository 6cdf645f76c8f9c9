"""One task, from payload to result: submit or re-attach, wait, fetch.

Every task is journaled: what an earlier run of the step has submitted is never submitted again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from qrmi_workflows.client.failures import is_transient, may_submit_again
from qrmi_workflows.client.protocol import QuantumResource, TaskState
from qrmi_workflows.config.variables import OnStop, on_stop
from qrmi_workflows.errors import (
    AmbiguousTaskError,
    JournalError,
    QPUError,
    ResourceError,
    SessionEndedError,
    TaskCancelledError,
    TaskFailedError,
    TaskUnknownError,
)
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.journal.step import Entry, Step
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.retry import retry
from qrmi_workflows.tasks.polling import next_pause
from qrmi_workflows.tasks.usage import TaskUsage
from qrmi_workflows.vendors.registry import load_vendor

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
        on_stop: Whether a stopped task is cancelled at the vendor, or left for a rerun; by default
            what `$QPU_ON_STOP` says when the task is stopped.
        on_ambiguous: What to do if it is not known whether the vendor accepted it.
        on_state: Called with the task's id and each new state.
        usage: The lease's usage file, if it has one.
        renew: Acquires again after the vendor has closed the session; returns `False` if only
            another process may do so.
        task_id: The vendor's id, once it is known.
    """

    resource: QuantumResource
    resource_type: str
    identity: str
    payload: Payload
    step: Step
    stop: threading.Event = field(default_factory=threading.Event)
    on_stop: OnStop | None = None
    on_ambiguous: OnAmbiguous = "fail"
    on_state: Callable[[str, TaskState], None] | None = None
    usage: Path | None = None
    renew: Callable[[], bool] | None = None
    task_id: str | None = None

    def __call__(self, lane: AbstractContextManager[object]) -> QuantumResult:
        """Look the task up in the journal, or submit it; wait for its end; fetch the result.

        Args:
            lane: A lane of the QPU, held while the vendor has the task.

        Raises:
            TaskFailedError, TaskCancelledError: It ended without a result.
            AmbiguousTaskError: It is not known whether the vendor accepted it.
            ResourceError: The vendor rejected a request, or failed for longer than `RETRY_SECONDS`.
            ResultError: The result is not in the vendor's form.
            JournalError: The journal could not be read or written; nothing was submitted.
        """
        entry, known = self._look_up()
        if isinstance(known, QuantumResult):
            self.task_id = known.task_id
            return known
        with lane:
            started = time.time()
            state = self._run_to_end(entry, known)
        # The lane is free now: fetching, decoding and the journal need no QPU.
        self._record_usage(started, state)
        return self._fetch(entry, state)

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
        if before.state is RecordState.FAILED and not before.retryable:
            raise self._failed_earlier(before)
        if before.state is RecordState.INTENT:
            self._handle_ambiguity("an earlier run ended before the vendor had answered")
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
        try:
            if self._ask_state() is not TaskState.CANCELLED:
                return self._wait(entry)
            reason = "was cancelled"
        except TaskUnknownError:
            reason = "is no longer known to the vendor"
        logger.warning("task %s %s; submitting it again", known, reason)
        entry.reset()
        return None

    def _start(self, entry: Entry) -> str:
        encoded = load_vendor(self.payload.vendor).encode(self.payload.content)
        # Every pass but the last ends in a renewed session, or in a resubmission as requested.
        while not self.stop.is_set():
            try:
                task_id: str = retry(
                    lambda: self.resource.task_start(encoded), may_submit_again, stop=self.stop
                )
            except SessionEndedError as error:
                if self.renew is None or not self.renew():
                    _try_to_record(entry.failed, error.message, retryable=True)
                    raise
            except ResourceError as error:
                if error.had_no_effect:  # nothing was paid for, so a rerun may submit it
                    _try_to_record(entry.failed, error.message, retryable=True)
                    raise
                self._handle_ambiguity(error.message, error)
            else:
                # Before anything else: from here on a crash must not lose the id.
                _try_to_record(entry.submitted, task_id)
                return task_id
        _try_to_record(entry.failed, "stopped before it was submitted", retryable=True)
        raise self._cancelled("was not submitted: the step was stopped")

    def _ask_state(self) -> TaskState:
        state: TaskState = retry(
            lambda: TaskState.of(self.resource.task_status(str(self.task_id))),
            is_transient,
            stop=self.stop,
        )
        return state

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
        if (self.on_stop or on_stop()) == "leave":
            raise self._cancelled("was left for a rerun: the step was stopped")
        try:
            # A vendor may accept a cancellation that comes too late; only the task's state is
            # reliable.
            self.resource.task_stop(str(self.task_id))
            state = TaskState.of(self.resource.task_status(str(self.task_id)))
        except TaskUnknownError:
            state = TaskState.CANCELLED
        except QPUError as error:
            raise self._cancelled(
                f"may still be running; rerun the step to check: {error.message}"
            ) from error
        if state in (TaskState.COMPLETED, TaskState.FAILED):
            return state
        if state is TaskState.CANCELLED:  # otherwise a rerun checks its state
            _try_to_record(entry.failed, "stopped with its step", retryable=True)
        raise self._cancelled("was stopped")

    def _fetch(self, entry: Entry, state: TaskState) -> QuantumResult:
        task_id = str(self.task_id)
        if state is not TaskState.COMPLETED:
            error = self._ended_without_result(state)
            _try_to_record(entry.failed, error.message, retryable=state is TaskState.CANCELLED)
            raise error
        completed = _now()
        text = retry(lambda: self.resource.task_result(task_id).value, is_transient, stop=self.stop)
        result = QuantumResult(
            qpu=self.resource.resource_id(),
            type=self.resource_type,
            program=self.payload.program,
            task_id=task_id,
            payload_digest=self.payload.digest,
            submitted=entry.record.since,
            completed=completed,
            data=load_vendor(self.payload.vendor).decode(self.payload.program, text),
            vendor_result=text,
        )
        _try_to_record(entry.completed, result)
        return result

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
        if self.on_ambiguous == "fail":
            raise AmbiguousTaskError(
                f"{message} Check the vendor's list of tasks. To submit it again, at the risk of "
                "paying twice, rerun the step with `--on-ambiguous resubmit` "
                "(on_ambiguous='resubmit').",
                qpu,
            ) from cause
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
        reason = ""
        with suppress(QPUError):
            reason = self.resource.task_logs(task_id).strip()
        return TaskFailedError(
            f"task {task_id} on QPU {qpu!r} failed at the vendor: {reason or 'no reason given'}",
            qpu,
            task_id,
        )


def _try_to_record(write: Callable[..., None], *args: object, **kwargs: object) -> None:
    """Record an event that has already happened; if the journal fails, only log that."""
    try:
        write(*args, **kwargs)
    except JournalError as error:
        logger.warning("not recorded, so a crash would lose it: %s", error)


def _now() -> str:
    return datetime.now(UTC).isoformat()
