"""One task's record in the journal, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from qrmi_workflows.errors import JournalError
from qrmi_workflows.journal.cost import Amount, Cost
from qrmi_workflows.state.process import Owner
from qrmi_workflows.state.strict_json import to_strict_json

if TYPE_CHECKING:
    from qrmi_workflows.results import QuantumResult

__all__ = ["Move", "Portion", "RecordState", "TaskRecord"]

FORMAT = "qrmi-workflows-task"
VERSION = 1
_OPTIONAL = ("portion", "shared_by", "cost", "moved_to", "moved_from")
_REMEDY = "Remove the file to have its task submitted again."


class RecordState(StrEnum):
    """How far a task is known to have come.

    A *claimed* task belongs to a run, but its vendor has not been asked. With an *intent*, the
    request is about to go out, or has gone out and was not answered. A *moved* task went to another
    QPU because its own had gone: the vendor has nothing left to do for it, and nothing to bill.
    """

    CLAIMED = "claimed"
    INTENT = "intent"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    FAILED = "failed"
    MOVED = "moved"

    @property
    def is_at_vendor(self) -> bool:
        """Whether the vendor has, or may have, work left to do for the task."""
        return self in (RecordState.INTENT, RecordState.SUBMITTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Which PUBs of a coalesced task are those of one payload.

    Attributes:
        task: The name of the coalesced task's own record.
        first: The index of its first PUB.
        count: The number of its PUBs.
        of: The number of PUBs of the whole task.
    """

    task: str
    first: int
    count: int
    of: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """The numbers of PUBs before it, of its own, and after it."""
        return self.first, self.count, self.of - self.first - self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The move of a task from a QPU that has gone to the next one; both records have it.

    Attributes:
        qpu: The QPU that it left.
        identity: What tells that QPU from others of its name.
        task_id: The task's id there; `None` if the vendor never had it.
        to_qpu: The QPU that it went to.
        to_identity: What tells this one from others of its name.
        to_digest: The digest of its payload there, which differs if it was transpiled again.
        reason: Why the first QPU counts as gone.
        since: When it moved, ISO 8601 in UTC.
    """

    qpu: str
    identity: str
    task_id: str | None
    to_qpu: str
    to_identity: str
    to_digest: str
    reason: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task, as the journal records it.

    Payloads that share a task have a record each, with the same `task_id` (see `coalesced`).

    Attributes:
        step: The name of its step.
        digest: SHA-256 of its payload.
        number: Its index among the step's tasks with the same payload and QPU.
        qpu: The QPU's name.
        identity: What tells the QPU from others of its name (`JobQPU.identity`).
        program: `sampler`, `estimator`, `pulser`.
        state: How far it has come.
        run: The run of the step that holds it: a process's claim on the step's tasks.
        owner: The process of that run.
        since: When this state was written, ISO 8601 in UTC.
        named: Whether its step can be run again under the same name.
        part: In a step of several commands, the attempt, command and process that claimed it.
        task_id: The vendor's id, once it is known.
        reason: Why it failed.
        retryable: Whether a rerun submits it again after it has failed.
        result: The result of a completed task: the vendor's text, not yet decoded.
        deleted: Whether the ended task was deleted at its vendor, if that is needed at all.
        portion: Which PUBs are its own, if it shares its task with other payloads.
        shared_by: For a coalesced task itself, the records of its payloads, relative to the
            journal.
        cost: What it is expected to take, and what it has taken.
        moved_to: Where it went, if its QPU had gone.
        moved_from: Where it came from, if the QPU that it was meant for had gone.
    """

    step: str
    digest: str
    number: int
    qpu: str
    program: str
    state: RecordState
    run: str
    owner: Owner
    since: str
    identity: str = ""
    named: bool = True
    part: tuple[str, str, str] | None = None
    task_id: str | None = None
    reason: str | None = None
    retryable: bool = False
    result: QuantumResult | None = field(default=None, repr=False)
    deleted: bool = False
    portion: Portion | None = None
    shared_by: tuple[str, ...] = ()
    cost: Cost | None = None
    moved_to: Move | None = None
    moved_from: Move | None = None

    def __post_init__(self) -> None:
        """Refuse a record that lacks its id or result: its task would be paid for again."""
        needs_id = self.state in (RecordState.SUBMITTED, RecordState.COMPLETED)
        if needs_id and not isinstance(self.task_id, str):
            raise ValueError(f"state {self.state} without a task_id")
        if self.state is RecordState.COMPLETED and not self.result:
            raise ValueError(f"state {self.state} without a result")
        if self.state is RecordState.MOVED and not self.moved_to:
            raise ValueError(f"state {self.state} without a move")

    def continued_as(self, task: TaskRecord) -> TaskRecord:
        """Return this payload's record, with how far its coalesced task has come.

        Args:
            task: The coalesced task's record.
        """
        portion, result = self.portion, task.result
        if portion is not None and result is not None:
            result = result.part(self.digest, portion.counts).split_if_possible()
        return replace(
            self,
            state=task.state,
            since=task.since,
            task_id=task.task_id,
            reason=task.reason,
            retryable=task.retryable,
            deleted=task.deleted,
            result=result,
            cost=self._cost_of_part(task),
        )

    def _cost_of_part(self, task: TaskRecord) -> Cost | None:
        total = None if task.cost is None else task.cost.spent
        if total is None or self.portion is None:
            return self.cost
        spent = total.part(self.portion.counts)
        cost = self.cost or Cost(estimate=Amount())
        if total.shots and cost.estimate.shots is not None:  # else the task has failed
            spent = replace(spent, shots=cost.estimate.shots)
        return replace(cost, spent=spent)

    def to_json(self) -> str:
        """Render the record's file."""
        document = asdict(self)
        # What most records do not have, and earlier releases do not know.
        rest = {name: document.pop(name) for name in _OPTIONAL}
        named = {name: value for name, value in rest.items() if value}
        return to_strict_json({"format": FORMAT, "version": VERSION, **document, **named}) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Parse a record's file.

        Args:
            text: The file's content.
            where: Its path, for messages.

        Raises:
            JournalError: The text is not a record, or has another version.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise JournalError(f"{where}: not a task record: {error}. {_REMEDY}") from error
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise JournalError(f"{where}: not a task record: `format` is not {FORMAT!r}. {_REMEDY}")
        if (version := document.get("version")) != VERSION:
            raise JournalError(
                f"{where}: a journal of version {version!r}; this release reads version {VERSION}. "
                "Install a newer qrmi-workflows, or name another folder in $QPU_STATE."
            )
        values = {key: value for key, value in document.items() if key not in ("format", "version")}
        try:
            values["state"] = RecordState(values["state"])
            values["owner"] = Owner(**values["owner"])
            values["part"] = tuple(values["part"]) if values.get("part") else None
            values["result"] = values["result"] and _result(values["result"])
            values["shared_by"] = tuple(values.get("shared_by", ()))
            values["portion"] = Portion(**values["portion"]) if values.get("portion") else None
            values["cost"] = Cost.from_document(values["cost"]) if values.get("cost") else None
            for name in ("moved_to", "moved_from"):
                values[name] = Move(**values[name]) if values.get(name) else None
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise JournalError(f"{where}: incomplete task record: {error}. {_REMEDY}") from error


def _result(values: Mapping[str, Any]) -> QuantumResult:
    from qrmi_workflows.results import QuantumResult  # most records have none

    return QuantumResult(**values)
