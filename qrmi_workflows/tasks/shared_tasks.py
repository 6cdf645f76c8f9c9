"""Tasks that payloads of several processes share: run by the leader, followed by the others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import (
    JournalError,
    PayloadError,
    QPUError,
    ResourceError,
    SessionEndedError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
)
from qrmi_workflows.journal.lent import LentEntry, TakenOverError
from qrmi_workflows.journal.record_files import read_record
from qrmi_workflows.payloads import Payload
from qrmi_workflows.tasks.coalesced import is_refused
from qrmi_workflows.tasks.future import TaskFuture
from qrmi_workflows.tasks.offers import Claimed, Leadership, Offer, pause_after
from qrmi_workflows.tasks.run import TaskRun
from qrmi_workflows.tasks.usage import TaskTimes

__all__ = ["describe_end", "follow", "goes_alone", "runs_of"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_TASK_ERRORS = {error.__name__: error for error in (TaskFailedError, TaskCancelledError)}


def runs_of(leadership: Leadership, like: TaskRun) -> list[TaskRun]:
    """Return the runs of the payloads that a leader has claimed.

    Args:
        leadership: The claims; one that cannot be used is dropped, so its process goes alone.
        like: A run of the leader's own.
    """
    runs = []
    for offer in list(leadership.offers):
        try:
            runs.append(_run_of(offer, like))
        except (JournalError, PayloadError, OSError) as error:
            logger.info("%s", error)
            leadership.drop(offer)
    return runs


def goes_alone(error: BaseException) -> bool:
    """Return whether payloads go alone after their common task has failed with this error."""
    return is_refused(error) or isinstance(error, TakenOverError)


def describe_end(error: BaseException | None) -> Mapping[str, Any]:
    """Return what the leader tells the others of the task's end, if the journal does not say it."""
    if error is None:
        return {}
    if is_refused(error):
        return {"alone": True}
    if isinstance(error, TaskFailedError | TaskCancelledError):
        return {"error": type(error).__name__, "message": error.message, "task_id": error.task_id}
    if isinstance(error, ResourceError) and error.had_no_effect:
        if isinstance(error, SessionEndedError):  # each process gets the next session by itself
            return {}
        about = {"call": error.call, "status_code": error.status_code}
        return {"error": "", "message": error.message, "retryable": error.retryable, **about}
    return {}


def follow(claims: Sequence[Claimed], go_on: Callable[[TaskFuture, bool], None]) -> None:
    """Wait, in a thread, for the ends of tasks that other processes run for these payloads.

    Args:
        claims: The payloads that were claimed.
        go_on: Called with each payload that goes on from the journal, and whether it is new.
    """
    for claimed in claims:
        claimed.future.run.entry.lend()
        claimed.future.leave = partial(_leave, claimed)
    work = partial(_follow, list(claims), go_on)
    threading.Thread(target=work, name="qpu-follower", daemon=True).start()


def _run_of(offer: Offer, like: TaskRun) -> TaskRun:
    payload = Payload(vendor=offer.vendor, content=offer.content)
    entry = LentEntry.of(offer.record)
    record = entry.record
    own = like.entry.record
    if (record.digest, record.qpu, record.identity) != (payload.digest, own.qpu, own.identity):
        raise JournalError(f"{offer.record}: not the record of the payload that was offered")
    return replace(
        like,
        payload=payload,
        step=entry.step,
        stop=_Left(offer),
        on_stop=offer.on_stop,
        on_state=None,
        task_id=None,
        _found=(entry, None),
        _times=TaskTimes(),
    )


def _follow(claims: list[Claimed], go_on: Callable[[TaskFuture, bool], None]) -> None:
    start = time.monotonic()
    while claims:
        time.sleep(pause_after(time.monotonic() - start))
        for claimed in list(claims):
            if claimed.future.done() or _has_ended(claimed, go_on):
                claims.remove(claimed)
                claimed.close()


def _has_ended(claimed: Claimed, go_on: Callable[[TaskFuture, bool], None]) -> bool:
    future = claimed.future
    try:
        ending = claimed.ending()
        if ending is None:
            _report(future.run)
            return False
        future.leave = None
        if future.done():
            return True
        is_new = future.run.resume() if "error" not in ending else False
        if "error" in ending:
            future.run.entry.take_back()
            future.end(_error(future.run, ending))
            return True
        if ending.get("alone"):
            future.run.coalesce = None
        go_on(future, is_new and future.run.coalesce is not None)
    except BaseException as error:  # raised to the caller by the future
        future.end(error)
    return True


def _report(run: TaskRun) -> None:
    """Say once that the leader has submitted the task."""
    if run.task_id is None:
        with suppress(JournalError):
            found = read_record(run.entry.path)
            if found is not None and found.task_id is not None:
                run.task_id = found.task_id
                run.report_state(TaskState.QUEUED)


def _error(run: TaskRun, ending: Mapping[str, Any]) -> QPUError:
    qpu, message = run.resource.resource_id(), str(ending.get("message"))
    kind: type[TaskError] | None = _TASK_ERRORS.get(str(ending["error"]))
    if kind is not None:
        return kind(message, qpu, str(ending.get("task_id") or ""))
    return ResourceError(
        message,
        qpu,
        str(ending.get("call")),
        ending.get("status_code"),
        retryable=bool(ending.get("retryable")),
        had_no_effect=True,
    )


def _leave(claimed: Claimed) -> None:
    """End a cancelled future whose task goes on for others."""
    claimed.close()
    run = claimed.future.run
    claimed.future.end(run.cancelled("goes on: other payloads share it"))


class _Left(threading.Event):
    """Is set once the process that has offered a payload no longer wants its result."""

    def __init__(self, offer: Offer) -> None:
        super().__init__()
        self._offer = offer

    def is_set(self) -> bool:
        if not super().is_set() and not self._offer.is_wanted():
            self.set()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        limit = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _LOOK_SECONDS if limit is None else limit - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, _LOOK_SECONDS))
        return True
