"""Tasks: start or re-attach, wait, fetch. How often to ask is the polling law.

Asking may add at most 5 % of a task's own duration plus 10 ms: the pause between two questions is
a twentieth of the time that the task has run, at least 2 ms and at most a minute. While it is
queued its own duration has not begun, so the pause is at most a second.

Every task is journaled: what an earlier run of the step has submitted is never submitted again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

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
from qrmi_workflows.ledger import TaskUsage, append_line
from qrmi_workflows.payloads import Payload
from qrmi_workflows.resource import QuantumResource, TaskState
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.retries import passing, refused_for_now, repeated
from qrmi_workflows.step import Entry, Step
from qrmi_workflows.task_record import RecordState, TaskRecord
from qrmi_workflows.vendors import load_vendor

__all__ = [
    "OnAmbiguous",
    "OnStop",
    "PayloadLike",
    "TaskRun",
    "next_pause",
    "to_payload",
]

logger = logging.getLogger(__name__)

PayloadLike = Payload | Mapping[str, Any] | Path | str
"""A payload, the content of one, or the path of its file."""

OnAmbiguous = Literal["fail", "resubmit"]
"""What to do about a task that the vendor may have accepted or not."""

OnStop = Literal["cancel", "leave"]
"""What becomes of the tasks in flight when their step is stopped."""

_FRACTION, _LEAST, _MOST_RUNNING, _MOST_QUEUED = 0.05, 0.002, 60.0, 1.0


def to_payload(payload: PayloadLike, *, shots: int | None = None) -> Payload:
    """Take a payload in any of its forms.

    Args:
        payload: The payload, its content, or the path of its file.
        shots: Another number of shots than its own.

    Raises:
        PayloadError: It cannot be read, or is of no vendor's schema.
    """
    if isinstance(payload, Path | str):
        return Payload.from_file(payload, shots=shots)
    taken = payload if isinstance(payload, Payload) else Payload.from_content(payload)
    return taken if shots is None else taken.with_shots(shots)


def next_pause(state: TaskState, seconds: float) -> float:
    """Return the seconds until the next question.

    Args:
        state: The task's last known state.
        seconds: For how long it has been in that state.
    """
    most = _MOST_QUEUED if state is TaskState.QUEUED else _MOST_RUNNING
    return min(max(_FRACTION * seconds, _LEAST), most)


@dataclass(slots=True, kw_only=True)
class TaskRun:
    """One task on its way from payload to result. Called once, it runs the task to its end.

    Attributes:
        resource: The QPU, acquired where it needs to be.
        resource_type: QRMI's type of the QPU.
        payload: The task's input; of the QPU's vendor.
        step: The step that it belongs to.
        stop: Set to end the run.
        on_stop: Whether the task is cancelled at the vendor then, or left for a rerun.
        on_ambiguous: What to do when nobody knows whether the vendor accepted it.
        on_state: Called with the task's id and each new state.
        usage: The lease's file of what its tasks used.
        renew: Acquires anew when the vendor has closed the session; `False` when that is not ours.
        task_id: The vendor's id, once it is known.
    """

    resource: QuantumResource
    resource_type: str
    payload: Payload
    step: Step
    stop: threading.Event = field(default_factory=threading.Event)
    on_stop: OnStop = "cancel"
    on_ambiguous: OnAmbiguous = "fail"
    on_state: Callable[[str, TaskState], None] | None = None
    usage: Path | None = None
    renew: Callable[[], bool] | None = None
    task_id: str | None = None

    def __call__(self, lane: AbstractContextManager[object]) -> QuantumResult:
        """Recall the task, or submit it; wait; fetch.

        Args:
            lane: Held while the vendor has the task.

        Raises:
            TaskFailedError, TaskCancelledError: It ended without a result.
            AmbiguousTaskError: Nobody knows whether the vendor accepted it.
            ResourceError: The vendor failed for longer than `RETRY_SECONDS`, or refused.
            ResultError: The result is not of the vendor's form.
            JournalError: The journal could not be read or written; nothing was submitted.
        """
        entry, known = self._recall()
        if isinstance(known, QuantumResult):
            self.task_id = known.task_id
            return known
        with lane:
            started = time.time()
            state = self._reach_end(entry, known)
        self._note_usage(started, state)
        return self._fetch(entry, state)

    def _recall(self) -> tuple[Entry, QuantumResult | str | None]:
        """Look the task up in the journal: its result, or its id, or nothing yet."""
        qpu = self.resource.resource_id()
        entry, before = self.step.claim(self.payload.digest, qpu=qpu, program=self.payload.program)
        if before is None:
            return entry, None
        if before.state is RecordState.COMPLETED:
            logger.info("task %s was completed by an earlier run", before.task_id)
            return entry, before.result
        if before.state is RecordState.SUBMITTED:
            logger.info("re-attaching to task %s", before.task_id)
            return entry, before.task_id
        if before.state is RecordState.FAILED and not before.retryable:
            raise self._failed_before(before)
        if before.state is RecordState.INTENT:
            self._decide_ambiguous("an earlier run ended before the vendor had answered")
        entry.renewed()
        return entry, None

    def _reach_end(self, entry: Entry, known: str | None) -> TaskState:
        if known is not None and (state := self._re_attach(entry, known)) is not None:
            return state
        self.task_id = self._start(entry)
        return self._wait(entry)

    def _re_attach(self, entry: Entry, known: str) -> TaskState | None:
        """Wait for what an earlier run has submitted; `None` when there is nothing to wait for."""
        self.task_id = known
        try:
            if self._state() is not TaskState.CANCELLED:
                return self._wait(entry)
            why = "was cancelled"
        except TaskUnknownError:
            why = "is no longer known to the vendor"
        logger.warning("task %s %s; submitting it again", known, why)
        entry.renewed()
        return None

    def _start(self, entry: Entry) -> str:
        encoded = load_vendor(self.payload.vendor).encode(self.payload.content)
        while not self.stop.is_set():
            try:
                task_id: str = repeated(
                    lambda: self.resource.task_start(encoded), refused_for_now, stop=self.stop
                )
            except SessionEndedError as error:
                if self.renew is None or not self.renew():
                    _note(entry.failed, error.message, retryable=True)
                    raise
            except ResourceError as error:
                if error.refused:  # nothing was paid for, so a rerun may ask again
                    _note(entry.failed, error.message, retryable=True)
                    raise
                self._decide_ambiguous(error.message, error)
            else:
                _note(entry.submitted, task_id)
                return task_id
        _note(entry.failed, "stopped before it was submitted", retryable=True)
        raise self._stopped("was not submitted: the step was stopped")

    def _state(self) -> TaskState:
        state: TaskState = repeated(
            lambda: TaskState.of(self.resource.task_status(str(self.task_id))),
            passing,
            stop=self.stop,
        )
        return state

    def _wait(self, entry: Entry) -> TaskState:
        last, since = None, time.monotonic()
        while True:
            try:
                state = self._state()
            except ResourceError:
                if self.stop.is_set():
                    return self._stop(entry)
                raise
            if state is not last:
                last, since = state, time.monotonic()
                self._tell(state)
            if state.final:
                return state
            if self.stop.wait(next_pause(state, time.monotonic() - since)):
                return self._stop(entry)

    def _tell(self, state: TaskState) -> None:
        """Call `on_state`; what it raises (its terminal is gone) is no reason to lose a task."""
        try:
            if self.on_state:
                self.on_state(str(self.task_id), state)
        except Exception:
            logger.warning("on_state failed for task %s", self.task_id, exc_info=True)

    def _stop(self, entry: Entry) -> TaskState:
        """Cancel the task; return its state where it had ended before that."""
        if self.on_stop == "leave":
            raise self._stopped("was left to a rerun: the step was stopped")
        try:
            self.resource.task_stop(str(self.task_id))
            state = TaskState.of(self.resource.task_status(str(self.task_id)))
        except TaskUnknownError:
            state = TaskState.CANCELLED
        except QPUError as error:
            raise self._stopped(f"may still run, a rerun looks: {error.message}") from error
        if state in (TaskState.COMPLETED, TaskState.FAILED):
            return state
        if state is TaskState.CANCELLED:  # else a rerun looks what has become of it
            _note(entry.failed, "stopped with its step", retryable=True)
        raise self._stopped("was stopped")

    def _fetch(self, entry: Entry, state: TaskState) -> QuantumResult:
        task_id = str(self.task_id)
        if state is not TaskState.COMPLETED:
            error = self._ended_without_result(state)
            _note(entry.failed, error.message, retryable=state is TaskState.CANCELLED)
            raise error
        completed = _now()
        text = repeated(lambda: self.resource.task_result(task_id).value, passing, stop=self.stop)
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
        _note(entry.completed, result)
        return result

    def _note_usage(self, started: float, state: TaskState) -> None:
        if self.usage is None:
            return
        used = TaskUsage(
            qpu=self.resource.resource_id(),
            task_id=str(self.task_id),
            started=started,
            ended=time.time(),
            state=state,
        )
        with suppress(OSError):
            append_line(self.usage, json.dumps(asdict(used)))

    def _decide_ambiguous(self, why: str, cause: Exception | None = None) -> None:
        qpu = self.resource.resource_id()
        said = (
            f"nobody knows whether QPU {qpu!r} accepted a task of step {self.step.name!r} "
            f"(payload {self.payload.digest[:12]}): {why}."
        )
        if self.on_ambiguous == "fail":
            raise AmbiguousTaskError(
                f"{said} Look at the vendor's list of tasks; then run the step again with "
                "`--on-ambiguous resubmit` (on_ambiguous='resubmit'), which may pay for it twice.",
                qpu,
            ) from cause
        logger.warning("%s Submitting it again, as asked.", said)

    def _stopped(self, what: str) -> TaskCancelledError:
        qpu, task_id = self.resource.resource_id(), self.task_id or ""
        return TaskCancelledError(f"task {task_id} on QPU {qpu!r} {what}.", qpu, task_id)

    def _failed_before(self, before: TaskRecord) -> TaskFailedError:
        return TaskFailedError(
            f"{before.reason} An earlier run of step {before.step!r} recorded this; it is not "
            f"submitted again. `qpu journal prune --step {before.step!r}` forgets it.",
            before.qpu,
            before.task_id or "",
        )

    def _ended_without_result(self, state: TaskState) -> TaskFailedError | TaskCancelledError:
        qpu, task_id = self.resource.resource_id(), str(self.task_id)
        if state is TaskState.CANCELLED:
            return self._stopped("was cancelled at the vendor")
        reason = ""
        with suppress(QPUError):
            reason = self.resource.task_logs(task_id).strip()
        return TaskFailedError(
            f"task {task_id} on QPU {qpu!r} failed at the vendor: {reason or 'no reason given'}",
            qpu,
            task_id,
        )


def _note(write: Callable[..., None], *args: object, **kwargs: object) -> None:
    """Record what is true already; a journal that fails now must not lose what is in hand."""
    try:
        write(*args, **kwargs)
    except JournalError as error:
        logger.warning("not recorded, so that a crash from now on would lose it: %s", error)


def _now() -> str:
    return datetime.now(UTC).isoformat()
