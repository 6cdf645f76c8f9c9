"""One task that several payloads share, and that ends in a result of each payload's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.config.variables import OnStop
from qrmi_workflows.errors import (
    AuthenticationError,
    QPUError,
    ResourceError,
    TaskCancelledError,
    TaskFailedError,
    UndecodedResultError,
)
from qrmi_workflows.journal.coalesced import CoalescedEntry
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.payloads import Payload
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.tasks.costs import record_usage, settle
from qrmi_workflows.tasks.recording import try_to_record, warn
from qrmi_workflows.tasks.run import TaskRun
from qrmi_workflows.vendors.registry import coalesce, coalescible, split_result

__all__ = ["CoalescedRun", "is_refused"]

_REFUSED = frozenset({400, 413, 422})


@dataclass(slots=True, kw_only=True)
class CoalescedRun(TaskRun):
    """One task of several payloads on its way from submission to results.

    Attributes:
        members: The payloads' own runs; each was looked up in the journal and is new.
        name: The task's name in the journal; a new one if empty.
    """

    members: Sequence[TaskRun] = ()
    name: str = ""

    @classmethod
    def of(cls, members: Sequence[TaskRun], name: str = "") -> Self:
        """Return a task of these payloads, which are of one QPU and have equal keys."""
        first = members[0]
        vendor = first.payload.vendor
        content = coalesce(vendor, [member.payload.content for member in members])

        def report(task_id: str, state: TaskState) -> None:
            for member in members:
                member.task_id = task_id
                member.report_state(state)

        def note(_path: Path, _on_stop: OnStop | None) -> None:
            for member in members:
                if member.before_submission is not None:
                    member.before_submission(member.entry.path, member.on_stop)

        return cls(
            resource=first.resource,
            resource_type=first.resource_type,
            identity=first.identity,
            payload=Payload(vendor=vendor, content=content),
            step=first.step,
            stop=_AllStopped([member.stop for member in members]),
            on_ambiguous=first.on_ambiguous,
            on_state=report,
            usage=first.usage,
            before_submission=note,
            require_open=first.require_open,
            renew=first.renew,
            deletions=first.deletions,
            overhead=first.overhead,
            members=members,
            name=name,
        )

    def run_all(
        self, lane: AbstractContextManager[object]
    ) -> list[QuantumResult | UndecodedResultError]:
        """Submit the task, wait for its end, and return each payload's own result.

        Args:
            lane: A lane of the QPU, held while the vendor has the task.

        Raises:
            QPUError: As `TaskRun.__call__`, for all of the payloads.
        """
        try:
            return [_decode(result) for result in self._run_members(lane)]
        finally:
            for member in self.members:
                settle(member.entry)
                member._is_expected = False

    def _run_members(self, lane: AbstractContextManager[object]) -> list[QuantumResult]:
        counts = [self._count(member) for member in self.members]
        entry = CoalescedEntry(
            [member.entry for member in self.members], counts, self.payload.digest, self.name
        )
        with ExitStack() as held:
            held.enter_context(lane)
            self._times.start()
            state = self._run_to_end(entry, None)
            if not self._traits.stop_deletes_finished:
                held.close()
            record_usage(self, state)
            results = self._split(entry, self._fetch(entry, state), counts)
            if try_to_record(entry.hand_out, results):
                self.delete(entry)
                entry.discard()
        return results

    def _split(
        self, entry: Entry, whole: QuantumResult, counts: Sequence[int]
    ) -> list[QuantumResult]:
        texts = self._texts(whole, counts)
        if texts is None:  # the text may have been cut short on its way
            with suppress(QPUError):
                times = {"submitted": whole.submitted, "completed": whole.completed}
                again = self._ask_result(entry, **times)
                texts = self._texts(again, counts)
                whole = whole if texts is None else again
        ends = [sum(counts[: rank + 1]) for rank in range(len(counts))]
        parts = [
            whole.part(member.payload.digest, (end - count, count, ends[-1] - end))
            for member, count, end in zip(self.members, counts, ends, strict=True)
        ]
        if texts is None:
            return parts
        return [
            replace(part, vendor_result=text, unsplit=None)
            for part, text in zip(parts, texts, strict=True)
        ]

    def _texts(self, whole: QuantumResult, counts: Sequence[int]) -> list[str] | None:
        try:
            return split_result(self.resource_type, whole.vendor_result, counts)
        except Exception:  # a vendor's package may raise anything; decoding says what
            return None

    def _decode_and_delete(
        self,
        entry: Entry,  # noqa: ARG002
        result: QuantumResult,
        *,
        is_recorded: bool = True,  # noqa: ARG002
    ) -> QuantumResult:
        return result  # each payload's part is decoded, and the task deleted after that

    def leaves(self) -> bool:
        """Return whether any of the payloads is left for a rerun if it is stopped now."""
        return any(member.leaves() for member in self.members)

    def _describe(self) -> str:
        steps = list(dict.fromkeys(member.step.name for member in self.members))
        of = repr(steps[0]) + (f" and {len(steps) - 1} more" if len(steps) > 1 else "")
        return f"a task of {len(self.members)} payloads, of step {of}"

    def _ended_without_result(self, state: TaskState) -> TaskFailedError | TaskCancelledError:
        error = TaskRun._ended_without_result(self, state)
        if not isinstance(error, TaskFailedError):
            return error
        return TaskFailedError(
            f"{error.message.removesuffix('.')}. {len(self.members)} payloads shared this task. "
            "Rerun their steps: each payload is then submitted alone.",
            error.qpu,
            error.task_id,
        )

    @staticmethod
    def _count(member: TaskRun) -> int:
        found = coalescible(member.payload.vendor, member.payload.content)
        return found.pubs if found else 0


def is_refused(error: BaseException) -> bool:
    """Return whether the vendor refused a payload for what it is, without any effect."""
    return (
        isinstance(error, ResourceError)
        and not isinstance(error, AuthenticationError)
        and error.had_no_effect
        and error.status_code in _REFUSED
    )


def _decode(result: QuantumResult) -> QuantumResult | UndecodedResultError:
    try:
        return warn(result.decoded())
    except UndecodedResultError as error:
        return error


class _AllStopped(threading.Event):
    """Is set once all of several events are."""

    def __init__(self, stops: Sequence[threading.Event]) -> None:
        super().__init__()
        self._stops = stops

    def is_set(self) -> bool:
        return all(stop.is_set() for stop in self._stops)

    def wait(self, timeout: float | None = None) -> bool:
        limit = None if timeout is None else time.monotonic() + timeout
        for stop in self._stops:  # none is ever cleared
            left = None if limit is None else max(0.0, limit - time.monotonic())
            if not stop.wait(left):
                return False
        return True
