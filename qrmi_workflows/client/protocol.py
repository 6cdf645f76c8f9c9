"""QRMI's interface to one QPU, and the states of a task."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

__all__ = ["QuantumResource", "TaskState"]


class TaskState(StrEnum):
    """A task's state at its vendor."""

    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    UNKNOWN = "Unknown"

    @property
    def is_final(self) -> bool:
        """Whether the task has ended."""
        return self in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)

    @classmethod
    def of(cls, status: object) -> TaskState:
        """Translate QRMI's `TaskStatus`; an unrecognised status becomes UNKNOWN."""
        name = str(status).rpartition(".")[2]
        return cls._value2member_map_.get(name, cls.UNKNOWN)  # type: ignore[return-value]


@runtime_checkable
class QuantumResource(Protocol):
    """QRMI's interface to one QPU.

    Its methods are those of Table I of the QRMI paper (https://arxiv.org/abs/2506.10052), and the
    newer `status` and `task_logs`. Arguments and return values are QRMI's own, so code written for
    `qrmi.QuantumResource` (`qrmi.primitives`, `qrmi.pulser`) also works with this interface. Every
    method may raise `ResourceError`.
    """

    def resource_id(self) -> str:
        """Return the QPU's name."""

    def resource_type(self) -> Any:
        """Return QRMI's `ResourceType`."""

    def is_accessible(self) -> bool:
        """Return whether the QPU accepts tasks."""

    def acquire(self) -> str:
        """Acquire the QPU and return the acquisition token."""

    def release(self, token: str) -> None:
        """Release the QPU, given the token that `acquire` returned."""

    def task_start(self, payload: Any) -> str:
        """Start a task and return its id."""

    def task_stop(self, task_id: str) -> None:
        """Cancel a task."""

    def task_status(self, task_id: str) -> Any:
        """Return QRMI's `TaskStatus`; `TaskState.of` translates it."""

    def task_result(self, task_id: str) -> Any:
        """Return QRMI's `TaskResult`; its `value` is the vendor's text."""

    def task_logs(self, task_id: str) -> str:
        """Return the vendor's log of a task."""

    def target(self) -> Any:
        """Return QRMI's `Target`; its `value` is JSON."""

    def metadata(self) -> dict[str, str]:
        """Return the vendor's metadata on the QPU."""

    def status(self) -> Any:
        """Return QRMI's `ResourceStatus`."""
