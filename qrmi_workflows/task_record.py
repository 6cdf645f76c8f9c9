"""One task's record in the journal, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from qrmi_workflows.errors import JournalError
from qrmi_workflows.owner import Owner
from qrmi_workflows.results import QuantumResult

__all__ = ["RecordState", "TaskRecord"]

FORMAT = "qrmi-workflows-task"
VERSION = 1
_REMEDY = "Remove it, and its task is submitted anew."


class RecordState(StrEnum):
    """How far a task has come, as far as is known for certain."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether the vendor has nothing more to do for it."""
        return self in (RecordState.COMPLETED, RecordState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task, as the journal has it.

    Attributes:
        step: The name of the step that it belongs to.
        digest: SHA-256 of its payload.
        number: Which of the step's tasks with that payload, from 0 on.
        qpu: The QPU's name.
        program: `sampler`, `estimator`, `pulser`.
        state: How far it has come.
        run: The run of the step that holds it.
        owner: The process of that run.
        since: When this state was written, ISO 8601 in UTC.
        part: Of a step that several commands share: which attempt, command and process claimed it.
        task_id: The vendor's id, once it is known.
        reason: Why it failed.
        retryable: Whether a rerun submits it again after its failure.
        result: The result, once it is there.
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
    part: tuple[str, str, str] | None = None
    task_id: str | None = None
    reason: str | None = None
    retryable: bool = False
    result: QuantumResult | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what would be submitted, and paid for, once more."""
        known = self.state in (RecordState.SUBMITTED, RecordState.COMPLETED)
        if known and not isinstance(self.task_id, str):
            raise ValueError(f"{self.state}, and no task_id")
        if self.state is RecordState.COMPLETED and not isinstance(self.result, QuantumResult):
            raise ValueError(f"{self.state}, and no result")

    def to_json(self) -> str:
        """Render the record's file."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read a record's file.

        Raises:
            JournalError: It is no record, or of another version.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise JournalError(
                f"{where}: not a task's record: {error}. Remove it, and its task is submitted anew."
            ) from error
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise JournalError(
                f"{where}: not a task's record. Remove it, and its task is submitted anew."
            )
        if (version := document.get("version")) != VERSION:
            raise JournalError(
                f"{where}: a journal of version {version!r}; this release reads version {VERSION}. "
                "Install a newer qrmi-workflows, or name another $QPU_STATE."
            )
        values = {key: value for key, value in document.items() if key not in ("format", "version")}
        try:
            values["state"] = RecordState(values["state"])
            values["owner"] = Owner.from_document(values["owner"])
            values["part"] = tuple(values["part"]) if values.get("part") else None
            values["result"] = values["result"] and QuantumResult(**values["result"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise JournalError(
                f"{where}: not a whole record: {error}. Remove it, and its task is submitted anew."
            ) from error
