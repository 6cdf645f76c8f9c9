"""One task's record in the journal, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from qrmi_workflows.errors import JournalError
from qrmi_workflows.results import QuantumResult
from qrmi_workflows.state.process import Owner
from qrmi_workflows.state.strict_json import to_strict_json

__all__ = ["RecordState", "TaskRecord"]

FORMAT = "qrmi-workflows-task"
VERSION = 1
_REMEDY = "Remove the file to have its task submitted again."


class RecordState(StrEnum):
    """How far a task is known to have come.

    A *claimed* task belongs to a run, but its vendor has not been asked. With an *intent*, the
    request is about to go out, or has gone out and was not answered.
    """

    CLAIMED = "claimed"
    INTENT = "intent"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_at_vendor(self) -> bool:
        """Whether the vendor has, or may have, work left to do for the task."""
        return self in (RecordState.INTENT, RecordState.SUBMITTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task, as the journal records it.

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

    def __post_init__(self) -> None:
        """Refuse a record that lacks its id or result: its task would be paid for again."""
        needs_id = self.state in (RecordState.SUBMITTED, RecordState.COMPLETED)
        if needs_id and not isinstance(self.task_id, str):
            raise ValueError(f"state {self.state} without a task_id")
        if self.state is RecordState.COMPLETED and not isinstance(self.result, QuantumResult):
            raise ValueError(f"state {self.state} without a result")

    def to_json(self) -> str:
        """Render the record's file."""
        return to_strict_json({"format": FORMAT, "version": VERSION, **asdict(self)}) + "\n"

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
            values["result"] = values["result"] and QuantumResult(**values["result"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise JournalError(f"{where}: incomplete task record: {error}. {_REMEDY}") from error
